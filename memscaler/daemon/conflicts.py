"""Somebody has changed what we set: noticed by the clocks of a parked GPU, because NVML has no getter for locks.

memscaler never fights: it undoes its own setting once, says so, and leaves that GPU alone for a while.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from memscaler.core.model import SECOND_NS
from memscaler.core.snapshot import GpuReading
from memscaler.gpu.levers import GRAPHICS_CLOCK, MEMORY_CLOCK, PSTATE, Lever

OWNER = "conflict"
AGAIN_NS = 2 * SECOND_NS  # a second look before anybody is accused: a card may move its clock for an instant
SOON_ENOUGH_NS = AGAIN_NS - SECOND_NS // 10
LONGEST_S = 86400.0
AT_WORK = 0.5  # utilisation at which a card has its clocks up, unless somebody keeps them down
TOLERANCE = 1.01  # cards report a clock some kHz off


@dataclass(frozen=True, slots=True)
class Conflict:
    """What was seen, as a sentence; and until when (CLOCK_MONOTONIC) that GPU is left alone."""

    what: str
    until_ns: int


class Conflicts:
    """Judges the samples of parked GPUs. Used by the loop's thread.

    pause_s: how long a GPU is left alone the first time; twice as long each further time, up to a day.
    """

    def __init__(self, pause_s: float) -> None:
        self.pause_s = pause_s
        self._since_ns: dict[str, int] = {}
        self._count: defaultdict[str, int] = defaultdict(int)
        self._told: set[str] = set()

    def forget(self, gpu: str) -> None:
        """It is not governed any more."""
        self._since_ns.pop(gpu, None)
        self._count.pop(gpu, None)
        self._told.discard(gpu)

    @property
    def look_again_ns(self) -> int:
        """When another sample is wanted, in CLOCK_MONOTONIC; 0: there is no suspicion."""
        return min((since_ns + AGAIN_NS for since_ns in self._since_ns.values()), default=0)

    def judge(self, gpu: str, lever: Lever | None, reading: GpuReading) -> Conflict | None:
        """lever: what this GPU was seen to be parked with; None if it is not, or still settles.

        An answer only if two samples in a row, AGAIN_NS apart, say the same.
        """
        moved = "" if lever is None else moved_from(lever.name, lever.target, reading)
        if not self._is_sure(gpu, moved, reading):
            return None
        pause_s = min(self.pause_s * 2 ** min(self._count[gpu], 30), LONGEST_S)
        self._count[gpu] += 1
        return Conflict(moved, time.monotonic_ns() + round(pause_s * SECOND_NS))

    def judge_working(self, gpu: str, clocks_mhz: Sequence[int], reading: GpuReading) -> str:
        """Of a GPU that we have not parked: what somebody seems to have done to it, "" if nothing. Told once.

        clocks_mhz: the memory clocks that it supports.
        """
        slow = kept_slow(clocks_mhz, reading)
        if not slow:
            self._told.discard(gpu)
        if not self._is_sure(gpu, slow if gpu not in self._told else "", reading):
            return ""
        self._told.add(gpu)
        return slow

    def _is_sure(self, gpu: str, suspicion: str, reading: GpuReading) -> bool:
        """True for the second sample in a row, AGAIN_NS after the first."""
        if not suspicion:
            self._since_ns.pop(gpu, None)
        elif gpu not in self._since_ns:
            self._since_ns[gpu] = reading.at_ns
        elif reading.at_ns - self._since_ns[gpu] >= SOON_ENOUGH_NS:
            del self._since_ns[gpu]
            return True
        return False


def kept_slow(clocks_mhz: Sequence[int], reading: GpuReading) -> str:
    """About a GPU on which nothing of ours is set: a sentence if it works with its clocks down, else ""."""
    seen_mhz, works = reading.memory_clock_mhz, (reading.utilization_ratio or 0) >= AT_WORK
    if not works or len(clocks_mhz) < 2 or seen_mhz is None or seen_mhz > min(clocks_mhz) * TOLERANCE:  # noqa: PLR2004  # one clock is no choice
        return ""
    return f"it works with its memory clock at {seen_mhz} MHz, its lowest, and memscaler has not lowered it"


def moved_from(lever: str, target: int, reading: GpuReading) -> str:
    """About a parked GPU: a sentence if it is not where this lever has put it, else "". Unknown clocks say nothing."""
    if lever == MEMORY_CLOCK:
        return _clock("memory clock", target, reading.memory_clock_mhz)
    if lever == GRAPHICS_CLOCK:
        return _clock("graphics clock", target, reading.graphics_clock_mhz)
    if lever == PSTATE and reading.pstate is not None and reading.pstate < target:
        return f"the performance state is P{reading.pstate}, and was set to P{target}"
    return ""


def _clock(what: str, target_mhz: int, seen_mhz: int | None) -> str:
    if seen_mhz is None or seen_mhz <= target_mhz * TOLERANCE:
        return ""
    return f"the {what} is {seen_mhz} MHz, and was set to {target_mhz} MHz"
