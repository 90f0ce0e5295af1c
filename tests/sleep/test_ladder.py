"""The ladder's promises, whatever happens in whatever order."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from memscaler.config.stages import StageRule
from memscaler.core.stages import Rung, Stage
from memscaler.sleep import ladder
from memscaler.sleep.moves import (
    CALLING,
    DEPTH,
    Action,
    Arm,
    Disarm,
    Down,
    End,
    Enter,
    Entered,
    Event,
    Gone,
    HalfWay,
    Leave,
    Left,
    NotLeft,
    NotPossible,
    Phase,
    Sight,
    Standing,
    Tick,
    Undone,
    Up,
)

SLEEP = StageRule(stage=Stage.SERVER_SLEEP, after_s=100)
FREEZE = StageRule(stage=Stage.CHECKPOINT, after_s=200)
STOP = StageRule(stage=Stage.STOP_SERVER, after_s=300)
RULES = (SLEEP, FREEZE, STOP)
FAR_S = 1e6


@dataclass
class World:
    """One server, its governor and its drivers; what was asked of them waits in `calls`. Checks each action."""

    rules: tuple[StageRule, ...] = RULES
    now_s: float = 1000.0
    live: int = 0
    active_s: float = 0.0
    held: str = ""
    parked: bool = True
    pids: tuple[int, ...] = (7,)
    at: Standing = field(default_factory=Standing)
    calls: list[Enter | Leave] = field(default_factory=list)
    arms: list[Arm] = field(default_factory=list)
    really: list[Stage] = field(default_factory=list)  # as the drivers know it
    armed: bool = False
    answered_s: float = -1.0  # when the last look was answered that was asked of the governor
    log: list[Action] = field(default_factory=list)

    def post(self, event: Event) -> tuple[Action, ...]:
        done = ladder.step(self.at, event, self.now_s, self.rules)
        self.at = done.standing
        for action in done.actions:
            self.check(action, event)
            self.log.append(action)
        return done.actions

    def check(self, action: Action, event: Event) -> None:
        match action:
            case Arm():
                assert not self.calls, "armed while a call is under way"
                self.armed = True
                self.arms = [action]  # an older one is answered by nobody: its number is void
            case Disarm():
                assert not self.really
                assert not self.calls
                self.armed = False
            case Enter(_, entered):
                assert isinstance(event, Sight), "no look before"
                assert event.call
                assert self.armed
                assert not self.calls, "two calls at once"
                assert not self.at.ending
                forced = self.at.wished is not None and self.at.wished.force
                assert forced or (not event.live and not event.held and not event.rang)
                assert self.at.wished is not None or event.parked
                assert all(DEPTH[stage] < DEPTH[entered.stage] for stage in self.really)
                self.calls.append(action)
            case Leave(_, left):
                assert not self.calls, "two calls at once"
                assert left.stage is self.at.stage, "not the deepest first"
                self.calls.append(action)

    def sight(self, call: int = 0, *, rang: bool = False) -> Sight:
        return Sight(
            self.now_s,
            call,
            self.live,
            rang,
            self.active_s,
            0.0,
            self.parked,
            "" if self.parked else "GPU 0 is awake",
            self.held,
            self.pids,
        )

    def see(self, *, rang: bool = False) -> None:
        self.post(self.sight(rang=rang))

    def answer_look(self) -> None:
        call = self.arms.pop().call
        self.post(self.sight(call))

    def connect(self) -> None:
        self.live, self.active_s = 1, self.now_s
        if self.armed:
            self.see(rang=True)

    def leave(self) -> None:
        self.live, self.active_s = 0, self.now_s
        self.see()

    def end_call(self, how: str) -> None:
        call = self.calls.pop()
        if isinstance(call, Leave):
            if how == "ok":
                if call.rule.stage in self.really:
                    self.really.remove(call.rule.stage)
                self.post(Left(call.call))
            else:
                self.post(NotLeft(call.call, "no"))
            return
        match how:
            case "ok":
                self.really.append(call.rule.stage)
                self.post(Entered(call.call))
            case "half":
                self.really.append(call.rule.stage)
                self.post(HalfWay(call.call, "half"))
            case "fail":
                self.post(Undone(call.call, "failed"))
            case "never":
                self.post(Undone(call.call, "failed for good", for_good=True))
            case "not":
                self.post(NotPossible(call.call, "not here"))
            case _:
                self.post(NotPossible(call.call, "not now", lasting=False))

    def tick(self, seconds: float | None = None) -> None:
        """As time goes by, or when it wants one."""
        self.now_s = max(self.now_s, self.at.due_s or self.now_s) if seconds is None else self.now_s + seconds
        if self.at.due_s is not None and self.at.due_s <= self.now_s:
            self.post(Tick())

    def settle(self, *, seconds: float = 0.0, how: str = "ok") -> None:
        """Everybody answers, well; and time goes by, until nothing happens any more before its end."""
        end_s = self.now_s + seconds
        for _ in range(300):
            if self.calls:
                self.end_call(how)
            elif self.arms and self.at.phase in (Phase.ARMING, Phase.LOOKING):
                self.answer_look()
            elif self.at.due_s is not None and self.at.due_s <= end_s:
                self.tick()
            else:
                self.now_s = max(self.now_s, end_s)
                return
        raise AssertionError("it never comes to rest")


# ---- single stories --------------------------------------------------------------------------------------------------


def quiet_world(**kind) -> World:
    world = World(active_s=1000.0, **kind)
    world.see()
    return world


def test_goes_down_stage_by_stage_and_comes_back_in_reverse_order():
    """Each stage when its time has come; a client brings it up, the deepest first."""
    world = quiet_world()
    world.settle(seconds=99)
    assert world.at.is_up
    world.settle(seconds=2)
    assert world.really == [Stage.SERVER_SLEEP]
    world.settle(seconds=100)
    world.settle(seconds=100)
    assert world.really == [Stage.SERVER_SLEEP, Stage.CHECKPOINT, Stage.STOP_SERVER]
    assert world.at.rung is Rung.DOWN
    world.log.clear()
    world.connect()
    world.settle()
    assert [action.rule.stage for action in world.log if isinstance(action, Leave)] == [
        Stage.STOP_SERVER,
        Stage.CHECKPOINT,
        Stage.SERVER_SLEEP,
    ]
    assert world.at.is_up
    assert not world.armed
    assert world.really == []


def test_looks_before_and_after_each_act():
    """Guard, look, act, look again."""
    world = quiet_world(rules=(SLEEP,))
    world.settle(seconds=101)
    assert [type(action) for action in world.log] == [Arm, Enter, Arm]


def test_a_client_between_the_act_and_the_second_look_brings_it_up_at_once():
    """The ring is heard while the call is under way; the call is told to give up, and what it reached is left."""
    world = quiet_world(rules=(SLEEP,))
    world.tick()
    world.answer_look()
    assert world.at.phase is Phase.ENTERING
    world.connect()
    assert world.at.up_for
    world.end_call("ok")
    assert isinstance(world.calls[0], Leave)
    world.settle()
    assert world.at.is_up


def test_a_client_whose_ring_was_lost_is_found_by_the_second_look():
    """The time of the last work tells."""
    world = quiet_world(rules=(SLEEP,))
    world.tick()
    world.answer_look()
    world.now_s += 1
    world.active_s = world.now_s
    world.end_call("ok")
    world.answer_look()
    assert isinstance(world.calls[0], Leave)


def test_health_checks_keep_a_stage_whose_clients_must_mean_work():
    """wake_on = "work": a ring and a short connection leave it; one that stays is work."""
    world = quiet_world(rules=(replace(SLEEP, wake_on="work"),))
    world.settle(seconds=101)
    assert world.really == [Stage.SERVER_SLEEP]
    world.live = 1
    world.see(rang=True)
    world.live = 0
    world.see()
    world.settle(seconds=5)
    assert world.really == [Stage.SERVER_SLEEP]
    world.live = 1
    world.see(rang=True)
    world.settle(seconds=ladder.VISIT_S + 1)
    assert world.at.is_up


def test_a_health_check_wakes_where_every_client_counts():
    """wake_on = "connection", the default."""
    world = quiet_world(rules=(SLEEP,))
    world.settle(seconds=101)
    world.see(rang=True)
    world.settle()
    assert world.at.is_up


def test_what_the_end_of_a_stopped_server_looks_like_wakes_nobody():
    """Its silent connections end with it, which counts as activity; only a ring is a client."""
    world = quiet_world(rules=(STOP,))
    world.settle(seconds=290)
    world.tick()
    world.answer_look()
    world.now_s += 1
    world.active_s = world.now_s
    world.end_call("ok")
    world.settle(seconds=50)
    assert world.really == [Stage.STOP_SERVER]
    world.see(rang=True)
    world.settle()
    assert world.at.is_up


def test_a_watch_that_ends_with_its_stopped_server_brings_nobody_back():
    """Its end is our own doing; a server that is only frozen is brought back before nobody watches it."""
    world = quiet_world(rules=(STOP,))
    world.settle(seconds=290)
    world.tick()
    world.answer_look()
    world.post(Gone())
    world.end_call("ok")
    world.post(Gone())
    world.settle(seconds=100)
    assert world.really == [Stage.STOP_SERVER]
    world.post(Up("an operator wants it"))
    world.settle()
    assert world.at.is_up
    world = quiet_world(rules=(FREEZE,))
    world.settle(seconds=250)
    assert world.really == [Stage.CHECKPOINT]
    world.post(Gone())
    world.settle()
    assert world.at.is_up


def test_no_stage_while_a_gpu_is_awake():
    """The stage above must hold: parking is the governor's."""
    world = quiet_world(rules=RULES, parked=False)
    world.settle(seconds=1000)
    assert world.log == []
    assert ladder.next_stage(world.at, RULES).why_not == "GPU 0 is awake"


