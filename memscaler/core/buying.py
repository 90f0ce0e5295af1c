"""Which wakes are worth having: idle times bought from the recorded gaps. Pure; `core/adaptive.py` says what for.

For each idle time the gaps say how many wakes it makes and how many joules it saves. Going from a long idle time to a
shorter one buys wakes; the steps are bought in the order of what they save per wake, over all cells, until enough is
saved, a wake is not worth a user's waiting any more, or there are too many.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import itemgetter

from memscaler.core.costs import Costs

SHORTEST_S = 1.0  # no idle time is shorter: a driver is not to be called for the pause between two requests
LONGEST_S = 3600.0
FIRST_S = 0.25
FINE_S = 32.0
EDGES_S = (
    FIRST_S,
    *(2 ** (number / 8) for number in range(40)),
    *(FINE_S * 2 ** (number / 2) for number in range(33)),
)
"""Where the bins of gaps begin: the first holds what is too short for a timer, from FINE_S to 24 days they are wide."""
BINS = len(EDGES_S)
FIRST_TIMER = EDGES_S.index(SHORTEST_S)
LAST_TIMER = next(number for number, edge_s in enumerate(EDGES_S) if edge_s >= LONGEST_S)
Cell = int


@dataclass(frozen=True, slots=True)
class Gaps:
    """Gaps by their length, recent ones with more weight. sums_s: their lengths, weighed alike."""

    counts: tuple[float, ...] = (0.0,) * BINS
    sums_s: tuple[float, ...] = (0.0,) * BINS
    weight: float = 0.0

    def plus(self, number: int, gap_s: float, weight: float) -> Gaps:
        """With one gap more."""
        counts, sums_s, after = self.counts, self.sums_s, number + 1
        return Gaps(
            (*counts[:number], counts[number] + weight, *counts[after:]),
            (*sums_s[:number], sums_s[number] + weight * gap_s, *sums_s[after:]),
            self.weight + weight,
        )

    def median_s(self, beyond_s: float) -> float:
        """Of the gaps that lasted longer, to the accuracy of the bins; 0 if there are none."""
        first = bisect_right(EDGES_S, beyond_s) - 1
        half = sum(self.counts[first:]) / 2
        for number in range(first, BINS) if half else ():
            half -= self.counts[number]
            if half <= 0:
                return self.sums_s[number] / self.counts[number]
        return 0.0

    def times(self, factor: float) -> Gaps:
        """All weights alike."""
        return Gaps(
            tuple(count * factor for count in self.counts),
            tuple(sum_s * factor for sum_s in self.sums_s),
            self.weight * factor,
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """Cell -> the number of the edge that is its idle time. worth_j: what the last wake that was bought saves."""

    timers: Mapping[Cell, int] = field(default_factory=dict)
    worth_j: float = 0.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to buy for. share: of what could be saved; waiting_j: what a wake must be worth at least.

    pull: the weight of the gaps of the whole that are mixed into each cell, for cells of which little is known.
    """

    share: float
    waiting_j: float
    break_even_s: float
    most_wakes: float
    pull: float


Offer = tuple[float, Cell, int, int]  # joules per wake, of a cell, from one timer to a shorter one
Offered = tuple[list[float], list[float], float]  # wakes and joules saved by timer, and what could be saved


def buy(cells: Mapping[Cell, Gaps], whole: Gaps, wanted: Wanted, costs: Costs) -> Plan:
    """The idle times of gaps that are parted into cells. whole: all of them; pull: see Wanted."""
    pull = wanted.pull if len(cells) > 1 else 0.0
    offered = {cell: _offered(gaps, whole, pull, costs) for cell, gaps in cells.items()}
    timers = {cell: _long_timer(mine[0], mine[1], wanted) for cell, mine in offered.items()}
    wakes = sum(offered[cell][0][timer] for cell, timer in timers.items())
    joules = sum(offered[cell][1][timer] for cell, timer in timers.items())
    enough_j = wanted.share * sum(possible_j for _, _, possible_j in offered.values())
    worth_j = wanted.waiting_j
    offers = [offer for cell, timer in timers.items() for offer in _hull(cell, timer, *offered[cell][:2])]
    for each_j, cell, of, until in sorted(offers, key=itemgetter(0), reverse=True):
        if joules >= enough_j or each_j < wanted.waiting_j:
            break
        mine, saved, _ = offered[cell]
        to = _as_far_as(of, until, mine, saved, wanted.most_wakes - wakes, enough_j - joules)
        timers[cell] = to
        wakes, joules = wakes + mine[to] - mine[of], joules + saved[to] - saved[of]
        worth_j = each_j
        if to != until:
            break
    return Plan(timers, worth_j)


def _as_far_as(  # all that it depends on
    of: int, until: int, wakes: Sequence[float], saved: Sequence[float], most: float, enough_j: float
) -> int:
    """The timer within an offer at which enough is saved, or the last one that does not make too many wakes."""
    to = of
    for number in range(of - 1, until - 1, -1):
        if wakes[number] - wakes[of] > most:
            break
        to = number
        if saved[number] - saved[of] >= enough_j:
            break
    return to


def _long_timer(wakes: Sequence[float], saved: Sequence[float], wanted: Wanted) -> int:
    """From the break-even timer on the one that would have cost least, a user's waiting included."""
    floor, waiting_j = bisect_right(EDGES_S, wanted.break_even_s) - 1, wanted.waiting_j
    worth_j = [saved[number] - waiting_j * wakes[number] for number in range(floor, LAST_TIMER + 1)]
    return floor + worth_j.index(max(worth_j))


def _offered(gaps: Gaps, whole: Gaps, pull: float, costs: Costs) -> Offered:
    """What the timers make of a cell's gaps. pull: so many gaps of the whole are mixed in; the weight stays.

    Lists without a function call in between: all plans are made on the loop's thread.
    """
    spared_w, switch_j = costs.spared_w, costs.switch_j
    counts: Sequence[float] = gaps.counts
    sums_s: Sequence[float] = gaps.sums_s
    if pull:
        mine = gaps.weight / (gaps.weight + pull)
        other = mine * pull / whole.weight
        counts = [mine * few + other * many for few, many in zip(counts, whole.counts, strict=True)]
        sums_s = [mine * few + other * many for few, many in zip(sums_s, whole.sums_s, strict=True)]
    wakes, totals_s = list(accumulate(reversed(counts))), list(accumulate(reversed(sums_s)))
    wakes.reverse()
    totals_s.reverse()
    saved = [
        spared_w * total_s - (spared_w * edge_s + switch_j) * total
        for total_s, edge_s, total in zip(totals_s, EDGES_S, wakes, strict=True)
    ]
    possible = [spared_w * sum_s - switch_j * count for sum_s, count in zip(sums_s, counts, strict=True)]
    return wakes, saved, sum(more_j for more_j in possible if more_j > 0)


def _hull(cell: Cell, timer: int, wakes: Sequence[float], saved: Sequence[float]) -> list[Offer]:
    """Steps from a timer to shorter ones, each worth less per wake than the one before."""
    steps: list[tuple[float, float, int, int]] = []  # joules, wakes, from, to
    for number in range(timer - 1, FIRST_TIMER - 1, -1):
        of, joules, more = number + 1, saved[number] - saved[number + 1], wakes[number] - wakes[number + 1]
        while steps and joules * steps[-1][1] >= steps[-1][0] * more:
            last_j, last, of, _ = steps.pop()
            joules, more = joules + last_j, more + last
        steps.append((joules, more, of, number))
    return [(joules / more, cell, of, to) for joules, more, of, to in steps if more > 0]
