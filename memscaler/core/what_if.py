"""What other idle times would have made of the gaps that were recorded, and whether another one is worth it. Pure.

All rows come from the same model (core/costs.py) and the same gaps, also that of the idle time that was used; so they
can be compared with each other. What really was stands beside them: it differs by holds, failed parks, touches, and the
quiet before the first work and after the last, which is in no gap. So it has no share of what was possible in the gaps.

Advice needs ENOUGH_S of records and ENOUGH_GAPS gaps, and watts that are not assumed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from memscaler.core.costs import Costs, Outcome, offline, with_timer
from memscaler.core.summary import DAY_S

IDLE_TIMES_S = (1.0, 5.0, 10.0, 30.0, 60.0, 300.0)
ENOUGH_S = 2 * DAY_S
ENOUGH_GAPS = 30
WORTH_RATIO = 0.03  # of the possible: less is not worth a word
NEAR_RATIO = 0.03  # of the possible: so much is given up for fewer wakes
FEWER_WAKES_RATIO = 0.2  # with the same saving: so many fewer wakes are worth a word
AUTO = "auto"

Gaps = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Row:
    """A policy. name: "auto", or None for a timer of idle_s. share: of what was possible; None if nothing was."""

    idle_s: float | None
    outcome: Outcome
    days: float
    share: float | None
    name: str = ""

    def a_day(self, total: float) -> float:
        """One of the outcome's figures per recorded day."""
        return total / self.days if self.days else 0.0


class Verdict(StrEnum):
    """What the rows say."""

    CHANGE = "change"  # another idle time is better
    KEEP = "keep"  # none is
    NOTHING = "nothing"  # no policy could have saved anything
    TOO_LITTLE = "too-little"  # data
    ASSUMED = "assumed"  # the watts of this GPU are not known


@dataclass(frozen=True, slots=True)
class Advice:
    """better: the row to change to. more_ratio: more saved than with the idle time used; more_wakes: a day.

    wanted_s, wanted_gaps: that are still missing for advice.
    """

    verdict: Verdict
    better: Row | None = None
    more_ratio: float = 0.0
    more_wakes: float = 0.0
    wanted_s: float = 0.0
    wanted_gaps: int = 0


@dataclass(frozen=True, slots=True)
class WhatIf:
    """rows: by idle time, then auto; used: the one of the idle time that was used; None: none is known.

    optimum: who knows every gap beforehand. was: what really was, as recorded.
    """

    costs: Costs
    recorded_s: float
    gaps: int
    rows: tuple[Row, ...]
    used: Row | None
    optimum: Row
    was: Row
    advice: Advice


def what_if(
    gaps: Gaps, costs: Costs, recorded_s: float, was: Outcome, used_s: float | None, auto: Outcome | None = None
) -> WhatIf:
    """gaps: (start, length) in seconds. used_s: the idle time that was used. auto: what the adaptive one would do."""
    lengths_s, days = [length_s for _, length_s in gaps], recorded_s / DAY_S
    best = offline(lengths_s, costs)

    def row(outcome: Outcome, idle_s: float | None = None, name: str = "") -> Row:
        return Row(idle_s, outcome, days, outcome.saved_j / best.saved_j if best.saved_j > 0 else None, name)

    times_s = sorted({*IDLE_TIMES_S} | (set() if used_s is None else {used_s}))
    timers = [row(with_timer(lengths_s, idle_s, costs), idle_s) for idle_s in times_s]
    rows = (*timers, *([] if auto is None else [row(auto, None, AUTO)]))
    used = next((each for each in timers if each.idle_s == used_s), None)
    advice = _advise(rows, used, best, costs, recorded_s)
    return WhatIf(costs, recorded_s, len(gaps), rows, used, row(best), Row(None, was, days, None), advice)


def _advise(rows: Sequence[Row], used: Row | None, best: Outcome, costs: Costs, recorded_s: float) -> Advice:
    wanted_s, wanted_gaps = max(0.0, ENOUGH_S - recorded_s), max(0, ENOUGH_GAPS - best.gaps)
    if wanted_s or wanted_gaps or used is None:
        return Advice(Verdict.TOO_LITTLE, wanted_s=wanted_s, wanted_gaps=wanted_gaps)
    if costs.source == "assumed":
        return Advice(Verdict.ASSUMED)
    if best.saved_j <= 0:
        return Advice(Verdict.NOTHING)
    most_j = max(row.outcome.saved_j for row in rows)
    near = [row for row in rows if row.outcome.saved_j >= most_j - NEAR_RATIO * best.saved_j]
    better = min(near, key=lambda row: (row.outcome.wakes, -row.outcome.saved_j))
    more_j, fewer = better.outcome.saved_j - used.outcome.saved_j, used.outcome.wakes - better.outcome.wakes
    # As much saved with fewer wakes is better, too: more_j is above -NEAR_RATIO of the possible in any case.
    if more_j < WORTH_RATIO * best.saved_j and fewer < max(1.0, FEWER_WAKES_RATIO * used.outcome.wakes):
        return Advice(Verdict.KEEP)
    more_ratio = more_j / used.outcome.saved_j if used.outcome.saved_j > 0 else float("inf")
    return Advice(Verdict.CHANGE, better, more_ratio, -better.a_day(fewer))


# ---- gaps ---------------------------------------------------------------------------------------------------------


def within(gaps: Iterable[tuple[float, float]], start_s: float, end_s: float) -> list[tuple[float, float]]:
    """What of the gaps lies in this time, oldest first."""
    found = []
    for at_s, length_s in gaps:
        begin_s, stop_s = max(at_s, start_s), min(at_s + length_s, end_s)
        if stop_s > begin_s:
            found.append((begin_s, stop_s - begin_s))
    return sorted(found)


BINS_S = (0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400)


def distribution(gaps: Gaps) -> Mapping[float, tuple[int, float]]:
    """For each of BINS_S: the gaps that are that long or longer, up to the next, and their seconds."""
    found = {float(least_s): (0, 0.0) for least_s in BINS_S}
    for _, length_s in gaps:
        least_s = max((float(least_s) for least_s in BINS_S if least_s <= length_s), default=float(BINS_S[0]))
        count, together_s = found[least_s]
        found[least_s] = (count + 1, together_s + length_s)
    return found