def test_a_failed_stage_is_tried_again_after_growing_pauses_and_bars_the_deeper_ones():
    """1, 2, 4 minutes, up to an hour."""
    world = quiet_world()
    times = []
    for _ in range(10):
        while not world.calls:
            if world.arms and world.at.phase is Phase.ARMING:
                world.answer_look()
            else:
                world.tick()
        times.append(world.now_s)
        assert world.calls[0].rule.stage is Stage.SERVER_SLEEP
        world.end_call("fail")
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert pauses == pytest.approx([60, 120, 240, 480, 960, 1920, 3600, 3600, 3600])


def test_a_stage_that_is_not_possible_is_passed_over_and_says_why():
    """The next one follows in its own time."""
    world = quiet_world()
    world.tick()
    world.answer_look()
    world.end_call("not")
    assert ladder.next_stage(world.at, RULES).rule is FREEZE
    world.settle(seconds=101)
    assert world.really == [Stage.CHECKPOINT]
    world.connect()
    world.settle()
    world.leave()
    assert ladder.next_stage(world.at, RULES).rule is SLEEP, "after work it is asked about anew"


def test_what_failed_for_good_is_not_tried_again_with_that_process():
    """A `failed` of cuda-checkpoint: never again, until another process is there."""
    world = quiet_world(rules=(FREEZE,))
    world.settle(seconds=199)
    world.tick()
    world.answer_look()
    world.end_call("never")
    world.log.clear()
    for _ in range(20):
        world.settle(seconds=4000)
        world.connect()
        world.leave()
    assert world.log == []
    world.pids = (8,)
    world.see()
    world.settle(seconds=4000)
    assert world.really == [Stage.CHECKPOINT]


