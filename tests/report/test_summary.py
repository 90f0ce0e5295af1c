"""The sums: what goes in comes out, nothing is made up, and nothing that is unknown is zero."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memscaler.core import summary
from memscaler.core.costs import ASSUMED
from memscaler.core.summary import Day
from memscaler.history.tables import STATES, Hour

DAYS = [Day(f"day{at}", at * 86400.0, (at + 1) * 86400.0) for at in range(1, 4)]
JOULES = st.floats(0, 1e9)


@dataclass(frozen=True)
class Parked:
    """As much of a park as counts here."""

    at_unix_s: float = 0.0
    until_unix_s: float | None = 100.0
    idle_s: float = 60.0
    latency_s: float | None = None
    baseline_w: float | None = None


@st.composite
def hours(draw):
    """Any hours of the days around DAYS, each at most once."""
    found = []
    for number in draw(st.lists(st.integers(0, 5 * 24), unique=True, max_size=40)):
        cuts = sorted(draw(st.lists(st.floats(0, 3600), min_size=5, max_size=5)))
        spent = [after - before for before, after in zip([0.0, *cuts], cuts, strict=False)]
        joules = draw(st.lists(JOULES, min_size=5, max_size=5))
        energy_j = draw(st.none() | st.just(sum(joules)))
        figures = draw(st.tuples(st.floats(-1e6, 1e9), st.floats(0, 3600), st.integers(0, 99), st.integers(0, 99)))
        of_states = (dict(zip(STATES, values, strict=True)) for values in (spent, joules))
        found.append(Hour(number * 3600.0, *of_states, energy_j, *figures))
    return found


@given(hours())
def test_days_sum_up_to_the_hours(recorded):
    """Each hour is in one day; those outside of the days are in none."""
    days = summary.per_day(recorded, DAYS, 0.0, 5 * 86400.0)
    inside = summary.add(hour for hour in recorded if DAYS[0].start_unix_s <= hour.start_unix_s < DAYS[-1].end_unix_s)
    total = summary.add(days)
    for attribute in ("energy_j", "saved_j", "unknown_s", "parks", "wakes"):
        assert getattr(total, attribute) == pytest.approx(getattr(inside, attribute)), attribute
    for state in STATES:
        assert total.state_s[state] == pytest.approx(inside.state_s[state])
        assert total.state_energy_j[state] == pytest.approx(inside.state_energy_j[state])


@given(hours())
def test_a_day_is_recorded_or_not(recorded):
    """Known and unknown time make up the day; ratios stay between 0 and 1."""
    for sums in summary.per_day(recorded, DAYS, 0.0, 5 * 86400.0):
        assert sums.recorded_s + sums.unrecorded_s == pytest.approx(86400.0)
        assert sums.parked_ratio is None or 0 <= sums.parked_ratio <= 1 + 1e-12


def test_nothing_is_missing_before_the_first_and_after_the_last_record():
    """A GPU that came at noon has a day of twelve hours."""
    days = summary.per_day([], DAYS, DAYS[0].start_unix_s + 43200, DAYS[1].start_unix_s + 3600)
    assert [sums.unrecorded_s for sums in days] == [43200, 3600, 0]


def test_days_that_begin_at_half_past():
    """Where the zone is half an hour off, hours belong to the day in which they begin, and none is missed."""
    half = [Day(day.name, day.start_unix_s + 1800, day.end_unix_s + 1800) for day in DAYS]
    full = dict.fromkeys(STATES, 0.0) | {"awake": 3600.0}
    recorded = [Hour(at * 3600.0, full, full, 3600.0, 0.0, 0.0, 0, 0) for at in range(5 * 24)]
    days = summary.per_day(recorded, half, 0.0, 5 * 86400.0)
    assert [(sums.recorded_s, sums.unrecorded_s) for sums in days] == [(86400, 0)] * 3


def test_nothing_known_is_not_zero():
    """Without any hour the energy is unknown, as are ratio, latency and watts."""
    (sums,) = summary.per_day([], DAYS[:1], 0.0, 9e9)
    assert (sums.energy_j, sums.parked_ratio, sums.unrecorded_s) == (None, None, 86400)
    assert summary.latency([Parked()]) is None
    assert summary.observed_costs([], None) is ASSUMED
    assert summary.ground([], 0.0, 0.0).margin_j == 0


@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=300))
def test_latency_is_one_that_occurred(latencies_s):
    """Median, 99th percentile and worst are measured values, in this order."""
    found = summary.latency(Parked(latency_s=latency_s) for latency_s in latencies_s)
    assert found.median_s <= found.p99_s <= found.worst_s == max(latencies_s)
    assert {found.median_s, found.p99_s} <= {*latencies_s}
    assert sum(each <= found.p99_s for each in latencies_s) >= 0.99 * len(latencies_s)
    assert sum(each < found.median_s for each in latencies_s) <= len(latencies_s) / 2


def test_the_margin_has_the_spread_and_the_sensor():
    """Baselines of 78 to 82 W over 1000 s: 2 W * 1000 s, and 5 % of what was saved."""
    parks = [Parked(0, 250, baseline_w=watts) for watts in (78.0, 78.0, 82.0, 82.0)] + [Parked(0, 9999)]
    found = summary.ground(parks, 60_000.0, 0.0)
    assert (found.parks, found.based, found.low_w, found.high_w) == (5, 4, 78.0, 82.0)
    assert found.margin_j == pytest.approx(2000 + 3000)


def test_only_the_last_park_can_last():
    """Of one before it that has no end nobody knows how long it was: it adds nothing."""
    spread = [Parked(0, 0, baseline_w=10.0), Parked(0, 0, baseline_w=30.0)]
    lost, lasting = Parked(1000, None, baseline_w=20.0), Parked(5000, None, baseline_w=20.0)
    assert summary.ground([*spread, lost, lasting], 0.0, 5100.0).margin_j == pytest.approx((20 - 10) / 2 * 100)


def test_watts_are_observed_where_they_are_known():
    """From hours with known energy only; the baseline goes before the watts while cooling."""
    spent = dict.fromkeys(STATES, 0.0) | {"cooling": 1200.0, "parked": 2400.0}
    joules = dict.fromkeys(STATES, 0.0) | {"cooling": 1200 * 90.0, "parked": 2400 * 20.0}
    known = Hour(0.0, spent, joules, sum(joules.values()), 0.0, 0.0, 1, 1)
    unsure = Hour(3600.0, spent, {state: 9 * each for state, each in joules.items()}, 1.0, 0.0, 50.0, 1, 1)
    found = summary.observed_costs([known, unsure], None)
    assert (found.awake_w, found.parked_w, found.source) == (90.0, 20.0, "observed")
    assert summary.observed_costs([known], 80.0).awake_w == 80.0
