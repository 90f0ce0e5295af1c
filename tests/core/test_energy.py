"""The energy account: nothing invented, nothing lost, and no saving beyond what was measured."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memscaler.core.energy import (
    BEFORE,
    CALIBRATED,
    EARLIER,
    GAP_NS,
    Account,
    calibrate,
    observe_reading,
    observe_state,
    open_account,
)
from memscaler.core.model import SECOND_NS, Public
from memscaler.core.snapshot import GpuReading

START_NS = 5 * SECOND_NS
FIGURES = st.one_of(st.none(), st.floats(0, 500), st.sampled_from([-1.0, float("nan"), float("inf")]))
READINGS = st.builds(
    GpuReading,
    at_ns=st.integers(-SECOND_NS, 100 * SECOND_NS),
    power_w=FIGURES,
    energy_j=st.one_of(st.none(), st.floats(0, 1e6), st.just(float("nan"))),
    utilization_ratio=st.sampled_from([None, 0.0, 0.0, 0.5]),
)
STATES = st.tuples(st.sampled_from(Public), st.integers(-SECOND_NS, 100 * SECOND_NS))
Event = GpuReading | tuple[Public, int] | float | None  # a figure: it was calibrated anew
EVENTS = st.lists(st.one_of(READINGS, STATES, FIGURES), max_size=40)


def reading(at_s: float, power_w: float | None = None, energy_j: float | None = None, busy: float = 0.0) -> GpuReading:
    return GpuReading(START_NS + round(at_s * SECOND_NS), power_w, energy_j, utilization_ratio=busy)


def at(seconds: float) -> int:
    return START_NS + round(seconds * SECOND_NS)


def parked_at_80_w(with_counter: bool = False) -> Account:
    """A GPU that drew 80 W while cooling, parked 30 s after the account was opened."""
    account = open_account(Public.COOLING, START_NS)
    for at_s in (0, 15, 30):
        account = observe_reading(account, reading(at_s, 80.0, 80.0 * at_s if with_counter else None))
    account = observe_state(account, Public.PARKED, at(30))
    return observe_reading(account, reading(30, 18.0, 2400.0 if with_counter else None))


def replay(events: list[Event], calibrated_w: float | None = None) -> list[Account]:
    """Every account on the way; the times of the events are offsets from the time before."""
    accounts = [open_account(Public.COOLING, START_NS, calibrated_w)]
    for event in events:
        account = accounts[-1]
        if event is None or isinstance(event, float):
            accounts.append(calibrate(account, event))
        elif isinstance(event, GpuReading):
            moved = GpuReading(
                account.at_ns + event.at_ns, event.power_w, event.energy_j, utilization_ratio=event.utilization_ratio
            )
            accounts.append(observe_reading(account, moved))
        else:
            accounts.append(observe_state(account, event[0], account.at_ns + event[1]))
    return accounts


@given(EVENTS)
def test_seconds_add_up(events: list[Event]) -> None:
    """The seconds of all states are the time that passed, to the nanosecond; the unknown ones are among them."""
    for account in replay(events):
        assert sum(account.state_ns.values()) == account.at_ns - START_NS
        assert 0 <= account.unknown_ns + sum(account.unsampled_ns.values()) <= account.at_ns - START_NS
        assert sum(account.state_s.values()) == pytest.approx((account.at_ns - START_NS) / SECOND_NS)


@given(EVENTS)
def test_joules_add_up_and_never_fall(events: list[Event]) -> None:
    """The joules of all states are the joules spent; no figure that becomes a counter ever falls."""
    accounts = replay(events)
    for account in accounts:
        assert sum(account.state_energy_j.values()) == pytest.approx(account.energy_j or 0.0)
        assert (account.energy_j is None) == (account.source == "")
    for before, after in pairwise(accounts):
        assert (after.energy_j or 0.0) >= (before.energy_j or 0.0)
        assert after.saved_j >= before.saved_j
        assert after.unknown_ns >= before.unknown_ns
        assert all(after.state_energy_j[state] >= joules for state, joules in before.state_energy_j.items())
        assert all(after.state_ns[state] >= spent_ns for state, spent_ns in before.state_ns.items())


@given(EVENTS)
def test_no_saving_beyond_the_baseline(events: list[Event]) -> None:
    """No park saves more than its baseline for as long as it lasted, and one without a baseline saves nothing."""
    most_j = 0.0
    accounts = replay(events)
    for before, after in pairwise(accounts):
        passed_ns = after.state_ns["parked"] - before.state_ns["parked"]
        most_j += (before.baseline_w or 0.0) * passed_ns / SECOND_NS
        slack_j = 1e-9 * (most_j + (after.energy_j or 0.0) + 1.0)
        assert 0.0 <= after.saved_j <= most_j + slack_j
        assert after.net_saved_j <= after.saved_j + slack_j


@given(EVENTS, FIGURES)
def test_whence_a_baseline_is(events: list[Event], calibrated_w: float | None) -> None:
    """The nearest that there is, named; and it does not change while the park lasts."""
    known, earlier_w, calibrated_now_w = replay(events, calibrated_w), None, calibrated_w
    for event, before, after in zip(events, known, known[1:], strict=False):
        if event is None or isinstance(event, float):
            calibrated_now_w = event
        if after.baseline_w == before.baseline_w and after.baseline_source == before.baseline_source:
            continue
        assert before.state is not Public.PARKED
        assert after.state is Public.PARKED
        assert (after.baseline_w is None) == (after.baseline_source == "")
        if after.baseline_source == BEFORE:
            assert before.state is Public.COOLING
            assert after.baseline_w in [power_w for _, power_w in before.candidates]
            earlier_w = after.baseline_w
        elif after.baseline_source == EARLIER:
            assert after.baseline_w == earlier_w is not None
        else:
            assert earlier_w is None
            sane = calibrated_now_w is not None and 0 <= calibrated_now_w < float("inf")
            assert after.baseline_w == (calibrated_now_w if sane else None)


@given(EVENTS)
def test_whatever_is_calibrated_the_energy_is_the_same(events: list[Event]) -> None:
    """What was drawn is not what could have been drawn."""
    plain, calibrated = replay(events)[-1], replay(events, 80.0)[-1]
    assert (plain.energy_j, plain.state_energy_j) == (calibrated.energy_j, calibrated.state_energy_j)


@given(st.integers(2, 20), st.floats(0, 400), st.floats(0.1, 59.0))
def test_constant_power_is_integrated_exactly(samples: int, power_w: float, every_s: float) -> None:
    """At constant power the integrated energy is power times time, however often it is sampled."""
    account = open_account(Public.AWAKE, START_NS)
    for index in range(samples):
        account = observe_reading(account, reading(index * every_s, power_w))
    assert account.source == "integrated"
    assert account.energy_j == pytest.approx(power_w * every_s * (samples - 1), abs=1e-6)


@pytest.mark.parametrize("with_counter", [True, False])
def test_a_park_saves_against_its_baseline(with_counter: bool) -> None:
    """80 W before, 18 W while parked for 100 s: 6200 J saved, in the account and in the counter."""
    account = parked_at_80_w(with_counter)
    for at_s in (55, 105, 130):
        account = observe_reading(account, reading(at_s, 18.0, 2400 + 18.0 * (at_s - 30) if with_counter else None))
    assert account.source == ("counter" if with_counter else "integrated")
    assert account.baseline_w == 80.0
    assert account.net_saved_j == pytest.approx(6200)
    assert account.saved_j == pytest.approx(6200)
    assert account.state_energy_j["parked"] == pytest.approx(1800)
    assert account.unknown_s == 0


def test_a_park_that_costs_shows_as_such() -> None:
    """A park that draws more than before makes the net saving negative; the counter stays where it was."""
    account = parked_at_80_w()
    account = observe_reading(account, reading(30, 90.0))
    account = observe_reading(account, reading(40, 90.0))
    assert account.net_saved_j == pytest.approx(-100)
    assert account.saved_j == 0
    account = observe_state(account, Public.AWAKE, at(40))
    account = observe_reading(account, reading(40, 80.0))
    account = observe_state(account, Public.COOLING, at(40))
    account = observe_reading(account, reading(42, 80.0))
    account = observe_state(account, Public.PARKED, at(42))
    account = observe_reading(account, reading(42, 20.0))
    account = observe_reading(account, reading(52, 20.0))
    assert account.net_saved_j == pytest.approx(500)
    assert account.saved_j == pytest.approx(600)


def test_the_baseline_is_the_middle_of_the_last_quiet_readings() -> None:
    """One odd reading does not make the baseline, and older ones are forgotten."""
    account = open_account(Public.COOLING, START_NS)
    for at_s, power_w, busy in ((2, 300.0, 0.0), (3, 81.0, 0.0), (4, 18.0, 0.0), (5, 80.0, 0.0)):
        account = observe_reading(account, reading(at_s, power_w, busy=busy))
    assert observe_state(account, Public.PARKED, at(6)).baseline_w == 80.0
    awake = observe_state(account, Public.AWAKE, at(5))
    cooling = observe_state(awake, Public.COOLING, at(6))
    assert observe_state(cooling, Public.PARKED, at(7)).baseline_w is None
    assert observe_state(awake, Public.PARKED, at(7)).baseline_w is None


def test_work_between_two_looks_is_no_baseline() -> None:
    """Work that came and went while the GPU was cooling, a touch for example, shows in the average of the second after."""
    account = open_account(Public.COOLING, START_NS)
    for at_s, power_w in ((2, 80.0), (3.8, 117.0), (4, 120.0)):
        account = observe_reading(account, reading(at_s, power_w))
    assert observe_state(account, Public.PARKED, at(4)).baseline_w == 117.0, "nobody has heard of any"
    told = observe_state(account, Public.PARKED, at(4), heard_ns=at(3.7))
    assert (told.baseline_w, told.baseline_source) == (None, "")
    account = observe_reading(account, reading(5.2, 80.0))
    assert observe_state(account, Public.PARKED, at(5.3), heard_ns=at(3.7)).baseline_w == 80.0


def test_the_echo_of_a_reading_under_load_is_no_baseline() -> None:
    """Somebody works without any connection that is watched; the second after that still shows it."""
    account = open_account(Public.COOLING, START_NS)
    for at_s, power_w, busy in ((2, 250.0, 0.9), (3, 140.0, 0.0), (3.4, 120.0, 0.0), (3.5, 80.0, 0.0)):
        account = observe_reading(account, reading(at_s, power_w, busy=busy))
    assert observe_state(account, Public.PARKED, at(4)).baseline_w == 80.0


def test_without_any_baseline_nothing_is_claimed() -> None:
    """A park without a quiet reading before it, ever, and without a calibration saves nothing that we know."""
    account = observe_state(open_account(Public.COOLING, START_NS), Public.PARKED, at(1))
    account = observe_reading(account, reading(1, 18.0))
    account = observe_reading(account, reading(11, 18.0))
    assert (account.baseline_w, account.saved_j, account.net_saved_j) == (None, 0.0, 0.0)


def test_a_long_gap_is_unknown_without_a_counter() -> None:
    """A gap beyond the limit is not integrated; a counter bridges it."""
    gap_s = GAP_NS / SECOND_NS + 1
    account = observe_reading(open_account(Public.AWAKE, START_NS), reading(0, 100.0))
    account = observe_reading(account, reading(gap_s, 100.0))
    assert account.energy_j is None
    assert account.unknown_s == pytest.approx(gap_s)
    account = observe_reading(open_account(Public.AWAKE, START_NS), reading(0, 100.0, 10.0))
    account = observe_reading(account, reading(gap_s, 100.0, 5010.0))
    assert account.energy_j == pytest.approx(5000)
    assert account.unknown_s == 0


def test_a_counter_that_goes_backwards() -> None:
    """After a driver reload the power readings fill in; without them the interval is unknown; then it counts on."""
    account = observe_reading(open_account(Public.AWAKE, START_NS), reading(0, 100.0, 9000.0))
    account = observe_reading(account, reading(10, 100.0, 5.0))
    assert account.energy_j == pytest.approx(1000)
    assert account.source == "integrated"
    account = observe_reading(account, reading(20, None, 1005.0))
    assert account.energy_j == pytest.approx(2000)
    assert account.source == "counter"
    account = observe_reading(account, reading(30, None, 1.0))
    assert account.energy_j == pytest.approx(2000)
    assert account.unknown_s == pytest.approx(10)


def test_a_failed_reading_does_not_break_the_counter() -> None:
    """A sample that tells nothing is skipped: the next one continues from the last that told something."""
    account = observe_reading(open_account(Public.AWAKE, START_NS), reading(0, None, 100.0))
    account = observe_reading(account, reading(10))
    account = observe_reading(account, reading(20, None, 900.0))
    assert account.energy_j == pytest.approx(800)


def test_time_never_runs_backwards() -> None:
    """A state or a reading older than the account takes no time away."""
    account = observe_state(open_account(Public.AWAKE, START_NS), Public.COOLING, at(10))
    account = observe_state(account, Public.AWAKE, at(4))
    account = observe_reading(account, reading(3, 50.0))
    assert account.at_ns == at(10)
    assert account.last is not None
    assert account.last.at_ns == at(10)
    assert account.state is Public.AWAKE


def test_the_echo_of_work_is_no_baseline() -> None:
    """A reading right after the last client, which still shows the work, does not become the baseline."""
    account = observe_state(open_account(Public.AWAKE, START_NS), Public.COOLING, at(10))
    early = observe_reading(account, reading(11, 300.0))
    assert observe_state(early, Public.PARKED, at(13), heard_ns=at(10)).baseline_w is None
    later = observe_reading(early, reading(12, 80.0))
    assert observe_state(later, Public.PARKED, at(13), heard_ns=at(10)).baseline_w == 80.0
    assert observe_state(early, Public.PARKED, at(13), heard_ns=at(9)).baseline_w == 300.0, "noticed late: quiet before"


def test_the_echo_of_a_park_is_no_baseline() -> None:
    """Nor does one that still shows how little it drew parked."""
    account = observe_state(parked_at_80_w(), Public.COOLING, at(40))
    account = observe_reading(account, reading(41, 30.0))
    again = observe_state(account, Public.PARKED, at(42))
    assert (again.baseline_w, again.baseline_source) == (80.0, EARLIER)
    account = observe_reading(account, reading(41.5, 79.0))
    assert observe_state(account, Public.PARKED, at(42)).baseline_w == 79.0


@pytest.mark.parametrize("with_counter", [True, False])
def test_a_park_does_not_pay_for_the_work_after_it(with_counter: bool) -> None:
    """The first reading after the wake, under load, does not raise the energy of a park on a card without a counter."""
    account = parked_at_80_w(with_counter)
    account = observe_state(account, Public.AWAKE, at(40))
    account = observe_reading(account, reading(50, 218.0, 2400 + 2360.0 if with_counter else None))
    assert account.energy_j == pytest.approx(2400 + (2360 if with_counter else 180 + 1180))
    assert account.state_energy_j["parked"] == pytest.approx(1180 if with_counter else 180)
    assert account.saved_j == pytest.approx(0 if with_counter else 620)


def test_a_second_park_goes_by_the_baseline_of_the_first() -> None:
    """A park right after a touch has no reading of its own; what this GPU draws when quiet is known from before."""
    account = calibrate(parked_at_80_w(), 70.0)
    assert account.baseline_source == BEFORE
    account = observe_state(account, Public.COOLING, at(40))
    account = observe_state(account, Public.PARKED, at(50))
    assert (account.baseline_w, account.baseline_source) == (80.0, EARLIER)
    account = observe_reading(account, reading(60, 18.0))
    assert account.saved_j == account.net_saved_j == pytest.approx(620 + 620)
    assert account.state_energy_j["parked"] == pytest.approx(18.0 * 20)


def test_the_first_park_goes_by_the_calibration() -> None:
    """Until this run has seen the GPU quiet itself, what was measured before counts."""
    account = observe_state(open_account(Public.COOLING, START_NS, 80.0), Public.PARKED, at(1))
    account = observe_reading(account, reading(1, 18.0))
    account = observe_reading(account, reading(11, 18.0))
    assert (account.baseline_w, account.baseline_source) == (80.0, CALIBRATED)
    assert account.saved_j == pytest.approx(620)


@pytest.mark.parametrize("damaged", [-1.0, float("nan"), float("inf")])
def test_a_calibration_that_no_card_can_mean(damaged: float) -> None:
    """It counts as none."""
    account = observe_state(open_account(Public.COOLING, START_NS, damaged), Public.PARKED, at(1))
    assert (account.baseline_w, account.baseline_source) == (None, "")
