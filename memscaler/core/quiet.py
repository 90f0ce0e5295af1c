"""How quiet a GPU is: what the readings of its watches say, and from when on it may park.

Work keeps a GPU awake for idle_after, a touch for touch_cooldown only, and an answer of which nobody can say that it is
over for UNSURE_NS. Whatever cannot be read counts as live.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from memscaler.core.model import SECOND_NS, GpuPolicy, GpuState, Phase, Reading

# Silence after which an answer counts as over if nobody can say so: longer than most pauses between the tokens of a
# stream, and than the period over which NVML averages utilisation.
UNSURE_NS = 5 * SECOND_NS


def disturbed(watches: Collection[int], readings: Mapping[int, Reading]) -> bool:
    """Live connections, a doorbell that rang, a watch that could not be read, or none left."""
    for slot in watches:
        reading = readings.get(slot)
        if reading is None or reading.live > 0 or not reading.armed:
            return True
    return not watches


def rang(watches: Collection[int], readings: Mapping[int, Reading]) -> bool:
    """True if a client disturbs, and not only a watch that is not there."""
    mine = [readings[slot] for slot in watches if slot in readings]
    return any(reading.live > 0 or not reading.armed for reading in mine)


def live(watches: Collection[int], readings: Mapping[int, Reading]) -> bool:
    """Live connections, a watch that could not be read, or none at all."""
    mine = [readings.get(slot) for slot in watches]
    return not mine or any(reading is None or reading.live > 0 for reading in mine)


def since_ns(gpu: GpuState, mine: GpuPolicy, readings: Mapping[int, Reading]) -> int:
    """Since when nobody has worked."""
    last = [readings[slot].last_activity_ns for slot in mine.watches if slot in readings]
    return max([gpu.quiet_floor_ns, *last])


def last_seen_ns(watches: Collection[int], readings: Mapping[int, Reading]) -> int:
    """The last time that a client did anything."""
    mine = [readings[slot] for slot in watches]
    return max(max(each.last_activity_ns, each.last_touch_ns, each.last_unsure_ns) for each in mine)


def ready_ns(gpu: GpuState, mine: GpuPolicy, readings: Mapping[int, Reading]) -> int:
    """The earliest time at which this GPU may park."""
    dwelt = 0 if gpu.parked_at_ns is None else gpu.parked_at_ns + mine.min_dwell_ns
    seen = [readings[slot] for slot in mine.watches]
    touched = max(reading.last_touch_ns for reading in seen) + mine.touch_cooldown_ns
    unsure = max(reading.last_unsure_ns for reading in seen) + min(UNSURE_NS, mine.idle_after_ns)
    idle = since_ns(gpu, mine, readings) + mine.idle_after_ns
    timers = [] if gpu.hurried_ns else [idle, touched, unsure]
    return max([*timers, dwelt, *gpu.holds.values()])


def look_again_ns(gpu: GpuState, mine: GpuPolicy, now_ns: int) -> int:
    """When to look at live connections again: soon at first, they may turn out to have been a touch."""
    soonest_ns = min(mine.touch_cooldown_ns or mine.idle_after_ns, mine.idle_after_ns)
    awake_ns = now_ns - gpu.since_ns if gpu.phase is Phase.AWAKE else 0
    return now_ns + min(max(awake_ns, soonest_ns), mine.idle_after_ns)
