"""When a rule is in force for a watch: every order of events of a small world, and single stories."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memscaler.config.gpuctl import GpuctlRule, Match
from memscaler.gvm.rules import CALM_S, VISIT_S, Ask, Coming, Gone, Hold, Phase, Sight, Tick, step, wants_guard

SERVER = (Match("server"),)


def busy(**more) -> GpuctlRule:
    return GpuctlRule(name="busy", processes=SERVER, freeze=True, **{"release_after_s": 5.0, **more})


def quiet(**more) -> GpuctlRule:
    return GpuctlRule(name="quiet", when="quiet", processes=SERVER, freeze=True, **more)


class World:
    """A watch as it really is, and a governor that answers when the test says so."""

    def __init__(self, rule: GpuctlRule) -> None:
        self.rule, self.hold = rule, Hold()
        self.now_s = 1000.0
        self.live = 0
        self.active_s = 0.0
        self.parked = True
        self.guarded = wants_guard(self.hold, rule)
        self.questions: list[int] = []
        self.due_s = math.inf
        self.quiet_told = True

    def post(self, event) -> None:
        was_on = self.hold.is_on
        done = step(self.hold, self.rule, event)
        self.hold, self.due_s = done.hold, done.due_s
        if done.ask is not Ask.NOTHING:
            assert done.hold.open == done.hold.call
            self.questions.append(done.hold.call)
        before, self.guarded = self.guarded, wants_guard(self.hold, self.rule)
        if self.guarded and not before and done.ask is Ask.NOTHING:
            self.questions.append(0)  # the answer to a new guard tells how it is
        assert self.due_s > self.now_s or self.due_s == math.inf or self.due_s == self.now_s != event.at_s, (
            f"it would never sleep: {self.hold}"
        )
        if was_on and not self.hold.is_on and self.rule.when == "quiet":
            assert self.hold.phase is not Phase.ARMING

    def sight(self, call: int = 0, *, rang: bool = False) -> None:
        awake = "" if self.parked else "GPU 0 is awake"
        self.post(Sight(self.now_s, call, self.live, rang, self.active_s, awake))

    def connect(self) -> None:
        """A client: the guarded doorbell tells, or the GPU's."""
        self.live += 1
        self.active_s = self.now_s
        if self.parked:
            self.post(Coming(self.now_s))
            self.parked = False
        if self.guarded:
            self.sight(rang=True)

    def leave(self) -> None:
        """Nobody tells."""
        if self.live:
            self.live -= 1
            self.active_s = self.now_s

    def park(self) -> None:
        if not self.live:
            self.parked = True
            self.sight()

    def wake(self) -> None:
        """For a hold, a pause, another server."""
        if self.parked:
            self.post(Coming(self.now_s))
            self.parked = False

    def answer(self) -> None:
        if self.questions:
            self.sight(self.questions.pop(0))

    def tick(self, seconds: float) -> None:
        """Time goes by; it is told when it wanted to be."""
        end_s = self.now_s + seconds
        while self.due_s <= end_s:
            self.now_s = max(self.now_s, self.due_s)
            self.post(Tick(self.now_s))
        self.now_s = end_s

    def settle(self, seconds: float) -> None:
        """The governor answers at once."""
        end_s = self.now_s + seconds
        for _ in range(1000):
            if self.questions:
                self.answer()
            elif self.due_s <= end_s:
                self.tick(self.due_s - self.now_s)
            else:
                self.now_s = end_s
                return
        raise AssertionError("it never comes to rest")


STEPS = {
    "connect": World.connect,
    "leave": World.leave,
    "park": World.park,
    "wake": World.wake,
    "answer": World.answer,
    "sight": World.sight,
    "tick": lambda world: world.tick(0.5),
    "wait": lambda world: world.tick(20.0),
}


def held_to(world: World) -> None:
    """What must hold after any event."""
    if world.rule.when == "busy":
        if world.live and not world.rule.at_most_s:
            assert world.hold.is_on, world.hold
    elif world.live:
        assert not world.hold.is_on, world.hold
    if world.hold.is_on and not world.live:
        assert world.guarded or (world.hold.seen is not None and world.hold.seen.live), (
            "nobody would tell of the next client"
        )


@pytest.mark.parametrize("rule", [busy(), quiet(), busy(at_most_s=3.0), quiet(at_most_s=3.0)], ids=str)
def test_every_order_of_events(rule):
    """All stories of four events, exhaustively; afterwards everybody leaves, and it lets go, or takes hold."""
    for story in itertools.product(STEPS, repeat=4):
        walk(rule, story)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([busy(), quiet(), busy(at_most_s=3.0), quiet(at_most_s=3.0)]),
    st.lists(st.sampled_from(list(STEPS))),
)
def test_long_stories(rule, story):
    """The same, at random and as long as one likes."""
    walk(rule, story)