def test_what_cannot_be_left_is_stuck_and_tried_again_for_ever():
    """Growing pauses of at most a minute; then it is up."""
    world = quiet_world(rules=(SLEEP,))
    world.settle(seconds=101)
    world.connect()
    times = []
    for _ in range(12):
        times.append(world.now_s)
        world.end_call("fail")
        assert world.at.rung is Rung.STUCK
        world.tick()
        assert world.at.rung is Rung.STUCK, "trying again is not out of it"
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert pauses[:4] == pytest.approx([1, 2, 4, 8])
    assert max(pauses) == ladder.LONGEST_RETRY_S
    world.end_call("ok")
    assert world.at.is_up


def test_a_call_that_hangs_is_told_and_what_comes_of_it_late_is_left():
    """Nobody else can be called meanwhile; whatever it reached, it is left."""
    world = quiet_world(rules=(SLEEP,))
    world.tick()
    world.answer_look()
    world.tick()
    assert world.at.phase is Phase.HUNG
    assert world.at.rung is Rung.STUCK
    assert "does not end" in world.at.said
    world.end_call("ok")
    assert isinstance(world.calls[0], Leave)
    world.settle()
    assert world.at.is_up


def test_a_leave_that_hangs_is_left_again_when_it_has_ended():
    """And not before: one call at a time."""
    world = quiet_world(rules=(SLEEP,))
    world.settle(seconds=101)
    world.connect()
    world.tick()
    assert world.at.phase is Phase.HUNG
    world.end_call("fail")
    assert world.at.phase is Phase.STUCK
    world.settle(seconds=5)
    assert world.at.is_up


