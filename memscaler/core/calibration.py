"""What was measured of one GPU by parking and waking it a few times, and how a round's samples become figures. Pure.

A round: quiet with the clocks up -> the driver call of a park -> clocks down -> power settled -> the driver call of the
wake -> clocks back -> quiet. Its energy comes from the card's counter, at the moments when that changed, or from the
trapezoid of the power readings where there is none. What the switch takes, as core/costs.py means it:

    switch_j = energy from the call of the park to that of the wake - parked watts * that time
             + what the time after the wake took more than the awake watts, if it did

A wake that draws less than the awake watts until its clocks are back is credited nothing: its work waits meanwhile.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from memscaler.core.costs import ASSUMED, Costs

INSTANT, AVERAGE = "instant", "average"  # power readings: of the moment, or of the last second on many cards
COUNTER, POWER = "counter", "power"  # where energy comes from
AVERAGED_S = 1.0
SETTLED_W, SETTLED_SHARE = 1.0, 0.05  # as near as this to the parked watts, or this share of what is spared
BACK_SHARE = 0.98  # of the clock before the park: cards report some MHz less now and then


@dataclass(frozen=True, slots=True)
class Spread:
    """Of several rounds. With an even number the median is the lower middle one."""

    median: float
    low: float
    high: float


def spread(values: Iterable[float | None]) -> Spread | None:
    """None if no round knows."""
    known = sorted(value for value in values if value is not None)
    return Spread(known[(len(known) - 1) // 2], known[0], known[-1]) if known else None


@dataclass(frozen=True, slots=True)
class Calibration:
    """Of one GPU. at_unix_s: when; version: memscaler's. lever, target: what parked it, target in MHz or as a P-state.

    awake_w: quiet, with a model loaded. parked_w: parked. bare_w: no process has a context; bare_unix_s: when that was.
    down_s: from the driver call of a park until its clocks are down; settled_s: until its power has settled.
    up_s: from the driver call of a wake until its clocks rise; back_s: until they are where they were.
    resolution_s: how much earlier down_s, up_s and back_s may have been, at most.
    switch_j: what a park and its wake take (see above), give or take switch_error_j.
    """

    uuid: str
    name: str
    at_unix_s: float
    version: str
    driver_version: str
    lever: str = ""
    target: int = 0
    rounds: int = 0
    awake_w: Spread | None = None
    parked_w: Spread | None = None
    bare_w: float | None = None
    bare_unix_s: float | None = None
    down_s: Spread | None = None
    settled_s: Spread | None = None
    up_s: Spread | None = None
    back_s: Spread | None = None
    resolution_s: float | None = None
    switch_j: Spread | None = None
    switch_error_j: float | None = None
    power_source: str = ""
    energy_source: str = ""

    def costs(self) -> Costs:
        """What decisions go by. "assumed" watts, with the times that are known, where its watts could not be read."""
        settle_s = self.down_s.median if self.down_s else ASSUMED.settle_s
        back_s = self.back_s or self.up_s
        slow_s = back_s.median if back_s else ASSUMED.slow_s
        if self.awake_w is None or self.parked_w is None or self.switch_j is None:
            return replace(ASSUMED, settle_s=settle_s, slow_s=slow_s)
        switch_j = max(0.0, self.switch_j.median)
        return Costs(self.awake_w.median, self.parked_w.median, settle_s, slow_s, switch_j, "measured")


# ---- one round ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a GPU, on any clock. None: it does not tell."""

    at_s: float
    power_w: float | None = None
    energy_j: float | None = None
    memory_clock_mhz: int | None = None
    graphics_clock_mhz: int | None = None


@dataclass(frozen=True, slots=True)
class Marks:
    """When what happened, on the clock of the samples. down_s: the clocks were seen down; up_s: seen to rise.

    back_s: seen where they were before; None: not seen. calm_s: so long before the wake, and before the end, the power
    had settled. resolution_s: the longest time between a look that saw nothing yet and the one that saw it.
    """

    park_s: float
    down_s: float
    wake_s: float
    up_s: float
    back_s: float | None
    end_s: float
    calm_s: float
    resolution_s: float


@dataclass(frozen=True, slots=True)
class Round:
    """What one round tells; None: it does not."""

    marks: Marks
    samples: tuple[Sample, ...]
    awake_w: float | None
    parked_w: float | None
    settled_s: float | None
    switch_j: float | None
    step_s: float | None


def measured(samples: Sequence[Sample], marks: Marks) -> Round:
    """The figures of a round. samples: from before the park to the end, oldest first."""
    curve = _energy(samples)
    parked_w = _level_w(samples, curve, marks.wake_s - marks.calm_s, marks.wake_s)
    awake_w = _level_w(samples, curve, marks.end_s - marks.calm_s, marks.end_s)
    switch_j = _switch_j(curve, marks)
    settled_s = None
    if parked_w is not None and awake_w is not None:
        settled_s = _settled_s(samples, marks, parked_w, abs(awake_w - parked_w))
    return Round(marks, tuple(samples), awake_w, parked_w, settled_s, switch_j, _step_s(curve))


