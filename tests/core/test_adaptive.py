"""The idle time that adapts: its promise for any gaps, its bound of wakes, what it learns, and what it says."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memscaler.core import adaptive
from memscaler.core.adaptive import ALL, DEBT_WAKES, WARM_GAPS, Limits, begin, break_even_s, learn, price_j
from memscaler.core.buying import BINS, EDGES_S, LONGEST_S, SHORTEST_S
from memscaler.core.costs import ASSUMED, Costs, offline, with_timer

A40 = Costs(80.0, 18.0, 0.3, 0.3, 19.0, "measured")
DAY_S = 86400.0

some_costs = st.builds(
    Costs,
    awake_w=st.floats(20, 200),
    parked_w=st.floats(5, 60),
    settle_s=st.just(0.3),
    slow_s=st.floats(0, 3),
    switch_j=st.floats(0, 300),
    source=st.just("measured"),
)
some_limits = st.builds(Limits, wait_price_w=st.floats(0, 5000), wakes_per_hour=st.integers(4, 600).map(float))
some_gaps = st.lists(
    st.tuples(st.floats(0, 300), st.one_of(st.floats(0.25, 30), st.floats(0.25, 3 * DAY_S))), max_size=50
)


def paid_j(gap_s: float, idle_after_s: float, costs: Costs, limits: Limits) -> float:
    """What a gap costs under a timer, a user's waiting included."""
    if gap_s <= idle_after_s:
        return costs.spared_w * gap_s
    return costs.spared_w * idle_after_s + price_j(costs, limits)


def least_j(gap_s: float, costs: Costs, limits: Limits) -> float:
    """What it costs who knows its length."""
    return min(costs.spared_w * gap_s, price_j(costs, limits))


class Bill:
    """What auto paid, what the break-even timer would have, and the least possible; each in prices of its time."""

    def __init__(self, costs: Costs, limits: Limits) -> None:
        self.known = begin(costs, limits)
        self.mine = self.timer = self.least = 0.0
        self.doubled = True

    def gap(self, gap_s: float, costs: Costs, limits: Limits, start_s: float) -> None:
        price, timer_s = price_j(costs, limits), break_even_s(costs, limits)
        self.mine += paid_j(gap_s, self.known.decision.idle_after_s, costs, limits) / price
        self.timer += paid_j(gap_s, timer_s, costs, limits) / price
        self.least += least_j(gap_s, costs, limits) / price
        self.known = learn(self.known, start_s, gap_s, costs, limits)


@given(gaps=some_gaps, costs=some_costs, limits=some_limits)
def test_never_much_worse_than_break_even(gaps, costs, limits):
    """For any gaps: at most 24 wakes dearer than the break-even timer, and so at most twice the best and those."""
    bill, at_s = Bill(costs, limits), 0.0
    for busy_s, gap_s in gaps:
        bill.gap(gap_s, costs, limits, at_s + busy_s)
        at_s += busy_s + gap_s
        assert bill.mine <= bill.timer + DEBT_WAKES + 1e-6
        if SHORTEST_S < break_even_s(costs, limits) < LONGEST_S:
            assert bill.mine <= 2 * bill.least + DEBT_WAKES + 1e-6


@given(turns=st.lists(st.sampled_from([0.999, 1.001, 5.0, 400.0]), min_size=20, max_size=30), limits=some_limits)
def test_an_enemy_who_knows_the_idle_time(turns, limits):
    """Gaps that end just before or right after the park, whatever it has come to: the bound holds, over any span."""
    bill, at_s = Bill(A40, limits), 0.0
    spans = [0.0]
    for turn in turns:
        gap_s = max(0.25, turn * bill.known.decision.idle_after_s)
        bill.gap(gap_s, A40, limits, at_s + 1)
        at_s += gap_s + 1
        spans.append(bill.mine - bill.timer)
        assert bill.mine <= bill.timer + DEBT_WAKES + 1e-6
        assert spans[-1] - min(spans) <= 2 * DEBT_WAKES + 1e-6


@given(changes=st.lists(st.tuples(st.floats(0.25, 2000), some_costs), max_size=30), limits=some_limits)
def test_when_the_costs_change(changes, limits):
    """Each gap counts with the price of its time; an idle time that was chosen before is judged with it."""
    costs = A40
    bill, at_s, worst = Bill(A40, limits), 0.0, 0.0
    for gap_s, after in changes:
        bill.gap(gap_s, costs, limits, at_s)
        worst = max(worst, bill.mine - bill.timer)
        at_s += gap_s
        costs = after
        bill.known = adaptive.decide(bill.known, costs, limits, at_s)
    assert worst <= DEBT_WAKES + 1e-6


@given(gaps=some_gaps, costs=some_costs, limits=some_limits)
def test_no_hour_has_more_wakes_than_allowed(gaps, costs, limits):
    """Parks in any hour are within the limit, and the dwell is kept."""
    known, at_s = begin(costs, limits), 0.0
    parks: list[float] = []
    for busy_s, gap_s in gaps:
        start_s = at_s + busy_s
        park_s = adaptive.park_at_s(known, start_s)
        if park_s < start_s + gap_s:
            assert not parks or park_s - parks[-1] >= limits.min_dwell_s - 1e-6
            parks.append(park_s)
        known = learn(known, start_s, gap_s, costs, limits)
        at_s = start_s + gap_s
    for number, park_s in enumerate(parks):
        within = sum(1 for later_s in parks[number:] if later_s <= park_s + 3599)
        assert within <= limits.wakes_per_hour