def test_a_governor_that_does_not_answer_keeps_it_up():
    """Doubt means up."""
    world = quiet_world(rules=(SLEEP,))
    world.tick()
    world.tick()
    assert world.at.is_up
    assert world.at.phase is Phase.RESTING
    assert not world.armed
    assert ladder.next_stage(world.at, (SLEEP,)).ready_s > world.now_s + 50


def test_a_hold_brings_it_up_and_keeps_it_there():
    """Also a pause, a release of the driver, a reload."""
    world = quiet_world(rules=(SLEEP,))
    world.settle(seconds=101)
    world.held = "held by alice"
    world.see()
    world.settle(seconds=1000)
    assert world.at.is_up
    assert world.log[-1] == Disarm()


def test_a_rule_that_is_gone_is_left_and_one_that_changed_is_not():
    """After a reload."""
    world = quiet_world(rules=(SLEEP,))
    world.settle(seconds=101)
    world.rules = (replace(SLEEP, after_s=50.0),)
    world.post(Tick())
    assert world.really == [Stage.SERVER_SLEEP]
    world.rules = (STOP,)
    world.post(Tick())
    world.settle()
    assert world.at.is_up


def test_an_operators_wish_skips_the_time_and_goes_no_deeper():
    """`memscaler sleep`: in the ladder's order, the GPU need not be parked."""
    world = quiet_world(parked=False)
    world.post(Down(Stage.CHECKPOINT))
    world.settle()
    assert world.really == [Stage.SERVER_SLEEP, Stage.CHECKPOINT]
    assert world.at.wished is None
    world.post(Down())
    world.settle()
    assert world.really[-1] is Stage.STOP_SERVER


def test_one_stage_deeper_goes_past_what_is_not_possible():
    """llama.cpp has no sleep mode: `memscaler sleep` stops it, if that is the next stage that it has."""
    world = quiet_world(parked=False)
    world.post(Down())
    world.answer_look()
    world.end_call("not")
    world.settle()
    assert world.really == [Stage.CHECKPOINT]
    assert world.at.wished is None


def test_a_stage_by_name_is_that_stage_or_none():
    """Another one may cost its clients much more."""
    world = quiet_world(parked=False)
    world.post(Down(Stage.SERVER_SLEEP))
    world.answer_look()
    world.end_call("not")
    world.settle()
    assert world.at.is_up
    assert world.at.wished is None


@pytest.mark.parametrize(("wish", "how"), [(Down(), "later"), (Down(Stage.SERVER_SLEEP), "later"), (Down(), "fail")])
def test_an_operators_wish_that_comes_to_nothing_is_over_and_says_why(wish, how):
    """It is not tried again without a pause until the end of time."""
    world = quiet_world(parked=False)
    world.post(wish)
    world.answer_look()
    world.end_call(how)
    assert world.at.phase is Phase.RESTING
    assert world.at.wished is None
    assert world.at.refused == {"later": "not now", "fail": "failed"}[how]
    world.log.clear()
    world.settle(seconds=1000)
    assert world.log == []
    world.post(wish)
    assert world.at.refused == "", "another try, with an end of its own"
    assert world.arms


def test_an_operators_wish_is_called_off_by_a_client_who_is_named():
    """Not by what may be so just then besides."""
    world = quiet_world(parked=False)
    world.post(Down())
    world.connect()
    world.settle()
    assert world.at.refused == "a client came"


