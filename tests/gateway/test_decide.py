"""How a backend stands: what may happen to it in any order, and who is let in."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memscaler.sleep.gateway import decide
from memscaler.sleep.gateway.decide import Act, Admit, GaveUp, Ready, Stalled, Standing, State, Unreachable, Wanted

EVENTS = [Wanted(), Unreachable("no"), Stalled(), Ready(), GaveUp("late"), GaveUp("told", 0.1)]
moments = st.lists(st.tuples(st.sampled_from(EVENTS), st.floats(0, 30)), max_size=40)


def test_from_asleep_to_up():
    """The usual way."""
    standing = Standing()
    step = decide.step(standing, Wanted(), 1.0)
    assert (step.standing.state, step.act) == (State.WAKING, Act.BEGIN)
    assert decide.step(step.standing, Wanted(), 2.0) == decide.Step(step.standing)
    step = decide.step(step.standing, Ready(), 3.0)
    assert (step.standing.state, step.act) == (State.UP, Act.TELL)
    step = decide.step(step.standing, Stalled(), 4.0)
    assert (step.standing.state, step.act) == (State.ASLEEP, Act.TELL)


@pytest.mark.parametrize(("told_after_s", "pause_s"), [(None, 10.0), (0.01, 1.0), (4.0, 4.0), (60.0, 10.0)])
def test_a_failure_that_was_told_is_tried_again_sooner(told_after_s, pause_s):
    """After as long as it took to know, between a second and the usual pause."""
    waking = Standing(State.WAKING)
    assert decide.step(waking, GaveUp("why", told_after_s), 5.0, 10.0).standing.until_s == 5.0 + pause_s
    assert decide.step(waking, GaveUp("why", told_after_s), 5.0, 0.0).standing.until_s == 5.0


@given(moments)
def test_in_any_order(happened):
    """One wake at a time; none in the pause after one that failed; up only by being ready."""
    standing, now_s, wakes = Standing(), 0.0, 0
    for event, later_s in happened:
        now_s += later_s
        before = standing
        step = decide.step(before, event, now_s, pause_s=10.0)
        standing = step.standing
        if step.act is Act.BEGIN:
            assert isinstance(event, Wanted)
            assert before.state not in (State.WAKING, State.UP)
            assert before.state is not State.FAILED or now_s >= before.until_s
            wakes += 1
        if standing.state is State.WAKING and before.state is not State.WAKING:
            assert step.act is Act.BEGIN  # else nobody would end it
        if before.state is State.WAKING and standing.state is not State.WAKING:
            assert step.act is Act.TELL  # else those who wait would not hear of it
        if standing.state is State.UP and before.state is not State.UP:
            assert isinstance(event, Ready)


@given(
    state=st.sampled_from(State),
    now_s=st.floats(0, 100),
    looked_s=st.floats(0, 100),
    may_wake=st.booleans(),
    hold=st.booleans(),
    room=st.booleans(),
)
def test_who_is_let_in(state, now_s, looked_s, may_wake, hold, room):
    """Held only who may be, and who is up refuses nobody."""
    standing = Standing(state, looked_s=looked_s)
    admitted = decide.admit(standing, now_s, may_wake=may_wake, hold=hold, room=room)
    if state is State.UP:
        assert admitted is Admit.CONNECT
    if admitted is Admit.HOLD:
        assert may_wake
        assert hold
        assert room
    if not may_wake:
        assert admitted in (Admit.CONNECT, Admit.ASLEEP)
    if state is State.WAKING:
        assert admitted is not Admit.CONNECT


def test_packets_go_on_but_not_for_ever_faster():
    """More than one at first, then one every ten seconds."""
    times = [decide.packet_at_s(nth) for nth in range(20)]
    assert times == sorted(times)
    assert times[0] == 0
    assert len([each for each in times if each < 5]) == 4
    assert all(after - before == 10 for before, after in itertools.pairwise(times[5:]))