def summary(rounds: Sequence[Round], about: Calibration) -> Calibration:
    """All rounds together. about: whose, when and how; its power_source tells how its power readings are meant."""
    switch_j = spread(each.switch_j for each in rounds)
    awake_w, parked_w = spread(each.awake_w for each in rounds), spread(each.parked_w for each in rounds)
    counts = any(sample.energy_j is not None for each in rounds for sample in each.samples)
    energy_source = (COUNTER if counts else POWER) if switch_j else ""
    return replace(
        about,
        rounds=len(rounds),
        awake_w=awake_w,
        parked_w=parked_w,
        down_s=spread(each.marks.down_s - each.marks.park_s for each in rounds),
        settled_s=spread(each.settled_s for each in rounds),
        up_s=spread(each.marks.up_s - each.marks.wake_s for each in rounds),
        back_s=spread(each.marks.back_s - each.marks.wake_s if each.marks.back_s else None for each in rounds),
        resolution_s=max((each.marks.resolution_s for each in rounds), default=None),
        switch_j=switch_j,
        switch_error_j=_error_j(rounds, switch_j, awake_w, parked_w, energy_source, about.power_source),
        energy_source=energy_source,
    )


def _error_j(  # all that it depends on
    rounds: Sequence[Round],
    switch_j: Spread | None,
    awake_w: Spread | None,
    parked_w: Spread | None,
    energy_source: str,
    power_source: str,
) -> float | None:
    """Half the spread, and what the power may have done between two updates of the card's figure."""
    if switch_j is None or awake_w is None or parked_w is None:
        return None
    step_s = max((each.step_s for each in rounds if each.step_s is not None), default=0.0)
    if energy_source == POWER and power_source == AVERAGE:
        step_s += AVERAGED_S
    return (switch_j.high - switch_j.low) / 2 + abs(awake_w.median - parked_w.median) * step_s


# ---- energy and power -----------------------------------------------------------------------------------------------

Curve = Sequence[tuple[float, float]]


def _energy(samples: Sequence[Sample]) -> Curve:
    """(time, joules so far): the counter where there is one, when it moved; else the trapezoid of the power."""
    counted = [(each.at_s, each.energy_j) for each in samples if each.energy_j is not None]
    moved = [now for before, now in itertools.pairwise(counted) if now[1] != before[1]]
    if moved:
        falls = any(now[1] < before[1] for before, now in itertools.pairwise(moved))
        return () if falls else moved  # the driver was reloaded in between
    powers = [(each.at_s, each.power_w) for each in samples if each.power_w is not None]
    curve, total_j = [(powers[0][0], 0.0)] if powers else [], 0.0
    for (before_s, before_w), (now_s, now_w) in itertools.pairwise(powers):
        total_j += (before_w + now_w) / 2 * (now_s - before_s)
        curve.append((now_s, total_j))
    return curve


def _energy_at(curve: Curve, at_s: float) -> float | None:
    """Joules so far; beyond its ends, by less than what lies between two points, as there."""
    if len(curve) < 2:  # noqa: PLR2004  # a line needs two
        return None
    index = min(max(bisect_left(curve, (at_s,)), 1), len(curve) - 1)
    (from_s, from_j), (to_s, to_j) = curve[index - 1], curve[index]
    if to_s <= from_s or at_s < 2 * from_s - to_s or at_s > 2 * to_s - from_s:
        return None
    return from_j + (to_j - from_j) * (at_s - from_s) / (to_s - from_s)


def _between(curve: Curve, from_s: float, to_s: float) -> float | None:
    from_j, to_j = _energy_at(curve, from_s), _energy_at(curve, to_s)
    return None if from_j is None or to_j is None else to_j - from_j


def _level_w(samples: Sequence[Sample], curve: Curve, from_s: float, to_s: float) -> float | None:
    """The power while it had settled: the median of its readings, or by the counter where it cannot be read."""
    readings = spread(each.power_w for each in samples if from_s <= each.at_s <= to_s)
    if readings is not None:
        return readings.median
    energy_j = _between(curve, from_s, to_s)
    return None if energy_j is None else energy_j / (to_s - from_s)


def _switch_j(curve: Curve, marks: Marks) -> float | None:
    """By one source alone: the counter and the power readings of a card differ by some per cent."""
    parked_j = _between(curve, marks.park_s, marks.wake_s)
    calm_j = _between(curve, marks.wake_s - marks.calm_s, marks.wake_s)
    after_j = _between(curve, marks.wake_s, marks.end_s)
    awake_j = _between(curve, marks.end_s - marks.calm_s, marks.end_s)
    if parked_j is None or calm_j is None or after_j is None or awake_j is None:
        return None
    park_j = parked_j - calm_j / marks.calm_s * (marks.wake_s - marks.park_s)
    wake_j = after_j - awake_j / marks.calm_s * (marks.end_s - marks.wake_s)
    return park_j + max(0.0, wake_j)


def _settled_s(samples: Sequence[Sample], marks: Marks, parked_w: float, spared_w: float) -> float | None:
    """From the call of the park until no reading leaves the parked watts any more; None: nobody saw it."""
    near_w = max(SETTLED_W, SETTLED_SHARE * spared_w)
    settled_s = None
    for each in samples:
        if each.power_w is None or not marks.park_s <= each.at_s < marks.wake_s:
            continue
        near = abs(each.power_w - parked_w) <= near_w
        settled_s = (settled_s if settled_s is not None else each.at_s - marks.park_s) if near else None
    return settled_s


def _step_s(curve: Curve) -> float | None:
    """The usual time between two points."""
    steps = spread(now[0] - before[0] for before, now in itertools.pairwise(curve))
    return None if steps is None else steps.median
