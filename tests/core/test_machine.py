"""Hypothesis drives the governor through everything that can happen, in any order."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from memscaler.core.model import Counters, Doubt, GpuPolicy, Hold, Outcome, Park, ParkNow, Phase, Policy, Stop, Unhold
from tests.core.world import World

LIKELY_PARK = (Outcome.APPLIED, Outcome.APPLIED, Outcome.VERIFIED, Outcome.BUSY, Outcome.NOTHING_TO_GAIN)
LIKELY_WAKE = (Outcome.WOKEN, Outcome.WOKEN, Outcome.WOKEN, Outcome.FAILED)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    slots = draw(st.integers(1, 4))
    cooldown_ns = draw(st.sampled_from([0, 0, 1, 3, 30]))
    gpus = {
        f"gpu{index}": GpuPolicy(
            draw(st.frozensets(st.integers(0, slots - 1), min_size=1)),
            draw(st.integers(1, 20)),
            draw(st.integers(0, 40)),
            cooldown_ns,
            draw(st.integers(1, 50)),
        )
        for index in range(draw(st.integers(1, 3)))
    }
    return Policy(
        gpus, draw(st.integers(20, 200)), draw(st.integers(10, 40)), draw(st.integers(1, 9)), draw(st.integers(1, 3))
    )


class Machine(RuleBasedStateMachine):
    """Any order of events; the world checks the promises after each."""

    world: World

    @initialize(policy=policies())
    def start(self, policy: Policy) -> None:
        self.world = World(policy)
        self.world.look_at_counters()

    def gpu(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.world.boards)), label="gpu")

    def slot(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.world.watches)), label="slot")

    # ---- connections ----------------------------------------------------------------------------------------------

    @rule(data=st.data(), lost=st.sampled_from([False, False, False, True]))
    def open(self, data: st.DataObject, lost: bool) -> None:
        self.world.open(self.slot(data), lost=lost)

    @precondition(lambda self: any(watch.ledger for watch in self.world.watches.values()))
    @rule(data=st.data(), lost=st.sampled_from([False, False, False, True]), touch=st.booleans())
    def close(self, data: st.DataObject, lost: bool, touch: bool) -> None:
        slots = [slot for slot, watch in self.world.watches.items() if watch.ledger]
        self.world.close(data.draw(st.sampled_from(slots), label="slot"), lost=lost, touch=touch)

    @precondition(lambda self: any(watch.rings for watch in self.world.watches.values()))
    @rule(data=st.data(), lost=st.sampled_from([False, False, True]))
    def doorbell(self, data: st.DataObject, lost: bool) -> None:
        slots = [slot for slot, watch in self.world.watches.items() if watch.rings]
        slot = data.draw(st.sampled_from(slots), label="slot")
        (self.world.lose_ring if lost else self.world.ring)(slot)

    @precondition(lambda self: self.world.may_hear())
    @rule(data=st.data())
    def hear(self, data: st.DataObject) -> None:
        self.world.hear(data.draw(st.sampled_from(self.world.may_hear()), label="gpu"))

    @rule(data=st.data())
    def unreadable(self, data: st.DataObject) -> None:
        self.world.look_at_counters(self.slot(data))

    # ---- time -----------------------------------------------------------------------------------------------------

    @rule(by_ns=st.integers(0, 100))
    def stall(self, by_ns: int) -> None:
        self.world.now_ns += by_ns

    @rule()
    def deadline(self) -> None:
        self.world.now_ns = max(self.world.now_ns, self.world.deadline_ns)
        self.world.look_at_counters()

    @rule(by_ns=st.integers(1, 60))
    def a_good_while(self, by_ns: int) -> None:
        self.world.run_well(self.world.now_ns + by_ns)

    @rule(data=st.data(), phase=st.sampled_from([Phase.ARMING, Phase.PARKING, Phase.PARKED, Phase.WAKING]))
    def toward(self, data: st.DataObject, phase: Phase) -> None:
        """Most that can go wrong goes wrong around a park."""
        self.world.run_toward(self.gpu(data), phase)

    @rule(data=st.data(), outcome=st.sampled_from(Outcome), phase=st.sampled_from([Phase.PARKING, Phase.WAKING]))
    def lever_answers(self, data: st.DataObject, outcome: Outcome, phase: Phase) -> None:
        """Every answer to a Park and to a Wake, however odd."""
        uuid = self.gpu(data)
        self.world.run_toward(uuid, Phase.PARKING)
        if phase is Phase.WAKING:
            self.world.tell(Doubt("overflow", uuid))
        if self.world.boards[uuid].queue:
            self.world.act(uuid, outcome)

    @rule(data=st.data(), stages=st.integers(0, 2), heard=st.booleans())
    def open_during_survey(self, data: st.DataObject, stages: int, heard: bool) -> None:
        """A client comes at each stage of a survey."""
        uuid = self.gpu(data)
        self.world.run_toward(uuid, Phase.ARMING)
        for survey in self.world.surveys[:1] * stages:
            if survey in self.world.surveys and survey.answer is None:
                self.world.further_survey(survey)
        slot = min(self.world.policy.gpus[uuid].watches)
        self.world.open(slot, lost=False)
        if heard and self.world.watches[slot].rings:
            self.world.ring(slot)

    # ---- answers --------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.world.surveys)
    @rule(data=st.data())
    def further_survey(self, data: st.DataObject) -> None:
        self.world.further_survey(data.draw(st.sampled_from(self.world.surveys), label="survey"))

    @precondition(lambda self: self.world.surveys)
    @rule(told=st.booleans())
    def survey_fails(self, told: bool) -> None:
        survey = self.world.surveys.pop(0)
        if told:
            self.world.tell(Doubt("survey failed", survey.asked.gpu))

    @precondition(lambda self: self.world.reconciles)
    @rule(fails=st.booleans())
    def reconcile(self, fails: bool) -> None:
        if fails:
            self.world.reconciles -= 1
            self.world.tell(Doubt("reconcile failed"))
        else:
            self.world.reconcile()

    @precondition(lambda self: any(board.queue for board in self.world.boards.values()))
    @rule(data=st.data(), odd=st.integers(0, 5), in_vain=st.sampled_from([False] * 5 + [True]), late=st.booleans())
    def act(self, data: st.DataObject, odd: int, in_vain: bool, late: bool) -> None:
        busy = [uuid for uuid, board in self.world.boards.items() if board.queue]
        uuid = data.draw(st.sampled_from(busy), label="gpu")
        likely = LIKELY_PARK if isinstance(self.world.boards[uuid].queue[0], Park) else LIKELY_WAKE
        outcome = data.draw(st.sampled_from(tuple(Outcome) if odd == 3 else likely), label="outcome")
        self.world.act(uuid, outcome, in_vain=in_vain)
        if not late:
            self.world.reply(uuid)

    @precondition(lambda self: any(board.unverified is not None for board in self.world.boards.values()))
    @rule(data=st.data())
    def verify(self, data: st.DataObject) -> None:
        waiting = [uuid for uuid, board in self.world.boards.items() if board.unverified is not None]
        outcome = data.draw(st.sampled_from([Outcome.VERIFIED, Outcome.VERIFIED, Outcome.NEXT_LEVER, Outcome.FAILED]))
        self.world.verify(data.draw(st.sampled_from(waiting), label="gpu"), outcome)

    @precondition(lambda self: any(board.replies for board in self.world.boards.values()))
    @rule(data=st.data())
    def reply(self, data: st.DataObject) -> None:
        waiting = [uuid for uuid, board in self.world.boards.items() if board.replies]
        self.world.reply(data.draw(st.sampled_from(waiting), label="gpu"))

    # ---- people ---------------------------------------------------------------------------------------------------

    @rule(data=st.data(), owner=st.sampled_from("xy"), for_ns=st.integers(-3, 40))
    def hold(self, data: st.DataObject, owner: str, for_ns: int) -> None:
        self.world.tell(Hold(self.gpu(data), owner, self.world.now_ns + for_ns))

    @rule(data=st.data(), owner=st.sampled_from("xy"))
    def unhold(self, data: st.DataObject, owner: str) -> None:
        self.world.tell(Unhold(self.gpu(data), owner))

    @rule(data=st.data(), everywhere=st.booleans(), rarely=st.integers(0, 3))
    def doubt(self, data: st.DataObject, everywhere: bool, rarely: int) -> None:
        if rarely == 2:
            self.world.tell(Doubt("overflow", None if everywhere else self.gpu(data)))

    @rule(data=st.data())
    def park_now(self, data: st.DataObject) -> None:
        self.world.tell(ParkNow(self.gpu(data)))

    @rule(data=st.data(), everywhere=st.booleans(), rarely=st.integers(0, 9))
    def stop(self, data: st.DataObject, everywhere: bool, rarely: int) -> None:
        if rarely == 7:
            self.world.tell(Stop(None if everywhere else self.gpu(data)))

    def teardown(self) -> None:
        """Whatever happened: once the world is calm, what may park parks, and the rest is at full speed."""
        if hasattr(self, "world"):
            limit_ns = self.world.calm_down()
            while self.world.now_ns < limit_ns and not self.world.at_rest():
                self.world.run_well(min(limit_ns, max(self.world.now_ns, self.world.deadline_ns) + 1))
            assert self.world.at_rest()


TestMachine = pytest.mark.timeout(600)(Machine.TestCase)
TestMachine.settings = settings(
    max_examples=200, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)


def quiet_world(**policy: int) -> World:
    world = World(Policy({"a": GpuPolicy(frozenset({0}), idle_after_ns=10, min_dwell_ns=0)}, **policy))
    world.look_at_counters()
    return world


def phase(world: World) -> Phase:
    return world.state.gpus["a"].phase


def test_parks_exactly_when_the_idle_time_is_over() -> None:
    """With prompt levers, a GPU parks idle_after after its last activity, not a nanosecond earlier or later."""
    world = quiet_world()
    world.now_ns += 3
    world.open(0, lost=False)
    world.now_ns += 4
    world.close(0, lost=False)
    last_ns = world.now_ns
    world.run_well(last_ns + 9)
    assert (phase(world), world.state.gpus["a"].since_ns) == (Phase.COOLING, last_ns)
    world.run_well(last_ns + 10)
    assert phase(world) is Phase.PARKED


def touched_world(**policy: int) -> World:
    mine = GpuPolicy(frozenset({0}), idle_after_ns=100, min_dwell_ns=0, touch_cooldown_ns=5)
    world = World(Policy({"a": mine}, **policy))
    world.look_at_counters()
    world.run_toward("a", Phase.PARKED)
    return world


def visit(world: World, for_ns: int, *, touch: bool) -> int:
    """A client comes, and goes after a while; the time at which it went."""
    world.open(0, lost=False)
    end_ns = world.now_ns + for_ns
    world.run_well(end_ns)
    world.now_ns = end_ns
    world.close(0, lost=False, touch=touch)
    return end_ns


@pytest.mark.parametrize("for_ns", [1, 4, 9])
def test_a_touch_wakes_only_for_a_moment(for_ns: int) -> None:
    """The GPU wakes for a touch, and is parked again a cooldown later, or twice the time that the touch took."""
    world = touched_world()
    start_ns = world.now_ns
    end_ns = visit(world, for_ns, touch=True)
    assert phase(world) is Phase.AWAKE
    world.run_well(max(end_ns + 5, start_ns + 2 * for_ns + 5) + 5)
    assert phase(world) is Phase.PARKED


def test_work_wakes_for_the_whole_idle_time() -> None:
    """Where touches are known, a connection that was none still keeps its GPU awake for idle_after."""
    world = touched_world()
    end_ns = visit(world, 3, touch=False)
    world.run_well(end_ns + 99)
    assert phase(world) is Phase.COOLING
    world.run_well(end_ns + 100)
    assert phase(world) is Phase.PARKED


def test_a_touch_does_not_shorten_what_work_began() -> None:
    """A health check during the idle time after work changes nothing."""
    world = touched_world()
    end_ns = visit(world, 3, touch=False)
    world.run_well(end_ns + 50)
    visit(world, 1, touch=True)
    world.run_well(end_ns + 99)
    assert phase(world) is Phase.COOLING
    world.run_well(end_ns + 100)
    assert phase(world) is Phase.PARKED


def test_a_long_connection_is_looked_at_ever_less() -> None:
    """While a connection lasts, the looks for its end become rare: doubling, up to one per idle_after."""
    world = touched_world(reconcile_every_ns=10**9)
    world.open(0, lost=False)
    start_ns, looks = world.now_ns, 0
    while world.now_ns < start_ns + 1000:
        world.work_off()
        world.now_ns = world.deadline_ns
        world.look_at_counters()
        looks += 1
    assert looks <= 6 + 10


def test_a_gpu_that_nobody_watches_stays_awake() -> None:
    """Without a watch nobody would tell when to wake it; one that loses its last watch is woken."""
    world = quiet_world()
    world.run_toward("a", Phase.PARKED)
    world.policy = Policy({"a": GpuPolicy(frozenset(), idle_after_ns=10)})
    world.alone = {"a": world.policy}
    world.look_at_counters()
    assert world.boards["a"].kinds[-1] == "Wake"
    world.run_well(world.now_ns + 1000)
    assert phase(world) is Phase.AWAKE


def test_sleeps_while_parked() -> None:
    """A parked GPU in a quiet world costs one step per look and one per reconciliation, and nothing else."""
    world = quiet_world(parked_look_ns=1000, reconcile_every_ns=10_000)
    world.run_well(world.now_ns + 20)
    start_ns, steps = world.now_ns, 0
    while world.now_ns < start_ns + 10_000:
        world.now_ns = world.deadline_ns
        world.look_at_counters()
        world.work_off()
        steps += 1
    assert steps <= 12


def test_a_failing_reconciliation_is_no_busy_loop() -> None:
    """A doubt raised by a failed reconciliation does not at once ask for another one."""
    world = quiet_world(survey_timeout_ns=5)
    world.tell(Doubt("overflow"))
    assert world.reconciles == 1
    for _ in range(20):
        world.tell(Doubt("reconcile failed"))
    assert world.reconciles == 1
    assert world.deadline_ns <= world.now_ns + 5
    world.now_ns += 5
    world.feed(Counters(world.read(world.watches)))
    assert world.reconciles == 2


def test_an_unanswered_park_counts_for_the_dwell() -> None:
    """A park that takes effect although its wake was on the way already is one: the dwell counts from that wake."""
    world = World(Policy({"a": GpuPolicy(frozenset({0}), idle_after_ns=10, min_dwell_ns=100)}))
    world.look_at_counters()
    world.run_toward("a", Phase.PARKING)
    world.act("a", Outcome.APPLIED)
    world.tell(Doubt("overflow"))
    world.run_toward("a", Phase.AWAKE)
    woken_ns = world.now_ns
    world.run_well(woken_ns + 99)
    assert phase(world) is Phase.COOLING
    world.run_well(woken_ns + 100)
    assert phase(world) is Phase.PARKED


def test_park_now_does_not_wait_but_looks() -> None:
    """An operator's order skips the timers and nothing else: it parks at once if all is quiet, and is forgotten if not."""
    world = quiet_world()
    world.now_ns += 3
    world.open(0, lost=False)
    world.look_at_counters()
    world.tell(ParkNow("a"))
    world.look_at_counters()
    assert phase(world) is Phase.AWAKE
    world.close(0, lost=False)
    world.look_at_counters()
    assert phase(world) is Phase.COOLING, "the order was for the moment at which it was given"
    world.now_ns += 1
    world.tell(ParkNow("a"))
    world.look_at_counters()
    world.work_off()
    assert phase(world) is Phase.PARKED