def test_what_nobody_is_left_to_bring_back_is_up_by_name_only():
    """An operator has stopped it while it slept: it says so until it listens again, and nothing is tried with it."""
    world = quiet_world(rules=(STOP,))
    world.settle(seconds=301)
    assert world.really == [Stage.STOP_SERVER]
    world.pids = ()
    world.see()
    world.post(Up("wanted"))
    world.really.clear()
    world.post(Left(world.calls.pop().call, "stopped by an operator"))
    assert world.at.is_up
    assert world.at.missing == "stopped by an operator"
    world.log.clear()
    world.settle(seconds=1000)
    assert world.log == []
    assert ladder.next_stage(world.at, world.rules).why_not == "stopped by an operator"
    world.pids = (9,)
    world.see()
    assert world.at.missing == ""
    world.settle(seconds=1000)
    assert world.really == [Stage.STOP_SERVER]


def test_an_operators_wish_does_not_wait_for_a_client_to_go():
    """It is answered, not remembered."""
    world = quiet_world()
    world.connect()
    world.see()
    world.post(Down())
    assert world.at.wished is None
    world.leave()
    world.settle(seconds=50)
    assert world.at.is_up


def test_a_suspend_takes_it_straight_to_its_stage_and_keeps_it_there():
    """Also where no such stage is configured, until somebody says up."""
    world = quiet_world(rules=())
    world.post(Down(rule=replace(STOP, after_s=0.0)))
    world.settle(seconds=10_000)
    assert world.really == [Stage.STOP_SERVER]
    world.post(Up("resumed"))
    world.settle(seconds=10_000)
    assert world.at.is_up


def test_a_forced_suspend_takes_it_from_under_its_clients():
    """`memscaler suspend now --force`."""
    world = quiet_world(rules=())
    world.connect()
    world.see()
    world.post(Down(rule=replace(STOP, after_s=0.0), force=True))
    world.settle(seconds=10)
    assert world.really == [Stage.STOP_SERVER]
    world.see()
    world.settle(seconds=10)
    assert world.really == [Stage.STOP_SERVER]


def test_what_an_earlier_one_left_is_left_first():
    """Deepest first, before anything else."""
    done = ladder.found((SLEEP, STOP), 1000.0)
    world = World(at=done.standing, really=[Stage.SERVER_SLEEP, Stage.STOP_SERVER], rules=())
    for action in done.actions:
        world.check(action, Tick())
    world.see()
    world.settle()
    assert world.really == []
    assert world.at.is_up


def test_after_the_end_nothing_is_entered():
    """And what was entered is left."""
    world = quiet_world()
    world.settle(seconds=250)
    world.post(End())
    world.settle(seconds=FAR_S)
    assert world.at.is_up
    world.log.clear()
    world.post(Down())
    world.settle(seconds=FAR_S)
    assert world.log == []


# ---- everything that can happen --------------------------------------------------------------------------------------

EVENTS = (
    *("connect", "leave", "tick", "look", "ok", "fail", "half", "not", "later"),
    *("hold", "free", "up", "end", "gone", "wish"),
)


def happen(world: World, what: str) -> bool:  # noqa: C901  # one table
    """False if that cannot happen now."""
    match what:
        case "connect" if not world.live:
            world.connect()
        case "leave" if world.live:
            world.leave()
        case "tick" if world.at.due_s is not None:
            world.tick()
        case "look" if world.arms and world.at.phase in (Phase.ARMING, Phase.LOOKING):
            world.answer_look()
        case "ok" | "fail" | "half" | "not" | "later" if world.calls:
            world.end_call(what)
        case "hold" if not world.held:
            world.held = "held"
            world.see()
        case "free" if world.held:
            world.held = ""
            world.see()
        case "up":
            world.post(Up("wanted"))
        case "end" if not world.at.ending:
            world.post(End())
        case "gone" if world.at.seen is not None:
            world.post(Gone())
        case "wish":
            world.post(Down())
        case _:
            return False
    return True


