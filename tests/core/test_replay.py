"""The governor in simulated time: as the model of costs says, and true to its promises."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memscaler.core import adaptive
from memscaler.core.adaptive import Limits
from memscaler.core.costs import Costs, with_timer
from memscaler.core.model import GpuPolicy
from memscaler.core.replay import Work, idle_after, replay

A40 = Costs(80.0, 18.0, 0.3, 0.3, 19.0, "measured")

# In whole milliseconds: a gap as long as the idle time to the last digit is a park or none, as floats are rounded.
milliseconds = st.integers(1, 100_000).map(lambda number: number / 1000)
works = st.lists(st.tuples(milliseconds, milliseconds), min_size=1, max_size=20)


def busy(parts: list[tuple[float, float]]) -> list[Work]:
    """From (gap before it, length) of each piece of work."""
    found, at_ms = [], 0
    for gap_s, work_s in parts:
        begin_ms = at_ms + round(gap_s * 1000)
        at_ms = begin_ms + round(work_s * 1000)
        found.append((begin_ms / 1000, at_ms / 1000))
    return found


def gaps_of(work: list[Work]) -> list[tuple[float, float]]:
    return [(end_s, round(begin_s - end_s, 3)) for (_, end_s), (begin_s, _) in pairwise(work)]


@given(parts=works, idle_ms=st.integers(1, 120_000))
def test_a_timer_is_what_the_model_says(parts, idle_ms):
    """Wakes, parked time, saving: the same from the governor and from core/costs.py. Never down beside work."""
    work = busy(parts)
    done = replay(work, idle_after(idle_ms / 1000), A40)
    told = with_timer([gap_s for _, gap_s in gaps_of(work)], idle_ms / 1000, A40)
    assert done.unserved == 0
    assert (done.outcome.gaps, done.outcome.wakes) == (told.gaps, told.wakes)
    assert done.outcome.parked_s == pytest.approx(told.parked_s, abs=1e-5)
    assert done.outcome.saved_j == pytest.approx(told.saved_j, abs=1e-3)
    assert done.outcome.quiet_s == pytest.approx(told.quiet_s, abs=1e-5)
    assert done.outcome.slowed_s == told.slowed_s


@given(parts=works, idle_ms=st.integers(1, 20_000), dwell_ms=st.integers(0, 200_000))
def test_the_dwell_is_kept(parts, idle_ms, dwell_ms):
    """Parks are as far apart as min_dwell says, each within a gap and no earlier than its idle time."""
    work = busy(parts)
    done = replay(work, idle_after(idle_ms / 1000, dwell_ms / 1000), A40)
    for (first_s, _), (second_s, _) in pairwise(done.parks):
        assert second_s - first_s >= dwell_ms / 1000 - 1e-6
    for at_s, until_s in done.parks:
        (gap,) = [each for each in gaps_of(work) if each[0] <= at_s < sum(each) + 1e-6]
        assert at_s - gap[0] >= idle_ms / 1000 - 1e-6
        assert until_s == pytest.approx(sum(gap))
    assert done.unserved == 0


@given(parts=works, seed=st.integers(0, 1000))
def test_an_idle_time_that_changes(parts, seed):
    """Another timer for each gap, at random: still never down beside work, and each gap goes by its own."""
    work, chance = busy(parts), random.Random(seed)
    timers = [5.0]

    def decide(_start_s: float, _gap_s: float) -> GpuPolicy:
        timers.append(chance.choice([0.1, 1.0, 5.0, 30.0, 200.0]))
        return idle_after(timers[-1])

    done = replay(work, idle_after(timers[0]), A40, decide)
    assert done.unserved == 0
    wanted = [gap_s > timer_s for (_, gap_s), timer_s in zip(gaps_of(work), timers, strict=False)]
    assert len(done.parks) == sum(wanted)


@given(parts=works, per_hour=st.sampled_from([4.0, 120.0]))
def test_auto_is_what_the_report_computes(parts, per_hour):
    """`adaptive.replay`, without a governor, gives what the governor does."""
    work, limits = busy(parts), Limits(wakes_per_hour=per_hour)
    known = adaptive.begin(A40, limits, gaps_of(work)[0][0]) if len(work) > 1 else adaptive.begin(A40, limits)

    def decide(start_s: float, gap_s: float) -> GpuPolicy:
        nonlocal known
        known = adaptive.learn(known, start_s, gap_s, A40, limits)
        return idle_after(known.decision.idle_after_s, known.decision.min_dwell_s)

    done = replay(work, idle_after(known.decision.idle_after_s, known.decision.min_dwell_s), A40, decide)
    told = adaptive.replay(gaps_of(work), A40, limits)
    assert (done.outcome.gaps, done.outcome.wakes) == (told.gaps, told.wakes)
    assert done.outcome.saved_j == pytest.approx(told.saved_j, abs=0.01)