def test_park_now_is_not_kept_for_after_a_hold() -> None:
    """Refused because of a hold, the order is forgotten: the end of the hold does not park the GPU."""
    for order in (0, 1):
        world = World(Policy({"a": GpuPolicy(frozenset({0}), idle_after_ns=1000, min_dwell_ns=0)}))
        world.look_at_counters()
        world.now_ns += 1
        told = [Hold("a", "x", world.now_ns + 50), ParkNow("a")]
        for seen in told if order else reversed(told):
            world.tell(seen)
        world.now_ns += 2
        world.tell(Unhold("a", "x"))
        world.look_at_counters()
        world.work_off()
        assert phase(world) is Phase.COOLING


def test_a_quarantine_ends_and_doubles() -> None:
    """A driver that fails again and again is tried ever less; once a park was seen to work, all is forgotten."""
    world = World(Policy({"a": GpuPolicy(frozenset({0}), idle_after_ns=1, min_dwell_ns=0, retry_after_ns=100)}))
    world.look_at_counters()
    lengths_ns = []
    for _ in range(4):
        world.run_toward("a", Phase.PARKING)
        failed_ns = world.now_ns
        world.act("a", Outcome.LOST)
        world.reply("a")
        world.run_toward("a", Phase.UNMANAGED)
        world.work_off()
        assert phase(world) is Phase.UNMANAGED
        lengths_ns.append(world.state.gpus["a"].trusted_again_ns - failed_ns)
        world.now_ns = world.state.gpus["a"].trusted_again_ns
        world.look_at_counters()
        assert phase(world) is not Phase.UNMANAGED
    assert lengths_ns == [100, 200, 400, 800]
    world.run_toward("a", Phase.PARKED)
    world.verify("a", Outcome.VERIFIED)
    world.reply("a")
    assert world.state.gpus["a"].failures == 0