def promises(world: World) -> None:
    at = world.at
    calm = not at.held and at.phase not in CALLING
    assert at.is_up == calm
    if at.held or at.phase in CALLING:
        assert world.armed or at.up_for, "nobody could ring"
    if (world.live or world.held) and at.seen is not None and not calm:
        assert at.up_for or at.phase in CALLING | {Phase.STUCK}, "somebody waits, and it does not come up"
    if at.phase in CALLING:
        assert len(world.calls) == 1
    else:
        assert not world.calls
    if at.phase is Phase.RESTING:
        assert at.wished is None or at.wished.rule is not None, "an operator's wish is remembered, and never answered"
    if at.phase is Phase.STUCK:
        assert at.due_s is not None, "never tried again"
    if at.is_up and at.phase is Phase.RESTING:
        assert not world.really, "forgotten in a stage"
        assert not world.armed


def copied(world: World) -> World:
    return replace(
        world, calls=list(world.calls), arms=list(world.arms), really=list(world.really), log=[], at=world.at
    )


def key(world: World) -> object:
    """Without what only counts: numbers, times."""
    at = world.at
    return (
        at.phase,
        tuple(each.stage for each in at.held),
        at.entering and at.entering.stage,
        bool(at.up_for),
        bool(at.wished),
        at.ending,
        min(at.retries, 2),
        tuple(at.passed),
        tuple(at.failures),
        at.seen is None,
        world.live,
        bool(world.held),
        tuple(world.really),
        world.armed,
        bool(world.arms),
        len(world.calls),
    )


def test_every_order_of_events_in_a_small_world():
    """Two stages, every interleaving of everything that can happen, to every state that can be reached."""
    start = World(active_s=1000.0, rules=(SLEEP, STOP))
    start.see()
    known, ahead, steps = {key(start)}, [start], 0
    while ahead:
        world = ahead.pop()
        for what in EVENTS:
            after = copied(world)
            if not happen(after, what):
                continue
            steps += 1
            promises(after)
            if key(after) not in known:
                known.add(key(after))
                ahead.append(after)
                last = copied(after)
                last.post(End())
                last.settle(seconds=FAR_S if last.at.phase is Phase.STUCK else 0)
                last.settle(seconds=2 * ladder.LONGEST_RETRY_S)
                assert last.at.is_up, f"stuck after {what}"
                assert not last.really
    print(f"{len(known)} states, {steps} steps")
    assert len(known) > 300


class AnyOrder(RuleBasedStateMachine):
    """Longer stories than the exhaustive ones, with three stages, late answers and odd times."""

    @initialize(work=st.booleans())
    def begin(self, work):
        kind = "work" if work else "connection"
        self.world = World(active_s=1000.0, rules=tuple(replace(each, wake_on=kind) for each in RULES))
        self.world.see()

    @rule(what=st.sampled_from(EVENTS))
    def something(self, what):
        happen(self.world, what)

    @rule(seconds=st.floats(0, 400))
    def time(self, seconds):
        self.world.tick(seconds)

    @rule(how=st.sampled_from(["later", "never", "fail"]))
    @precondition(lambda self: self.world.calls)
    def goes_wrong(self, how):
        self.world.end_call(how)

    @rule(back=st.integers(1, 5), kind=st.sampled_from([Entered, Left]))
    def late(self, back, kind):
        """The answer to a call that is over changes nothing."""
        before = self.world.at
        self.world.post(kind(before.call - back))
        assert self.world.at == before

    @rule()
    def parks_or_wakes(self):
        self.world.parked = not self.world.parked
        self.world.see()

    @rule(rules=st.sampled_from([RULES, (SLEEP,), (STOP,), ()]))
    def reloads(self, rules):
        self.world.rules = rules
        self.world.post(Tick())

    @invariant()
    def keeps_its_promises(self):
        if hasattr(self, "world") and all(each.wake_on == "connection" for each in self.world.at.held):
            promises(self.world)

    def teardown(self):
        if hasattr(self, "world"):
            world = self.world
            world.post(End())
            world.settle(seconds=2 * ladder.LONGEST_RETRY_S + ladder.ANSWER_S)
            assert world.at.is_up
            assert not world.really


AnyOrder.TestCase.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
test_any_order = AnyOrder.TestCase