def walk(rule: GpuctlRule, story) -> None:
    world = World(rule)
    world.sight()
    for name in story:
        STEPS[name](world)
        held_to(world)
    while world.live:
        world.leave()
    if rule.when == "busy":
        world.settle(60.0)
        assert world.hold.phase is Phase.OFF, (story, world.hold)
        assert world.due_s == math.inf
    else:
        world.park()
        world.settle(100.0)
        assert world.hold.phase is (Phase.SPENT if rule.at_most_s else Phase.ON), (story, world.hold)
        world.connect()
        assert not world.hold.is_on


def test_a_client_puts_a_busy_rule_in_force_and_takes_it_with_him():
    """At once, and release_after later; the governor is asked every look_every meanwhile, and only then."""
    world = World(busy(look_every_s=2.0))
    world.sight()
    assert world.questions == []
    assert world.due_s == math.inf
    world.connect()
    assert world.hold.is_on
    assert not world.guarded
    world.settle(10.0)
    world.leave()
    world.settle(3.0)
    assert world.hold.is_on
    assert world.guarded
    world.settle(4.0)
    assert world.hold.phase is Phase.OFF


def test_a_gpu_woken_for_nobody_holds_a_busy_rule_only_until_the_governor_has_looked():
    """A hold, a pause, another server's client."""
    world = World(busy())
    world.sight()
    world.wake()
    assert world.hold.is_on
    world.answer()
    assert world.hold.phase is Phase.OFF
    world = World(busy())
    world.sight()
    world.wake()
    world.tick(10.0)  # and a governor that never answers
    assert world.hold.phase is Phase.OFF


def test_a_gpu_woken_by_nobody_at_all_ends_quiet_rules_only():
    """A hold, a stop, a doubt: the actuator says that nobody rang."""
    world = World(busy())
    world.sight()
    world.post(Coming(world.now_s, rang=False))
    assert world.hold.phase is Phase.OFF
    world = World(quiet())
    world.sight()
    world.answer()
    assert world.hold.is_on
    world.post(Coming(world.now_s, rang=False))
    assert world.hold.phase is Phase.OFF


def test_who_had_left_before_holds_nothing():
    """The start of a watch counts as activity to the governor; a batch job does not stand still for that."""
    world = World(busy())
    world.active_s = world.now_s - 1.0
    world.sight()
    assert world.hold.phase is Phase.OFF
    world.connect()
    world.leave()
    world.settle(1.0)
    assert world.hold.is_on


def test_a_visitor_who_is_not_counted_holds_it_for_a_moment():
    """A health check, or a client between his SYN and his connection."""
    world = World(busy())
    world.sight(rang=True)
    assert world.hold.is_on
    world.tick(VISIT_S * 0.9)
    assert world.hold.is_on
    world.tick(VISIT_S * 0.2)
    assert world.hold.phase is Phase.OFF


def test_a_quiet_rule_guards_looks_acts_and_looks_again():
    """And lets go at the first sign of a client, for longer than the wake takes to be seen."""
    world = World(quiet())
    world.sight()
    assert world.hold.phase is Phase.ARMING
    assert world.guarded
    world.answer()
    assert world.hold.is_on
    assert len(world.questions) == 1
    world.wake()
    assert world.hold.phase is Phase.OFF
    world.parked = True  # as an older picture tells
    world.sight()
    world.settle(CALM_S * 0.9)
    assert world.hold.phase is Phase.OFF
    world.settle(CALM_S * 0.2)
    assert world.hold.is_on


def test_a_client_between_act_and_second_look_is_seen_by_it():
    """Even if his ring was lost and he has left."""
    world = World(quiet())
    world.sight()
    world.answer()
    world.now_s += 0.1
    world.active_s = world.now_s
    world.answer()
    assert world.hold.phase is Phase.OFF


def test_no_answer_is_doubt():
    """A quiet rule lets go, and waits before it tries again."""
    world = World(quiet())
    world.sight()
    world.answer()
    world.tick(6.0)
    assert world.hold.phase is Phase.OFF
    assert world.hold.why_not == "the governor does not answer"
    assert world.due_s - world.now_s > 20.0


def test_at_most_ends_it_until_the_watch_was_quiet():
    """A batch job starves no longer than that."""
    world = World(busy(at_most_s=3.0))
    world.sight()
    world.connect()
    world.settle(4.0)
    assert world.hold.phase is Phase.SPENT
    assert "at_most" in world.hold.why_not
    world.leave()
    world.settle(10.0)
    world.connect()
    assert world.hold.is_on


def test_a_watch_that_goes_takes_the_rule_with_it():
    """Nobody is connected there, and nobody would tell."""
    for rule in (busy(), quiet()):
        world = World(rule)
        world.sight()
        world.settle(1.0)
        if rule.when == "busy":
            world.connect()
        assert world.hold.is_on
        world.post(Gone(world.now_s))
        assert world.hold.phase is Phase.OFF