@pytest.mark.parametrize("rings_first", [True, False])
def test_a_prepared_wake_is_taken_in_either_order(rings_first: bool) -> None:
    """Whether the ring or the answer to the prepared wake arrives first, the GPU is awake, and parks again later."""
    world = quiet_world()
    world.run_toward("a", Phase.PARKED)
    world.open(0, lost=False)
    world.hear("a")
    if rings_first:
        world.ring(0)
    world.reply("a")
    assert phase(world) is Phase.AWAKE
    world.run_well(world.calm_down())
    assert world.at_rest()


def test_a_wake_starts_the_idle_time_anew() -> None:
    """Whatever woke a GPU, it is not parked again before idle_after is over."""
    world = quiet_world()
    world.run_toward("a", Phase.PARKED)
    world.tell(Doubt("overflow"))
    world.run_toward("a", Phase.AWAKE)
    woken_ns = world.now_ns
    world.run_well(woken_ns + 9)
    assert phase(world) is Phase.COOLING
    world.run_well(woken_ns + 10)
    assert phase(world) is Phase.PARKED


def test_an_open_overtakes_the_survey() -> None:
    """A doorbell that arrives before an older quiet survey does not let the GPU park under the connection."""
    world = quiet_world()
    world.run_toward("a", Phase.ARMING)
    (survey,) = world.surveys
    world.further_survey(survey)
    world.further_survey(survey)
    world.open(0, lost=False)
    world.ring(0)
    world.further_survey(survey)
    assert phase(world) is Phase.AWAKE
    assert not world.boards["a"].queue


def test_wakes_in_vain_are_paced() -> None:
    """A driver that reports success without effect is asked for ever, with pauses that grow up to the limit."""
    world = quiet_world(wake_retry_ns=3)
    world.run_toward("a", Phase.PARKED)
    world.tell(Doubt("overflow"))
    asked_ns = []
    for _ in range(12):
        asked_ns.append(world.now_ns)
        world.act("a", Outcome.WOKEN, in_vain=True)
        world.reply("a")
        world.reply("a")
        while not world.boards["a"].queue:
            world.now_ns = max(world.now_ns, world.deadline_ns)
            world.look_at_counters()
    pauses_ns = [after - before for before, after in pairwise(asked_ns)]
    assert pauses_ns == [0, 6, 12, 24, 48, 96, 96, 96, 96, 96, 96]
