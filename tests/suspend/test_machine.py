"""The decisions: by example, and over every sequence of events of a small world."""

from dataclasses import replace
from itertools import product

import pytest

from memscaler.core.stages import Rung
from memscaler.sleep.machine import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    LOOK_AGAIN_S,
    PREPARE_LIMIT_S,
    Allow,
    Answer,
    Back,
    BringBack,
    CallOff,
    Look,
    Looked,
    Never,
    NotPrepared,
    Now,
    Policy,
    Prepare,
    Prepared,
    Quiet,
    Refused,
    Resumed,
    Standing,
    State,
    Suspend,
    Tick,
    Wanted,
    step,
)
from memscaler.sleep.machine_told import document
from memscaler.sleep.told import span

WALL_S = 1_700_000_000.0
POLICY = Policy(after_s=100.0, timeout_s=60.0, min_awake_s=120.0)
CLOSED = ("somebody is there",)


class World:
    """Standing, time, and what was to be done."""

    def __init__(self, policy=POLICY) -> None:
        self.s = 1000.0
        self.policy = policy
        self.standing = Standing(self.now, awake_s=0.0)
        self.due_s = None
        self.done = []

    @property
    def now(self):
        return Now(self.s, WALL_S + self.s)

    def feed(self, event):
        taken = step(self.standing, event, self.now, self.policy)
        self.standing, self.due_s = taken.standing, taken.due_s
        self.done += taken.actions
        return taken.actions

    def until(self, s):
        """Ticks when they are due."""
        while self.due_s is not None and self.due_s <= s:
            assert self.due_s >= self.s or self.standing.looking
            self.s = max(self.s, self.due_s)
            if self.feed(Tick()):
                return
        self.s = s

    def down(self, wake_unix_s=None):
        """As far as asking logind."""
        self.feed(Quiet(self.s))
        self.until(self.s + 100_000.0)
        assert self.done[-1] == Look()
        self.feed(Looked((), wake_unix_s))
        self.feed(Prepared())
        self.feed(Looked(()))
        assert self.standing.state is State.GOING

    @property
    def document(self):
        return document(self.standing, self.now, self.policy)


def test_looks_when_quiet_for_long_enough():
    """Not before, counted from when the last server became quiet."""
    world = World()
    world.feed(Quiet(980.0))
    assert world.due_s == 1080.0
    world.until(1079.9)
    assert world.done == []
    world.until(1080.0)
    assert world.done == [Look()]
    assert world.feed(Looked(())) == (Prepare("nobody has used a server for long enough"),)


def test_closed_gates_are_looked_at_again():
    """And the document says which."""
    world = World()
    world.feed(Quiet(800.0))
    world.feed(Looked(CLOSED))
    assert world.document.why_not == CLOSED
    assert world.document.next_unix_s is None
    assert world.due_s == world.s + LOOK_AGAIN_S
    world.until(world.due_s)
    world.feed(Looked(()))
    assert world.standing.state is State.PREPARING
    assert world.document.rung is Rung.ENTERING


def test_resume_begins_the_time_awake():
    """Nobody came after the resume: not before `min_awake`, and not before a pause after its servers came back."""
    world = World()
    world.down()
    assert world.feed(Resumed(3600.0, "woken by its alarm")) == (
        BringBack("slept 1 h 0 min, woken by its alarm", 3600.0),
    )
    assert world.document.rung is Rung.LEAVING
    world.s += 30.0
    world.feed(Back())
    assert world.due_s == world.s - 30.0 + POLICY.min_awake_s


def test_how_long_it_took_until_every_server_was_back():
    """From the resume on; not where one did not come back, nor where the machine never slept."""
    world = World()
    for all_up, took_s in ((True, 30.0), (False, 40.0), (True, 12.5)):
        world.s += 1000.0
        world.down()
        world.feed(Resumed(3600.0))
        world.s += took_s
        world.feed(Back(all_up=all_up))
    assert (world.document.left, world.document.wakes_s) == (2, (30.0, 12.5))
    world.s += 1000.0
    world.down()
    world.feed(Refused("no"))
    world.s += 5.0
    world.feed(Back())
    assert world.document.left == 2


def test_failures_make_the_pauses_grow():
    """To an hour, and a success ends that."""
    world = World()
    pauses = []
    for _ in range(9):
        world.down()
        world.feed(Refused("no"))
        world.feed(Back())
        pauses.append(world.standing.not_before_s - world.s)
    assert pauses == [min(FIRST_PAUSE_S * 2**n, LONGEST_PAUSE_S) for n in range(9)]
    assert world.document.failed == 9
    world.down()
    world.feed(Resumed(10.0))
    world.feed(Back())
    assert world.standing.not_before_s - world.s == FIRST_PAUSE_S


def test_suspend_that_does_not_begin_is_called_off():
    """After `timeout` awake, first systemd's job, then the servers."""
    world = World()
    world.down()
    begun_s = world.s
    world.until(begun_s + 59.9)
    assert not isinstance(world.done[-1], BringBack)
    world.until(begun_s + 60.0)
    assert [type(each) for each in world.done[-2:]] == [CallOff, BringBack]
    assert world.feed(Resumed(100.0)) == ()  # it went down after all
    assert world.document.suspends == 1


