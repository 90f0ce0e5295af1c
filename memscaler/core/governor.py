"""The governor: when a GPU parks and when it wakes. How quiet a GPU is says quiet.py, all else is here.

`step` is a function of what was known, what was seen and the time. It never raises, waits, logs or reads a clock, so
every promise can be tested by trying all orders of events (tests/core).

What may happen to one GPU (`*`: also on Doubt and Hold; tests/core/test_table.py walks every row):

    phase      seen                                   next       asks for
    ---------  -------------------------------------  ---------  ---------------------------------
    AWAKE      counters: nothing live                 COOLING    (look again at last activity + idle_after)
    COOLING    counters: something live               AWAKE      (look again in idle_after)
    COOLING    counters: quiet for idle_after         ARMING     Arm
    COOLING    hold                                   AWAKE      (held: not armed before it expires)
    COOLING    park now                               COOLING    (due at once)
    ARMING     counters: something live               AWAKE      (a doorbell may overtake the survey)
    ARMING     survey: quiet, every doorbell armed    PARKING    Park
    ARMING     survey: something live                 AWAKE
    ARMING     survey: a doorbell rang                COOLING
    ARMING     survey: something happened since       COOLING
    ARMING     no answer in time                      COOLING
    ARMING     doubt                                  COOLING    Reconcile
    ARMING     hold                                   AWAKE
    PARKING    applied                                PARKED     Look (the second look)
    PARKING    busy, nothing to gain                  COOLING
    PARKING    next lever                             WAKING     Wake (undoes what the lever did)
    PARKING    failed, wedged, lost                   WAKING     Wake, Alarm (in quarantine)
    PARKING  * something live, or a doorbell rang     WAKING     Wake
    PARKED   * something live, or a doorbell rang     WAKING     Wake
    PARKED     its last watch is gone                 WAKING     Wake
    PARKED     an earlier wake had no effect          WAKING     Wake, Alarm (never parked again)
    PARKED     a prepared wake is done                AWAKE      (it came before the ring; look at once)
    PARKED     look is due                            PARKED     Look
    PARKED     survey: quiet                          PARKED     (look again in parked_look)
    PARKED     no answer in time                      WAKING     Wake
    WAKING     woken                                  AWAKE      (look at once)
    WAKING     woken, but distrusted                  UNMANAGED
    WAKING     failed, wedged, lost                   WAKING     Alarm
    WAKING     an earlier wake had no effect          WAKING     Alarm (never parked again)
    WAKING     pause is over                          WAKING     Wake (again, for ever)
    AWAKE      the wake had no effect                 WAKING     Wake, Alarm (never parked again)
    UNMANAGED  the wake had no effect                 WAKING     Alarm (asked again after a pause)
    UNMANAGED  the quarantine is over                 AWAKE      (look at once)
    AWAKE      stop                                   STOPPED
    PARKED     stop                                   WAKING     Wake
    WAKING     woken, while stopping                  STOPPED

Three roles are never mixed. Counters tell when to look, the ledger (sock_diag) tells whether to park, the doorbell
wakes. While a GPU is awake nobody needs to be told when it falls quiet: a look once per idle_after finds the time of
the last activity in the counters, and the end of that idle period cannot have passed before the look.

A GPU whose driver has failed is in quarantine for retry_after, twice as long each further time and at most
LONGEST_QUARANTINE_NS. One that stayed down although the driver reported its wake done is not parked again at all.

What a client does is work or a touch (model.Reading). After work a GPU stays awake for idle_after, after a touch for
touch_cooldown only. Which of them a connection is shows when it ends: so while it lasts, the governor looks again after
touch_cooldown, and then after as long as the GPU has been awake already, up to idle_after.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from memscaler.core import quiet
from memscaler.core.model import (
    SECOND_NS,
    Action,
    Alarm,
    Arm,
    Counters,
    Doubt,
    GovernorState,
    GpuPolicy,
    GpuState,
    Hold,
    LeverResult,
    Look,
    Observation,
    Outcome,
    Park,
    Phase,
    Policy,
    Reading,
    Reconcile,
    Stop,
    Surveyed,
    Unhold,
    Wake,
)

CONNECTION, LEDGER = "connection", "ledger"  # reasons of a wake: a client, heard of by its ring or found by a survey
DOWN = frozenset({Phase.PARKING, Phase.PARKED})
PATIENCE = 3  # failed wakes in a row after which a GPU is not parked again
MAX_DOUBLINGS = 5  # of wake_retry_ns
LONGEST_QUARANTINE_NS = 3600 * SECOND_NS


@dataclass(frozen=True, slots=True)
class Step:
    """What `step` answers: the new state, what to do now, and when to come back at the latest."""

    state: GovernorState
    actions: tuple[Action, ...]
    deadline_ns: int


Answer = tuple[GpuState, tuple[Action, ...]]


def wakes_on_ring(state: GovernorState, policy: Policy) -> tuple[tuple[tuple[int, ...], Wake], ...]:
    """(watches, Wake): what `step` will ask for if one of these watches' doorbells has rung.

    Known beforehand, so that the loop can hand the wake over first and think later. Every GPU that is down is here.
    """
    return tuple(
        (tuple(policy.gpus[uuid].watches), Wake(uuid, gpu.seq + 1, CONNECTION))
        for uuid, gpu in state.gpus.items()
        if gpu.phase in DOWN
    )


def step(state: GovernorState, seen: Observation, now_ns: int, policy: Policy) -> Step:
    """Decide. Pure: the same arguments give the same answer."""
    gpus = dict(state.gpus)
    actions: tuple[Action, ...] = ()
    for uuid in _concerned(seen, state):
        gpus[uuid], wanted = _Governed(uuid, gpus[uuid], now_ns, policy, policy.gpus[uuid]).see(seen)
        actions += wanted
    reconcile_due_ns, reconciled_ns = state.reconcile_due_ns, state.reconciled_ns
    if isinstance(seen, Doubt):  # soon, but no faster than a survey can answer: a failed one is a doubt too
        reconcile_due_ns = min(reconcile_due_ns, max(now_ns, reconciled_ns + policy.survey_timeout_ns))
    if now_ns >= reconcile_due_ns and isinstance(seen, Counters | Doubt):
        actions += (Reconcile(seen.reason if isinstance(seen, Doubt) else "due"),)
        reconcile_due_ns, reconciled_ns = now_ns + policy.reconcile_every_ns, now_ns
    deadline_ns = min([reconcile_due_ns, *[gpu.due_ns for gpu in gpus.values() if gpu.due_ns]])
    return Step(GovernorState(gpus, reconcile_due_ns, reconciled_ns), actions, deadline_ns)


def _concerned(seen: Observation, state: GovernorState) -> Iterable[str]:
    """The GPUs that are to hear of it."""
    uuid = getattr(seen, "gpu", None)
    if uuid is None:
        return state.gpus
    return (uuid,) if uuid in state.gpus else ()


@dataclass(slots=True)  # not frozen: it lives for one step, and freezing costs a microsecond
class _Governed:
    """One GPU at one instant; each method answers with its next state and the actions wanted."""

    uuid: str
    gpu: GpuState
    now_ns: int
    policy: Policy
    mine: GpuPolicy

    def see(self, seen: Observation) -> Answer:
        match seen:
            case Counters(readings):
                return self.counters(readings)
            case Surveyed(_, seq, readings):
                return self.surveyed(readings) if seq == self.gpu.seq else self.nothing()
            case LeverResult():
                return self.lever(seen)
            case Doubt(reason):
                return self.doubt(reason)
            case Hold() | Unhold():
                return self.hold(seen)
            case _:
                return self.stop() if isinstance(seen, Stop) else self.park_now()

    # ---- what is seen ---------------------------------------------------------------------------------------------

    def counters(self, readings: Mapping[int, Reading]) -> Answer:
        due = 0 < self.gpu.due_ns <= self.now_ns
        match self.gpu.phase:
            case Phase.PARKING | Phase.PARKED if quiet.disturbed(self.mine.watches, readings):
                return self.wake(CONNECTION if quiet.rang(self.mine.watches, readings) else "no watch")
            case _ if due and self.gpu.asked:
                return self.doubt("survey not answered")
            case Phase.PARKED if due:
                return self.look()
            case Phase.AWAKE | Phase.COOLING | Phase.ARMING:
                return self.rest(readings)
            case Phase.WAKING | Phase.UNMANAGED if due:
                return self.retry()
            case _:
                return self.nothing()

    def surveyed(self, readings: Mapping[int, Reading]) -> Answer:
        match self.gpu.phase:
            case Phase.PARKING | Phase.PARKED if quiet.disturbed(self.mine.watches, readings):
                return self.wake(LEDGER)
            case Phase.PARKED:
                return self.enter(Phase.PARKED, due_ns=self.now_ns + self.policy.parked_look_ns), ()
            case Phase.ARMING if quiet.disturbed(self.mine.watches, readings):
                floor_ns = self.gpu.quiet_floor_ns if self.mine.touch_cooldown_ns else self.now_ns
                self.gpu = self.enter(Phase.COOLING, quiet_floor_ns=floor_ns)
                return self.rest(readings)
            case Phase.ARMING if self.now_ns < quiet.ready_ns(self.gpu, self.mine, readings):
                return self.rest(readings)
            case Phase.ARMING:
                seq = self.gpu.seq + 1
                asked = self.enter(Phase.PARKING, seq=seq, touched=True, answered=False, hurried_ns=0)
                return asked, (Park(self.uuid, seq),)
            case _:
                return self.nothing()

    def lever(self, result: LeverResult) -> Answer:
        if self.gpu.phase in DOWN and result.seq == self.gpu.seq + 1:  # a prepared wake: its answer outran the ring
            self.gpu = self.enter(Phase.WAKING, seq=result.seq, touched=True, for_client=True)
        if result.outcome is Outcome.NO_EFFECT:
            return self.in_vain(result)
        if result.seq != self.gpu.seq:
            return self.nothing()
        if self.gpu.phase is Phase.WAKING:
            return self.woken() if result.outcome is Outcome.WOKEN else self.wake_failed(result)
        return self.park_answered(result) if self.gpu.phase in DOWN else self.nothing()

    def doubt(self, reason: str) -> Answer:
        if self.gpu.phase in DOWN:
            return self.wake(reason)
        if self.gpu.phase is Phase.ARMING:
            due_ns = self.now_ns + self.mine.idle_after_ns
            return self.enter(Phase.COOLING, quiet_floor_ns=self.now_ns, due_ns=due_ns), ()
        return self.gpu.but(quiet_floor_ns=self.now_ns), ()

    def hold(self, lease: Hold | Unhold) -> Answer:
        expires_ns = lease.expires_ns if isinstance(lease, Hold) else 0
        holds = self.unexpired({**self.gpu.holds, lease.owner: expires_ns})
        changed = holds != self.gpu.holds
        self.gpu = self.gpu.but(holds=holds, hurried_ns=0 if holds else self.gpu.hurried_ns)
        if self.gpu.phase in DOWN and holds:
            return self.wake("hold")
        if self.gpu.phase in (Phase.ARMING, Phase.AWAKE, Phase.COOLING) and changed:
            return self.enter(Phase.AWAKE, due_ns=self.now_ns), ()
        return self.nothing()

    def park_now(self) -> Answer:
        if self.gpu.phase not in (Phase.AWAKE, Phase.COOLING) or self.unexpired(self.gpu.holds):
            return self.nothing()
        return self.gpu.but(hurried_ns=self.now_ns, due_ns=self.now_ns), ()

    def stop(self) -> Answer:
        self.gpu = self.gpu.but(stopping=True)
        return self.wake("stop") if self.gpu.touched else (self.enter(Phase.STOPPED), ())

    # ---- what follows ---------------------------------------------------------------------------------------------

    def nothing(self) -> Answer:
        return self.gpu, ()

    def enter(self, phase: Phase, **changes: object) -> GpuState:
        """The state after a change of phase; `due_ns` is 0 unless given, `since_ns` stays if the phase does."""
        since_ns = self.gpu.since_ns if phase is self.gpu.phase else self.now_ns
        changed = {"phase": phase, "since_ns": since_ns, "due_ns": 0, "asked": False, **changes}
        return self.gpu.but(**changed)

    def unexpired(self, holds: Mapping[str, int]) -> Mapping[str, int]:
        return {owner: at for owner, at in holds.items() if at > self.now_ns}

    def rest(self, readings: Mapping[int, Reading]) -> Answer:
        """Awake or cooling, as the counters say; arms once when the time has come."""
        holds = self.unexpired(self.gpu.holds)
        if holds != self.gpu.holds:
            self.gpu = self.gpu.but(holds=holds)
        if quiet.live(self.mine.watches, readings):
            due_ns = min([quiet.look_again_ns(self.gpu, self.mine, self.now_ns), *holds.values()])
            return self.enter(Phase.AWAKE, due_ns=due_ns, hurried_ns=0), ()
        if self.gpu.hurried_ns and quiet.last_seen_ns(self.mine.watches, readings) >= self.gpu.hurried_ns:
            self.gpu = self.gpu.but(hurried_ns=0)
        ready_ns = quiet.ready_ns(self.gpu, self.mine, readings)
        if self.now_ns < ready_ns:
            return self.enter(
                Phase.COOLING, since_ns=quiet.since_ns(self.gpu, self.mine, readings), due_ns=ready_ns
            ), ()
        if self.gpu.phase is Phase.ARMING:
            return self.nothing()
        seq = self.gpu.seq + 1
        due_ns = self.now_ns + self.policy.survey_timeout_ns
        return self.enter(Phase.ARMING, seq=seq, asked=True, due_ns=due_ns), (Arm(self.uuid, seq),)

    def look(self) -> Answer:
        due_ns = self.now_ns + self.policy.survey_timeout_ns
        return self.enter(Phase.PARKED, asked=True, due_ns=due_ns), (Look(self.uuid, self.gpu.seq),)

    def wake(self, reason: str, *alarms: Action) -> Answer:
        seq, for_client = self.gpu.seq + 1, reason in (CONNECTION, LEDGER)
        asked = self.enter(Phase.WAKING, seq=seq, touched=True, for_client=for_client)
        return asked, (Wake(self.uuid, seq, reason), *alarms)

    def woken(self) -> Answer:
        """Full speed again. A park that was not answered may have taken effect until now.

        What a client did is in the counters, where a touch can be told from work; any other reason to wake counts as
        work until now.
        """
        retries = self.gpu.retries if self.gpu.distrust else 0  # the next wake may be in vain again
        now_ns, before = self.now_ns, self.gpu
        self.gpu = before.but(
            touched=False,
            retries=retries,
            quiet_floor_ns=before.quiet_floor_ns if before.for_client and self.mine.touch_cooldown_ns else now_ns,
            parked_at_ns=before.parked_at_ns if before.answered else now_ns,
            answered=True,
        )
        if self.gpu.stopping:
            return self.enter(Phase.STOPPED), ()
        if self.gpu.distrust:
            return self.enter(Phase.UNMANAGED, due_ns=self.gpu.trusted_again_ns), ()
        return self.enter(Phase.AWAKE, due_ns=now_ns, alarmed=""), ()

    def wake_failed(self, result: LeverResult) -> Answer:
        """Ask again after a pause; the pauses grow up to a limit."""
        retries = self.gpu.retries + 1
        if result.outcome is Outcome.NO_EFFECT:
            self.distrust(_reason(result))
        elif result.outcome is not Outcome.FAILED or retries >= PATIENCE:
            self.quarantine(_reason(result))
        due_ns = self.now_ns + self.policy.wake_retry_ns * (1 << min(MAX_DOUBLINGS, retries - 1))
        alarms = self.alarm(f"wake failed: {_reason(result)}")
        return self.enter(Phase.WAKING, touched=True, retries=retries, due_ns=due_ns), alarms

    def in_vain(self, result: LeverResult) -> Answer:
        """A wake was reported done, but the clocks stay down: the first time ask again at once, then after pauses."""
        if self.gpu.phase is not Phase.WAKING and not self.gpu.retries:
            self.gpu = self.gpu.but(retries=1)
            self.distrust(_reason(result))
            return self.wake(_reason(result), *self.alarm(_reason(result)))
        if self.gpu.phase is not Phase.WAKING or result.seq == self.gpu.seq:
            return self.wake_failed(result)
        self.distrust(_reason(result))  # another wake is on its way
        alarms = self.alarm(_reason(result))
        return self.gpu, alarms

    def park_answered(self, result: LeverResult) -> Answer:
        match result.outcome:
            case Outcome.APPLIED | Outcome.VERIFIED if self.gpu.phase is Phase.PARKED:
                return self.gpu.but(failures=0) if result.outcome is Outcome.VERIFIED else self.gpu, ()
            case Outcome.APPLIED | Outcome.VERIFIED:
                self.gpu = self.enter(Phase.PARKED, parked_at_ns=self.now_ns, answered=True)
                return self.look()
            case Outcome.BUSY | Outcome.NOTHING_TO_GAIN if self.gpu.phase is Phase.PARKING:
                due_ns = self.now_ns + self.mine.idle_after_ns
                self.gpu = self.gpu.but(touched=False, answered=True, quiet_floor_ns=self.now_ns)
                return self.enter(Phase.COOLING, due_ns=due_ns), ()
            case Outcome.NEXT_LEVER:
                return self.wake(_reason(result))
            case _:
                self.quarantine(_reason(result))
                return self.wake(_reason(result), *self.alarm(_reason(result)))

    # ---- trust ----------------------------------------------------------------------------------------------------

    def distrust(self, reason: str) -> None:
        """Not to be parked again."""
        self.gpu = self.gpu.but(distrust=self.gpu.distrust or reason, trusted_again_ns=0)

    def quarantine(self, reason: str) -> None:
        """Not to be parked for a while."""
        if self.gpu.distrust:
            return
        failures = self.gpu.failures + 1
        pause_ns = min(self.mine.retry_after_ns << min(failures - 1, 30), LONGEST_QUARANTINE_NS)
        until_ns = self.now_ns + pause_ns
        self.gpu = self.gpu.but(distrust=reason, trusted_again_ns=until_ns, failures=failures)

    def retry(self) -> Answer:
        """A pause is over: that between two wakes, or a quarantine."""
        if self.gpu.phase is Phase.WAKING:
            return self.wake(self.gpu.distrust or "retry")
        return self.trust_again()

    def trust_again(self) -> Answer:
        self.gpu = self.gpu.but(distrust="", trusted_again_ns=0, retries=0, quiet_floor_ns=self.now_ns)
        return self.enter(Phase.AWAKE, due_ns=self.now_ns, alarmed=""), ()

    def alarm(self, reason: str) -> tuple[Action, ...]:
        """Once: an operator who has been told need not be told again by every retry."""
        if reason == self.gpu.alarmed:
            return ()
        self.gpu = self.gpu.but(alarmed=reason)
        return (Alarm(self.uuid, reason),)


def _reason(result: LeverResult) -> str:
    return result.reason or str(result.outcome)
