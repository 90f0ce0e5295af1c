"""What is written about a GPU is what its account says, cut into hours and parks."""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memscaler.core.energy import Account, observe_reading, observe_state, open_account
from memscaler.core.model import SECOND_NS, Public
from memscaler.core.snapshot import GpuReading
from memscaler.history.following import HOUR_NS, Following
from memscaler.history.reader import open_history
from memscaler.history.tables import FILE, STATES, Hour
from memscaler.history.writer import History
from tests.governor import eventually
from tests.history.filled import GPU, NAME, opened

START_NS = 500_000 * HOUR_NS + HOUR_NS - 30 * SECOND_NS  # half a minute before an hour ends
A_WHILE_NS = st.integers(0, 2 * HOUR_NS) | st.integers(0, 90 * SECOND_NS)
STEPS = st.lists(
    st.tuples(
        A_WHILE_NS,
        st.sampled_from(Public) | st.none(),
        st.tuples(st.none() | st.floats(0, 500), st.none() | st.floats(0, 1e6), st.sampled_from((0.0, 0.5))),
    ),
    max_size=25,
)


def accounts(steps) -> list[Account]:
    """The account as the recorder keeps it: a change of state or a reading at each step."""
    account, now_ns, counter_j, found = open_account(Public.AWAKE, 0), 0, 0.0, []
    for passed_ns, state, (power_w, more_j, utilization_ratio) in steps:
        now_ns += passed_ns
        if state is not None:
            account = observe_state(account, state, now_ns)
        else:
            counter_j += more_j or 0.0
            energy_j = None if more_j is None else counter_j
            account = observe_reading(
                account, GpuReading(now_ns, power_w, energy_j, utilization_ratio=utilization_ratio)
            )
        found.append(account)
    return found


def summed(hours: list[Hour]) -> Hour:
    return Hour(
        0,
        {state: sum(hour.state_s.get(state, 0.0) for hour in hours) for state in STATES},
        {state: sum(hour.state_energy_j.get(state, 0.0) for hour in hours) for state in STATES},
        sum(hour.energy_j or 0.0 for hour in hours),
        sum(hour.saved_j for hour in hours),
        sum(hour.unknown_s for hour in hours),
        sum(hour.parks for hour in hours),
        sum(hour.wakes for hour in hours),
    )


def close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-6)


@given(steps=STEPS)
@settings(max_examples=300)
def test_the_hours_are_the_account(steps):
    """Their sums are its figures; no hour has more seconds than it can have; each second is in the hour it passed in."""
    following, every = Following(open_account(Public.AWAKE, 0)), {}
    account = following.account
    for account in accounts(steps):
        for hour, more in following.hours(account, START_NS + account.at_ns).items():
            every.setdefault(hour, []).append(more)
        list(following.parks(account, START_NS + account.at_ns, 0.0, ""))
        following.account = account
    told = summed([each for more in every.values() for each in more])
    for state in Public:
        assert close(told.state_s[state], account.state_s[state])
        assert close(told.state_energy_j[state], account.state_energy_j[state])
    assert close(told.saved_j, account.saved_j)
    assert close(told.unknown_s, account.unknown_s)
    assert close(told.energy_j or 0.0, account.energy_j or 0.0)
    assert (account.energy_j is None) == all(each.energy_j is None for more in every.values() for each in more)
    for hour, more in every.items():
        covered_ns = min(START_NS + account.at_ns, (hour + 1) * HOUR_NS) - max(START_NS, hour * HOUR_NS)
        assert close(sum(summed(more).state_s.values()), max(0, covered_ns) / SECOND_NS)