@given(gaps=some_gaps, costs=some_costs, limits=some_limits)
def test_idle_times_are_sane(gaps, costs, limits):
    """Whatever comes: from a second to some hours, and what is remembered does not grow."""
    known, at_s = begin(costs, limits), 0.0
    for busy_s, gap_s in gaps:
        known = learn(known, at_s + busy_s, gap_s, costs, limits)
        at_s += busy_s + gap_s
        decision = known.decision
        assert SHORTEST_S <= decision.idle_after_s <= EDGES_S[-1]
        assert limits.min_dwell_s <= decision.min_dwell_s <= 3600 + limits.min_dwell_s
        assert sum(map(len, known.cells)) <= 30
        assert all(len(mine.counts) == BINS for cells in known.cells for mine in cells.values())
        assert adaptive.why(known, limits)


def regular(chance: random.Random, mean_s: float, count: int) -> list[tuple[float, float]]:
    """Gaps without memory."""
    found, at_s = [], 0.0
    for _ in range(count):
        gap_s = max(0.25, chance.expovariate(1 / mean_s))
        found.append((at_s, gap_s))
        at_s += gap_s + 20
    return found


@pytest.mark.parametrize("mean_s", [120, 300, 3600])
def test_it_saves_nearly_everything_with_fewer_wakes_than_five_seconds(mean_s):
    """Where a timer can: 95 % of what is possible."""
    gaps = regular(random.Random(mean_s), mean_s, 600)
    mine = adaptive.replay(gaps, A40)
    lengths_s = [gap_s for _, gap_s in gaps]
    assert mine.saved_j >= 0.95 * offline(lengths_s, A40).saved_j
    assert mine.wakes < with_timer(lengths_s, 5, A40).wakes


def test_it_waits_through_bursts():
    """Gaps of 6.5 s come in dozens, too short for what a wake is worth: it waits longer, and parks in the long ones."""
    gaps, at_s = [], 0.0
    for number in range(600):
        gap_s = 1800.0 if number % 12 == 11 else 6.5
        gaps.append((at_s, gap_s))
        at_s += gap_s + 10
    mine, timer = adaptive.replay(gaps, A40), with_timer([gap_s for _, gap_s in gaps], 5, A40)
    assert mine.wakes < timer.wakes / 4
    assert mine.saved_j > 0.95 * timer.saved_j


def test_it_forgets_what_was():
    """From bursts to long gaps only: after a while it goes by the new ones."""
    limits, known, at_s = Limits(), begin(A40, Limits()), 0.0
    for gap_s in [9.0] * 200 + [900.0] * 400:
        known = learn(known, at_s, gap_s, A40, limits)
        at_s += gap_s + 10
    assert known.decision.idle_after_s <= break_even_s(A40, limits)


def test_what_it_says():
    """Nothing known; some gaps; the figures of the data; the limit."""
    limits = Limits()
    known = begin(A40, limits)
    assert adaptive.why(known, limits) == "nothing known yet, break-even with the price of waiting"
    assert known.decision.idle_after_s == pytest.approx(379 / 62)
    known = learn(known, 0.0, 600.0, A40, limits)
    assert adaptive.why(known, limits) == "one gap known yet, break-even with the price of waiting"
    at_s = 1000.0
    for _ in range(WARM_GAPS):
        known = learn(known, at_s, 600.0, A40, limits)
        at_s += 700
    assert known.decision.by == ALL
    assert adaptive.why(known, limits) == "gaps longer than 6.1 s last 10 min in the median"
    few = replace(limits, wakes_per_hour=4.0)
    known = begin(A40, few)
    for number in range(3):
        known = learn(known, 20.0 * number, 15.0, A40, few)
    assert adaptive.why(known, few) == "4 wakes an hour are used up"
    assert known.decision.min_dwell_s > 1000


def test_a_card_that_gains_nothing():
    """A park that spares nothing is not worth a wake: an hour at least."""
    useless = replace(A40, awake_w=18.0)
    assert begin(useless, Limits()).decision.idle_after_s == LONGEST_S
    assert adaptive.replay([(0.0, 1000.0), (2000.0, 1000.0)], useless).wakes == 0


def test_the_assumed_costs_are_a_few_seconds():
    """A GPU of which nothing is known begins with a timer that users would choose."""
    assert 5 < break_even_s(ASSUMED, Limits()) < 10


def test_recent_gaps_weigh_more():
    """Also beyond the point where the weights are scaled down."""
    limits, known, at_s = Limits(), begin(A40, Limits()), 0.0
    for _ in range(300):
        known = learn(known, at_s, 10.0, A40, limits)
        at_s += 20
    before = known
    known = replace(known, unit=2.0**20)
    known = learn(known, at_s, 1000.0, A40, limits)
    assert known.unit == 1.0
    whole = known.cells[ALL][0]
    assert whole.median_s(SHORTEST_S) == pytest.approx(1000.0)
    assert before.cells[ALL][0].median_s(SHORTEST_S) == pytest.approx(10.0)


@pytest.mark.parametrize("jump_s", [-3e7, -4000.0, 3e7])
def test_a_clock_that_jumps(jump_s):
    """Back to 1970, an hour, or on by a year: idle times and dwells stay sane, and the limit is not lifted for long."""
    limits, known, parks = Limits(), begin(A40, Limits()), []
    for number in range(400):
        start_s = 4e7 + 30.0 * number + (jump_s if number >= 200 else 0.0)
        known = learn(known, start_s, 15.0, A40, limits)
        parks.append(start_s < known.parked_s < start_s + 15)
        assert SHORTEST_S <= known.decision.idle_after_s <= LONGEST_S
        assert limits.min_dwell_s <= known.decision.min_dwell_s <= 3600
    assert sum(parks[280:]) <= limits.wakes_per_hour
    assert any(parks[280:])