def test_servers_that_do_not_end_are_brought_back():
    """Whoever takes them down has forgotten it."""
    world = World()
    world.feed(Quiet(0.0))
    world.feed(Looked(()))
    world.until(world.s + PREPARE_LIMIT_S)
    assert isinstance(world.done[-1], BringBack)
    assert world.document.last == "failed: the servers did not end"


def test_failed_suspend_is_none():
    """Logind says that it is over, and the clocks that it has not slept."""
    world = World()
    world.down()
    assert world.feed(Resumed(0.0, "the kernel did not suspend")) == (BringBack("the kernel did not suspend"),)
    assert (world.document.suspends, world.document.failed) == (0, 1)


def test_alarm_is_the_earlier_one():
    """The operator's or the configuration's."""
    for own_s, configured_s, expected_s in ((5.0, 9.0, 5.0), (9.0, 5.0, 5.0), (None, 7.0, 7.0), (None, None, None)):
        world = World()
        world.feed(Quiet(world.s))
        world.feed(Wanted(own_s))
        world.feed(Looked((), configured_s))
        world.feed(Prepared())
        assert world.feed(Looked(())) == (Suspend(expected_s, force=False),)
        assert world.document.alarm_unix_s == expected_s


def test_never_keeps_it_up_until_then():
    """And then the quiet time may be over long since."""
    world = World()
    world.feed(Quiet(0.0))
    world.feed(Looked(CLOSED))
    world.feed(Never("no", WALL_S + world.s + 500.0))
    assert world.document.never == "no"
    world.until(world.s + 499.0)
    assert world.done[1:] == []
    world.until(world.s + 1.0)
    assert world.done[1:] == [Look()]
    assert world.document.never == ""


def test_who_suspends_it_meanwhile():
    """`systemctl suspend` while the servers end: they are brought back, and it is not suspended a second time."""
    world = World()
    world.feed(Quiet(0.0))
    world.feed(Looked(()))
    assert isinstance(world.feed(Resumed(50.0))[0], BringBack)
    assert world.feed(Prepared()) == ()


@pytest.mark.parametrize(("seconds", "text"), [(12, "12 s"), (61, "1 min 1 s"), (7500, "2 h 5 min")])
def test_lengths_of_time(seconds, text):
    """For people."""
    assert span(seconds) == text


# ---- every state ---------------------------------------------------------------------------------------------------

EVENTS = (
    Quiet(0.0),
    Quiet(None, "port 8080 is used"),
    Wanted(),
    Wanted(force=True),
    Never("no"),
    Allow(),
    Prepared(),
    NotPrepared("a client came"),
    NotPrepared("it hangs", failed=True),
    Refused("no"),
    Resumed(0.0),
    Resumed(60.0),
    Back(),
    Tick(),
)
LATE = Now(1e6, WALL_S)  # everything is due
START = Standing(Now(0.0, 0.0), awake_s=0.0)


def followed(standing, event, gates):
    """The event and the looks that follow, the gates as they say; ([(standing, event, actions)], the standing)."""
    steps, waiting = [], [event]
    while waiting:
        current = waiting.pop(0)
        taken = step(standing, current, LATE, POLICY)
        steps.append((standing, current, taken.actions))
        standing = taken.standing
        waiting += [Looked(gates)] * sum(isinstance(action, Look) for action in taken.actions)
    return steps, standing


def same(standing):
    """Without what only counts, and with all times over."""
    flat = replace(START, state=standing.state, quiet=standing.quiet, never=standing.never, request=standing.request)
    return replace(flat, looking=standing.looking, closed=standing.closed)


def check(steps, standing):
    """Of one event: what must hold in every state."""
    wishes = sum(isinstance(event, Wanted) for _, event, _ in steps)
    answers = 0
    for before, event, actions in steps:
        for action in actions:
            match action:
                case Prepare():
                    assert before.state is State.AWAKE, "taken down twice"
                case Suspend(_, force):
                    assert before.state is State.PREPARING, "the servers are up, or it was asked already"
                    assert event == Looked(()), "the gates were not open"
                    assert force or not (before.never or before.quiet.since_s is None)
                case BringBack():
                    assert before.state in (State.PREPARING, State.GOING), "nothing is down"
                case CallOff():
                    assert before.state is State.GOING
                case Answer():
                    answers += 1
        is_leaving = before.state in (State.PREPARING, State.GOING)
        brings_back = any(isinstance(action, BringBack) for action in actions)
        after = (
            steps[steps.index((before, event, actions)) + 1][0] if (before, event, actions) != steps[-1] else standing
        )
        assert brings_back == (is_leaving and after.state is State.RETURNING)
        assert not (is_leaving and after.state is State.AWAKE), "up without its servers"
    assert answers == wishes, "every wish is answered once"
    assert not standing.looking


def test_every_state_and_event():
    """Asked only when prepared and looked at, once; every wish answered once; what is down is always brought back."""
    seen, waiting = {same(START)}, [same(START)]
    while waiting:
        standing = waiting.pop()
        for event, gates in product(EVENTS, ((), CLOSED)):
            steps, after = followed(standing, event, gates)
            check(steps, after)
            if same(after) not in seen:
                seen.add(same(after))
                waiting.append(same(after))
        if standing.state in (State.PREPARING, State.GOING):  # nobody says anything any more
            assert followed(standing, Tick(), ())[1].state is State.RETURNING
        if standing.state is State.RETURNING:
            assert step(standing, Back(), LATE, POLICY).standing.state is State.AWAKE
    assert {standing.state for standing in seen} == set(State)
    assert len(seen) > 20