@given(steps=STEPS)
@settings(max_examples=40)
def test_what_is_read_is_what_was_told(steps):
    """Through memory, batches and the file: the sums of the hours, the total, and the number of parks."""
    with tempfile.TemporaryDirectory() as folder:
        history = History(Path(folder))
        history.take_on(GPU, 0, NAME, open_account(Public.AWAKE, 0))
        account, parks = open_account(Public.AWAKE, 0), 0
        for nth, now in enumerate(accounts(steps)):
            parks += now.state is Public.PARKED and account.state is not Public.PARKED
            account = now
            history.follow(GPU, account, 1.0, "connection")
            if nth % 7 == 6:
                history.write()
                history._join(5.0)
        history._following.clear()  # what passes between the last step and now is not of the steps
        history.close()
        if not (Path(folder) / FILE).exists():
            assert (account.at_ns, account.saved_j, parks) == (0, 0.0, 0)
            return
        with open_history(Path(folder)) as kept:
            told, found = summed(kept.hours(GPU)), kept.parks(GPU)
            total_j = kept.totals()[GPU][0]
    assert all(close(told.state_s[state], account.state_s[state]) for state in Public)
    assert all(close(told.state_energy_j[state], account.state_energy_j[state]) for state in Public)
    assert close(told.saved_j, account.saved_j)
    assert close(total_j, account.saved_j)
    assert (told.parks, len(found)) == (parks, parks)


def followed(steps) -> list:
    """The parks, as they are told last."""
    following, told = Following(open_account(Public.AWAKE, 0)), {}
    for account, idle_s, reason in steps:
        following.hours(account, START_NS + account.at_ns)
        for park in following.parks(account, START_NS + account.at_ns, idle_s, reason):
            told[park.at_ns] = park.row()
        following.account = account
    return list(told.values())


def test_a_park_and_what_it_saved():
    """Told when it begins, and again with the first reading after it: its end, its energy, what it saved, and why."""
    account, steps = open_account(Public.AWAKE, 0), []

    def at(second: float, state: Public | None = None, energy_j: float = 0.0, power_w: float = 80.0) -> None:
        nonlocal account
        now_ns = round(second * SECOND_NS)
        if state is not None:
            account = observe_state(account, state, now_ns)
        else:
            account = observe_reading(account, GpuReading(now_ns, power_w, energy_j, utilization_ratio=0.0))
        steps.append((account, 9.5, "connection" if state is Public.AWAKE else "quiet"))

    at(0, Public.COOLING)
    at(4, energy_j=0.0)
    at(5, Public.PARKED)
    at(5, energy_j=80.0)
    (begun,) = followed(steps)
    assert (begun.at_unix_s, begun.until_unix_s, begun.baseline_w) == (START_NS / SECOND_NS + 5, None, 80.0)
    assert (begun.idle_s, begun.reason, begun.energy_j, begun.saved_j) == (9.5, "", None, None)
    at(15, Public.AWAKE)
    assert followed(steps) == [begun]
    at(15, energy_j=280.0)
    (park,) = followed(steps)
    assert park.until_unix_s == START_NS / SECOND_NS + 15
    assert (park.reason, park.source) == ("connection", "counter")
    assert (park.energy_j, park.saved_j) == (200.0, 600.0)


@pytest.mark.parametrize("source", ["counter", "integrated"])
def test_a_wake_that_is_told_late(tmp_path, source):
    """A card without a counter has its park told at once when it ends; the driver call returns after that."""
    history, now_ns = History(tmp_path), time.monotonic_ns()
    account = open_account(Public.AWAKE, now_ns)
    history.take_on(GPU, 0, NAME, account)

    def follow(now: Account, reason: str = "") -> None:
        nonlocal account
        account = now
        history.follow(GPU, account, 1.0, reason)

    for second, latency_s in ((10, 0.012), (20, 0.0002), (30, None)):
        for more, state, reason in ((0, Public.COOLING, ""), (2, Public.PARKED, "quiet"), (8, Public.AWAKE, "hold")):
            at_ns = now_ns + (second + more) * SECOND_NS
            follow(observe_state(account, state, at_ns), "connection" if latency_s and more == 8 else reason)
            if state is Public.AWAKE and latency_s:
                history.woke(GPU, latency_s)
            energy_j = 10.0 * (second + more) if source == "counter" else None
            follow(observe_reading(account, GpuReading(at_ns, 10.0, energy_j, utilization_ratio=0.0)))
    history.woke(GPU, 0.5)  # of a park that never was: the driver was asked, and a client came before it had parked
    history._following.clear()
    history.close()
    with open_history(tmp_path) as kept:
        parks, (hour, *more) = kept.parks(GPU), kept.hours(GPU)
    assert [park.source for park in parks] == [source] * 3
    assert [park.latency_s for park in parks] == [0.012, 0.0002, None]
    assert [park.reason for park in parks] == ["connection", "connection", "hold"]
    assert sum(each.parks for each in (hour, *more)) == 3
    assert sum(each.wakes for each in (hour, *more)) == 2, "a hold is no client"


