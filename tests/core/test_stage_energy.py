"""What deeper stages spare: nothing invented, nothing lost, whatever the order of readings and of the sleeper's reports."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memscaler.core.model import SECOND_NS, Public
from memscaler.core.snapshot import GpuReading
from memscaler.core.stage_energy import UP, Depth, StageAccount, depth_of, observe_depth, observe_reading
from memscaler.core.stages import Rung, Sleep, SleepingServer, Spent, Stage

OF_SERVERS = (Stage.SERVER_SLEEP, Stage.CHECKPOINT, Stage.STOP_SERVER)
DEPTHS = [UP, *(Depth(stage) for stage in OF_SERVERS), *(Depth(moving=stage) for stage in OF_SERVERS)]
FIGURES = st.one_of(st.none(), st.floats(0, 500), st.sampled_from([-1.0, float("nan"), float("inf")]))
READINGS = st.builds(
    GpuReading,
    at_ns=st.integers(-SECOND_NS, 50 * SECOND_NS),
    power_w=FIGURES,
    energy_j=st.one_of(st.none(), st.floats(0, 1e6)),
    utilization_ratio=st.sampled_from([None, 0.0, 0.5]),
)
CHANGES = st.tuples(st.sampled_from(Public), st.sampled_from(DEPTHS), st.integers(-SECOND_NS, 100 * SECOND_NS))
EVENTS = st.lists(st.one_of(READINGS, CHANGES), max_size=40)
START_NS = 7 * SECOND_NS


def replay(events) -> list[StageAccount]:
    """Every account on the way; the times of the events are offsets from the time before."""
    accounts = [StageAccount(Public.PARKED, START_NS)]
    for event in events:
        account = accounts[-1]
        if isinstance(event, GpuReading):
            told = (event.power_w, event.energy_j)
            moved = GpuReading(account.at_ns + event.at_ns, *told, utilization_ratio=event.utilization_ratio)
            accounts.append(observe_reading(account, moved))
        else:
            accounts.append(observe_depth(account, event[0], event[1], account.at_ns + event[2]))
    return accounts


@given(EVENTS)
def test_seconds_are_those_that_passed(events) -> None:
    """Each stage has the time in which the GPU was in it, and knows the energy of a part of that."""
    accounts, expected = replay(events), dict.fromkeys(OF_SERVERS, 0.0)
    for before, after in pairwise(accounts):
        if before.depth.stage is not None:
            expected[before.depth.stage] += (after.at_ns - before.at_ns) / SECOND_NS
        for stage, spent in after.spent.items():
            assert spent.seconds == pytest.approx(expected[stage])
            assert 0 <= spent.compared_s <= spent.known_s + 1e-6
            assert spent.known_s <= spent.seconds + 1e-6
            assert spent.energy_j >= 0
            assert spent.entries <= len(events)


@given(EVENTS)
def test_what_is_counted_never_falls(events) -> None:
    """Seconds, joules and entries; the saving alone may."""
    accounts = replay(events)
    for before, after in pairwise(accounts):
        for stage, spent in before.spent.items():
            more = after.spent[stage].minus(spent)
            told = (more.seconds, more.known_s, more.energy_j, more.compared_s, more.switch_s, more.entries)
            assert min(told) >= 0


@given(EVENTS)
def test_the_energy_is_that_of_the_card(events) -> None:
    """All stages together have no more than a card used that counts evenly; and its saving is what it should be."""
    watts, reference_w = 20.0, 50.0
    account = StageAccount(Public.AWAKE, START_NS, reference_w=reference_w)
    for event in events:
        if isinstance(event, GpuReading):
            at_ns = account.at_ns + max(0, event.at_ns)
            account = observe_reading(account, GpuReading(at_ns, watts, (at_ns - START_NS) / SECOND_NS * watts))
        else:
            account = observe_depth(account, Public.AWAKE, event[1], account.at_ns + event[2])  # no new reference
    for spent in account.spent.values():
        assert spent.energy_j == pytest.approx(watts * spent.known_s)
        assert spent.compared_s == spent.known_s
        assert spent.saved_j == pytest.approx((reference_w - watts) * (spent.known_s + spent.switch_s), abs=1e-3)
        assert spent.switch_j == pytest.approx((watts - reference_w) * spent.switch_s, abs=1e-3)


@given(EVENTS)
def test_without_a_reading_before_nothing_is_claimed(events) -> None:
    """Only a quiet reading above all stages makes a reference."""
    events = [event for event in events if not isinstance(event, GpuReading)]
    for account in replay(events):
        assert account.reference_w is None
        assert all(spent.saved_j == spent.compared_s == 0 for spent in account.spent.values())


def at(seconds: float) -> int:
    return START_NS + round(seconds * SECOND_NS)


@pytest.mark.parametrize("with_counter", [True, False])
def test_a_night_in_a_stopped_server(with_counter: bool) -> None:
    """Parked at 18 W, a minute of stopping at 30 W, an hour at 8 W, half a minute of starting at 90 W."""
    account, joules = StageAccount(Public.PARKED, START_NS), 0.0

    def read(at_s: float, watts: float) -> None:
        nonlocal account
        account = observe_reading(account, GpuReading(at(at_s), watts, joules if with_counter else None, None, None, 8))

    story = [(UP, 120, 18.0), (Depth(moving=Stage.STOP_SERVER), 60, 30.0), (Depth(Stage.STOP_SERVER), 3600, 8.0)]
    story += [(Depth(moving=Stage.STOP_SERVER), 30, 90.0), (UP, 60, 80.0)]
    now_s = 0.0
    for depth, length_s, watts in story:
        account = observe_depth(account, Public.PARKED if watts < 80 else Public.AWAKE, depth, at(now_s))
        read(now_s, watts)
        for _ in range(0, length_s, 30):
            now_s, joules = now_s + 30, joules + 30 * watts
            read(now_s, watts)
    assert account.reference_w == 18.0
    spent = account.spent[Stage.STOP_SERVER]
    assert (spent.seconds, spent.entries) == (3600, 1)
    assert spent.watts == pytest.approx(8.0, abs=0.5)
    assert spent.switch_s == pytest.approx(90)
    assert spent.switch_j == pytest.approx(60 * 12 + 30 * 72, rel=0.01)
    assert spent.saved_j == pytest.approx(3600 * 10 - spent.switch_j, rel=0.01)


def test_the_echo_of_work_is_no_reference() -> None:
    """A reading right after the park may still show what was before it."""
    account = StageAccount(Public.AWAKE, START_NS)
    account = observe_depth(account, Public.PARKED, UP, at(10))
    account = observe_reading(account, GpuReading(at(10.2), 70.0))
    account = observe_reading(account, GpuReading(at(12), 18.0))
    account = observe_depth(account, Public.PARKED, Depth(Stage.SERVER_SLEEP), at(20))
    assert account.reference_w == 18.0


# ---- how deep a GPU is ---------------------------------------------------------------------------------------------

GPU = "GPU-1"


def server(rung: Rung, stage: Stage | None = None, **more) -> SleepingServer:
    return SleepingServer("s", 8080, gpus=(GPU, "GPU-2"), rung=rung, stage=stage, **more)


DOWN = server(Rung.DOWN, Stage.STOP_SERVER)


@pytest.mark.parametrize(
    ("servers", "depth"),
    [
        ([], UP),
        ([DOWN], Depth(Stage.STOP_SERVER)),
        ([DOWN, server(Rung.DOWN, Stage.SERVER_SLEEP)], Depth(Stage.SERVER_SLEEP)),
        ([DOWN, server(Rung.UP)], UP),
        ([DOWN, server(Rung.STUCK, Stage.CHECKPOINT)], UP),
        ([DOWN, server(Rung.DOWN, Stage.SERVER_SLEEP, asleep_by="llama.cpp")], UP),
        ([DOWN, server(Rung.ENTERING, Stage.CHECKPOINT, next=Stage.STOP_SERVER)], Depth(moving=Stage.CHECKPOINT)),
        ([DOWN, server(Rung.ENTERING, next=Stage.CHECKPOINT)], Depth(moving=Stage.CHECKPOINT)),
        ([DOWN, server(Rung.LEAVING, Stage.SERVER_SLEEP)], Depth(moving=Stage.SERVER_SLEEP)),
        ([server(Rung.LEAVING, Stage.SERVER_SLEEP), server(Rung.UP)], UP),
        ([server(Rung.ENTERING)], UP),
        ([server(Rung.DOWN)], UP),
    ],
)
def test_a_gpu_is_as_deep_as_its_shallowest_server(servers, depth) -> None:
    """What others did, and what nobody can tell, counts as up."""
    assert depth_of(GPU, Sleep(1, tuple(servers))) == depth
    assert depth_of("GPU-9", Sleep(1, tuple(servers))) == UP


def test_sums() -> None:
    """Plus and minus take back each other, field by field."""
    one, two = Spent(1, 2, 3, 4, 5, 6, 7, 8), Spent(10, 20, 30, 40, 50, 60, 70, 80)
    assert one.plus(two).minus(two) == one
    assert one.plus(two) == Spent(11, 22, 33, 44, 55, 66, 77, 88)