def test_governed_since_before_the_first_write(tmp_path):
    """What is known of a GPU begins when it is taken on, not with the first batch."""
    began_s = time.time()
    history = opened(tmp_path)
    taken_s = time.time()
    eventually(lambda: time.time() > taken_s + 0.2)
    history.count(GPU, 1.0)
    history.close()
    with open_history(tmp_path) as kept:
        (gpu,) = kept.gpus()
    assert began_s - 0.01 <= gpu.first_unix_s <= taken_s + 0.01
    assert gpu.last_unix_s > taken_s + 0.19


def test_two_parks_without_a_reading_between_them():
    """Both are told; of the first one nobody knows the energy."""
    account, steps = open_account(Public.AWAKE, 0), []
    for second, state in ((1, Public.PARKED), (2, Public.AWAKE), (3, Public.PARKED), (4, Public.AWAKE)):
        account = observe_state(account, state, second * SECOND_NS)
        steps.append((account, 0.0, "connection"))
    account = observe_reading(account, GpuReading(5 * SECOND_NS, 80.0))
    first, second = followed([*steps, (account, 0.0, "")])
    assert first.until_unix_s == START_NS / SECOND_NS + 2
    assert (first.energy_j, first.saved_j, first.source) == (None, None, "")
    assert (second.until_unix_s, second.energy_j) == (START_NS / SECOND_NS + 4, None)


@pytest.mark.parametrize("jump_s", [-3 * 366 * 86400.0, -90.0, 90.0, 40 * 366 * 86400.0])
def test_a_clock_that_is_set(tmp_path, monkeypatch, jump_s):
    """Backwards or forwards, in the middle of an hour: no second and no joule is lost."""
    history = History(tmp_path)
    now_ns = time.monotonic_ns()
    account = open_account(Public.AWAKE, now_ns)
    history.take_on(GPU, 0, NAME, account)
    wall_ns = time.time_ns()
    for second, shift_s in ((10, 0.0), (20, jump_s), (30, jump_s)):
        monkeypatch.setattr(time, "time_ns", lambda shift_s=shift_s: wall_ns + round(shift_s * SECOND_NS))
        reading = GpuReading(now_ns + second * SECOND_NS, 80.0, 80.0 * second)
        account = observe_reading(account, reading)
        history.follow(GPU, account)
    monkeypatch.undo()
    history._following.clear()
    history.close()
    with open_history(tmp_path) as kept:
        told = summed(kept.hours(GPU))
    assert told.state_s["awake"] == pytest.approx(30.0)
    assert told.state_energy_j["awake"] == pytest.approx(1600.0)


def test_a_wall_clock_before_1970(tmp_path, monkeypatch):
    """A machine without a clock, just booted: times are as wrong as the clock, and nothing is lost."""
    monkeypatch.setattr(time, "time_ns", lambda: 5 * SECOND_NS)
    monkeypatch.setattr(time, "time", lambda: 5.0)
    history = History(tmp_path)
    now_ns = time.monotonic_ns()
    account = open_account(Public.PARKED, now_ns - 60 * SECOND_NS)
    history.take_on(GPU, 0, NAME, account)
    history.follow(GPU, observe_state(account, Public.AWAKE, now_ns))
    history.close()
    with open_history(tmp_path) as kept:
        assert summed(kept.hours(GPU)).state_s["parked"] == pytest.approx(60.0)
        assert kept.since_unix_s() == 5.0
    monkeypatch.undo()
    assert History(tmp_path).since_unix_s == 5.0
