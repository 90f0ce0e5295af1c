"""A model of everything around the governor: kernel, ledger, doorbell, levers and clock, with all that can go wrong.

It checks the promises of design.md section 6 at every step; the tests only decide what happens next.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count

from memscaler.core.governor import DOWN, step, wakes_on_ring
from memscaler.core.membership import initial
from memscaler.core.model import (
    Action,
    Arm,
    Counters,
    Doubt,
    GovernorState,
    GpuState,
    Hold,
    LeverResult,
    Look,
    Observation,
    Outcome,
    Park,
    ParkNow,
    Phase,
    Policy,
    Reading,
    Reconcile,
    Stop,
    Surveyed,
    Unhold,
    Wake,
)

IDLE_ANSWERS = frozenset({Outcome.BUSY, Outcome.NOTHING_TO_GAIN})
RESTING = frozenset(Phase) - DOWN - {Phase.WAKING}
MOST_DOUBLINGS = 5


@dataclass
class Watch:
    """One port: what sock_diag knows (`ledger`), what the kernel program counted (`counted`), by connection."""

    ledger: set[int] = field(default_factory=set)
    counted: set[int] = field(default_factory=set)
    last_ns: int = 0
    last_touch_ns: int = 0
    armed: bool = False
    rings: int = 0  # doorbells on their way
    deaf: bool = False  # a doorbell was lost, and it was not armed again since


@dataclass
class Survey:
    """An Arm or a Look under way: armed (if an Arm), compared, answered."""

    asked: Arm | Look
    armed: bool
    answer: Surveyed | None = None
    saw: frozenset[int] = frozenset()


@dataclass
class Board:
    """One GPU and its actuator: commands in order, answers in order, possibly late."""

    down: bool = False
    queue: list[Park | Wake] = field(default_factory=list)
    replies: list[LeverResult] = field(default_factory=list)
    unverified: int | None = None  # number of the park whose effect may still be judged
    last_effect_ns: int | None = None
    lever: Park | Wake | None = None  # the last one asked for
    kinds: list[str] = field(default_factory=list)
    idle_answered: bool = False
    prepared: int | None = None  # number of the wake that its own thread carried out on a ring, before the order came


class World:
    """The state of the machine, and the daemon's part: feeding observations, keeping actions."""

    def __init__(self, policy: Policy, now_ns: int = 1_000_000) -> None:
        self.policy = policy
        self.now_ns = now_ns
        self.state = initial(policy, now_ns)
        self.deadline_ns = now_ns
        self.alone = {uuid: Policy({uuid: mine}, **_rest(policy)) for uuid, mine in policy.gpus.items()}
        self.solo = {uuid: initial(alone, now_ns) for uuid, alone in self.alone.items()}
        self.watches = {slot: Watch() for mine in policy.gpus.values() for slot in mine.watches}
        self.boards = {uuid: Board() for uuid in policy.gpus}
        self.surveys: list[Survey] = []
        self.reconciles = 0
        self.holds: dict[tuple[str, str], int] = {}
        self.unseen: dict[str, set[int]] = {uuid: set() for uuid in policy.gpus}
        self.lost: set[int] = set()
        self.stopped: set[str] = set()
        self.hurried: set[str] = set()
        self.names = count()

    # ---- the kernel -----------------------------------------------------------------------------------------------

    def open(self, slot: int, *, lost: bool) -> None:
        """A client connects; `lost`: the kernel skipped the program (tracepoint only)."""
        watch, name = self.watches[slot], next(self.names)
        watch.ledger.add(name)
        for uuid in self.sharing(slot):
            self.unseen[uuid].add(name)
        if lost or (watch.deaf and not watch.armed and not watch.rings):
            self.lost.add(name)
        if not lost:
            watch.counted.add(name)
            watch.last_touch_ns = self.now_ns
            if not self.touches:
                watch.last_ns = self.now_ns
            if watch.armed:
                watch.armed = False
                watch.rings += 1

    def close(self, slot: int, *, lost: bool, touch: bool = False) -> None:
        """The oldest connection ends; `lost`: the counters do not hear of it; `touch`: it was no work."""
        watch = self.watches[slot]
        name = min(watch.ledger)
        watch.ledger.remove(name)
        if not lost and name in watch.counted:
            watch.counted.remove(name)
            watch.last_touch_ns = self.now_ns
            if not (touch and self.touches):
                watch.last_ns = self.now_ns

    def lose_ring(self, slot: int) -> None:
        """A doorbell never arrives."""
        watch = self.watches[slot]
        watch.rings -= 1
        watch.deaf = True
        if not watch.rings:
            self.lost |= watch.ledger & set().union(*self.unseen.values())

    def read(self, slots: Iterable[int]) -> dict[int, Reading]:
        return {
            slot: Reading(len(watch.counted), watch.last_ns, watch.armed, watch.last_touch_ns)
            for slot, watch in self.watches.items()
            if slot in slots
        }

    @property
    def touches(self) -> bool:
        """True if a connection may turn out to have been a touch."""
        return any(gpu.touch_cooldown_ns for gpu in self.policy.gpus.values())

    def sharing(self, slot: int) -> list[str]:
        return [uuid for uuid, mine in self.policy.gpus.items() if slot in mine.watches]

    # ---- the daemon's hands ---------------------------------------------------------------------------------------

    def look_at_counters(self, unreadable: int | None = None) -> None:
        """What a deadline or a doorbell leads to."""
        readings = self.read(set(self.watches) - {unreadable})
        self.feed(Counters(readings))
        seen = set().union(*[self.watches[slot].counted for slot in readings])
        for uuid, mine in self.policy.gpus.items():
            self.unseen[uuid] -= seen
            if unreadable in mine.watches:
                assert self.state.gpus[uuid].phase not in DOWN
        self.check()

    def ring(self, slot: int) -> None:
        """A doorbell arrives."""
        self.watches[slot].rings -= 1
        self.look_at_counters()

    def further_survey(self, survey: Survey) -> None:
        """The next stage of an Arm or a Look; the last one delivers the answer, read earlier."""
        slots = self.policy.gpus[survey.asked.gpu].watches
        if not survey.armed:
            survey.armed = True
            for slot in slots:
                self.watches[slot].armed, self.watches[slot].deaf = True, False
        elif survey.answer is None:
            self.heal(slots)
            survey.answer = Surveyed(survey.asked.gpu, survey.asked.seq, self.read(slots))
            survey.saw = frozenset().union(*[self.watches[slot].ledger for slot in slots])
        else:
            self.surveys.remove(survey)
            current = survey.asked.seq == self.state.gpus[survey.asked.gpu].seq
            self.feed(survey.answer)
            if current:
                self.unseen[survey.asked.gpu] -= survey.saw
            self.check()

    def heal(self, slots: Iterable[int]) -> None:
        for slot in slots:
            self.watches[slot].counted = set(self.watches[slot].ledger)

    def reconcile(self) -> None:
        self.reconciles -= 1
        self.heal(self.watches)
        self.look_at_counters()

    def act(self, uuid: str, outcome: Outcome, *, in_vain: bool = False) -> None:
        """The actuator carries out the oldest command; whatever may have touched the GPU is taken to have done so."""
        board = self.boards[uuid]
        command = board.queue.pop(0)
        board.unverified = None
        if isinstance(command, Park) and outcome not in IDLE_ANSWERS:
            dwell_ns = self.policy.gpus[uuid].min_dwell_ns
            assert board.last_effect_ns is None or self.now_ns >= board.last_effect_ns + dwell_ns
            board.down, board.last_effect_ns = True, self.now_ns
            board.unverified = command.seq if outcome is Outcome.APPLIED else None
        if isinstance(command, Wake) and outcome is Outcome.WOKEN and not in_vain:
            board.down = False
        board.replies.append(LeverResult(uuid, command.seq, outcome, "" if command.seq % 2 else "because"))
        if isinstance(command, Wake) and outcome is Outcome.WOKEN and in_vain:
            board.replies.append(LeverResult(uuid, command.seq, Outcome.NO_EFFECT, "clocks stay down"))

    def hear(self, uuid: str) -> None:
        """The GPU's own thread hears the doorbell and carries out the prepared wake; the order will find it done."""
        board = self.boards[uuid]
        assert board.lever is not None
        (prepared,) = [wake for _, wake in wakes_on_ring(self.state, self.policy) if wake.gpu == uuid]
        assert prepared.seq == board.lever.seq + 1
        board.down, board.prepared, board.unverified = False, prepared.seq, None
        board.replies.append(LeverResult(uuid, prepared.seq, Outcome.WOKEN))

    def may_hear(self) -> list[str]:
        """The GPUs that are down with a doorbell on its way."""
        return [
            uuid
            for uuid, board in self.boards.items()
            if self.state.gpus[uuid].phase in DOWN
            and board.down
            and not board.queue
            and any(self.watches[slot].rings for slot in self.policy.gpus[uuid].watches)
        ]

    def verify(self, uuid: str, outcome: Outcome) -> None:
        """The effect of an applied park is judged."""
        board = self.boards[uuid]
        assert board.unverified is not None
        board.replies.append(LeverResult(uuid, board.unverified, outcome))
        board.unverified = None

    def reply(self, uuid: str) -> None:
        board, gpu = self.boards[uuid], self.state.gpus[uuid]
        result = board.replies.pop(0)
        if result.seq == gpu.seq and gpu.phase is Phase.PARKING and result.outcome in IDLE_ANSWERS:
            board.idle_answered = True
        self.feed(result)
        if result.outcome is Outcome.NO_EFFECT:
            assert self.state.gpus[uuid].distrust
        self.check()

    def tell(self, seen: Hold | Unhold | Doubt | ParkNow | Stop) -> None:
        """An operator, an edge or the end of the program speaks."""
        match seen:
            case Hold(gpu, owner, expires_ns):
                self.holds[gpu, owner] = expires_ns
            case Unhold(gpu, owner):
                self.holds.pop((gpu, owner), None)
            case ParkNow(gpu):
                self.hurried.add(gpu)
            case Stop(gpu):
                self.stopped |= set(self.boards) if gpu is None else {gpu}
            case Doubt():
                pass
        before = self.state
        self.feed(seen)
        if isinstance(seen, Hold) and seen.expires_ns <= self.now_ns and before.gpus[seen.gpu].phase in DOWN:
            assert self.state.gpus[seen.gpu].phase is before.gpus[seen.gpu].phase
        if isinstance(seen, Doubt):
            heard = self.state.gpus if seen.gpu is None else {seen.gpu} & set(self.state.gpus)
            assert all(self.state.gpus[uuid].phase not in DOWN | {Phase.ARMING} for uuid in heard)
        self.check()

    def feed(self, seen: Observation) -> None:
        """One step, and the same step for each GPU as if it were alone: it must not make a difference."""
        before = self.state
        answer = step(before, seen, self.now_ns, self.policy)
        self.state, self.deadline_ns = answer.state, answer.deadline_ns
        for action in answer.actions:
            self.keep(action, seen, before)
        if isinstance(seen, Counters):
            rang = {slot for slot, reading in seen.readings.items() if not reading.armed}
            prepared = [wake for watches, wake in wakes_on_ring(before, self.policy) if rang & set(watches)]
            assert set(prepared) <= set(answer.actions)
        for uuid, alone in self.alone.items():
            solo = step(self.solo[uuid], seen, self.now_ns, alone)
            self.solo[uuid] = solo.state
            assert solo.state.gpus[uuid] == self.state.gpus[uuid]
            assert _of(uuid, solo.actions) == _of(uuid, answer.actions)
            if before.gpus[uuid].phase is Phase.PARKING and self.state.gpus[uuid].phase is Phase.PARKED:
                assert Look(uuid, self.state.gpus[uuid].seq) in answer.actions

    def keep(self, action: Action, seen: Observation, before: GovernorState) -> None:
        match action:
            case Arm(uuid, _):
                assert uuid not in self.stopped
                assert not self.state.gpus[uuid].distrust
                self.boards[uuid].kinds.append("Arm")
                self.surveys.append(Survey(action, armed=False))
            case Look():
                self.surveys.append(Survey(action, armed=True))
            case Park(uuid, _):
                self.check_park(uuid, seen, before.gpus[uuid])
                self.ask(action)
            case Wake(uuid, _, _):
                queue = self.boards[uuid].queue
                queue[:] = [command for command in queue if isinstance(command, Wake)]
                self.ask(action)
            case Reconcile():
                self.reconciles += 1

    def ask(self, lever: Park | Wake) -> None:
        board = self.boards[lever.gpu]
        board.kinds.append(type(lever).__name__)
        board.lever, board.idle_answered = lever, False
        if lever.seq != board.prepared:
            board.queue.append(lever)

    # ---- the promises ---------------------------------------------------------------------------------------------

    def check_park(self, uuid: str, seen: Observation, before: GpuState) -> None:
        """A Park follows an Arm of the same GPU, a quiet survey with armed doorbells, and enough time."""
        mine, board = self.policy.gpus[uuid], self.boards[uuid]
        assert isinstance(seen, Surveyed)
        assert (seen.gpu, seen.seq) == (uuid, before.seq)
        assert board.kinds[-1] == "Arm"
        assert set(seen.readings) == mine.watches
        assert all(reading.live == 0 and reading.armed for reading in seen.readings.values())
        idle_ns, cooldown_ns = mine.idle_after_ns, mine.touch_cooldown_ns
        if before.hurried_ns:
            assert uuid in self.hurried
            self.hurried.remove(uuid)
            idle_ns = cooldown_ns = 0
        assert all(reading.last_activity_ns + idle_ns <= self.now_ns for reading in seen.readings.values())
        assert all(reading.last_touch_ns + cooldown_ns <= self.now_ns for reading in seen.readings.values())
        assert uuid not in self.stopped
        assert not before.distrust
        assert not any(gpu == uuid and at > self.now_ns for (gpu, _), at in self.holds.items())

    def check(self) -> None:
        """What holds after every step."""
        for uuid, gpu in self.state.gpus.items():
            self.check_never_slow(uuid, gpu)
            self.check_levers(uuid, gpu)
            self.check_times(gpu)
            if gpu.phase in DOWN:
                assert not any(name == uuid and at > self.now_ns for (name, _), at in self.holds.items())
        self.check_progress()

    def check_never_slow(self, uuid: str, gpu: GpuState) -> None:
        """A live connection means awake or waking, unless its doorbell is on its way or was lost."""
        if gpu.phase not in DOWN:
            return
        for slot in self.policy.gpus[uuid].watches:
            watch = self.watches[slot]
            assert watch.ledger <= self.unseen[uuid]
            assert watch.rings or watch.ledger <= self.lost

    def check_levers(self, uuid: str, gpu: GpuState) -> None:
        board = self.boards[uuid]
        in_vain = any(reply.outcome is Outcome.NO_EFFECT for reply in board.replies)
        if gpu.phase in RESTING:
            assert not board.queue
            assert not gpu.touched
            assert not board.down or in_vain
        if uuid in self.stopped:
            assert board.lever is None or isinstance(board.lever, Wake) or board.idle_answered
            assert gpu.phase in (Phase.WAKING, Phase.STOPPED, Phase.UNMANAGED)
        if gpu.phase is Phase.WAKING:
            asked = [command.seq for command in board.queue] + [reply.seq for reply in board.replies]
            longest_ns = self.policy.wake_retry_ns << MOST_DOUBLINGS
            assert gpu.seq in asked or 0 < gpu.due_ns <= self.now_ns + longest_ns

    def check_times(self, gpu: GpuState) -> None:
        """A parked GPU is looked at within its interval, an unanswered survey is noticed, and rest has an end."""
        match gpu.phase:
            case Phase.PARKED:
                look_ns = self.policy.survey_timeout_ns if gpu.asked else self.policy.parked_look_ns
                assert 0 < gpu.due_ns <= self.now_ns + look_ns
            case Phase.ARMING:
                assert gpu.asked
                assert 0 < gpu.due_ns <= self.now_ns + self.policy.survey_timeout_ns
            case Phase.AWAKE | Phase.COOLING:
                assert gpu.due_ns > 0

    def check_progress(self) -> None:
        """The counters fed at the deadline lead to a later one in a few steps: no busy loop."""
        state, deadline_ns = self.state, self.deadline_ns
        for _ in range(3):
            if deadline_ns > self.now_ns:
                break
            answer = step(state, Counters(self.read(self.watches)), self.now_ns, self.policy)
            state, deadline_ns = answer.state, answer.deadline_ns
        assert deadline_ns > self.now_ns

    # ---- good times -----------------------------------------------------------------------------------------------

    def calm_down(self) -> int:
        """Everybody leaves, everything works from now on. The answer: when every GPU must have come to rest."""
        for watch in self.watches.values():
            watch.ledger.clear()
            watch.counted.clear()
        self.surveys.clear()
        mine = self.policy.gpus.values()
        slack_ns = max(gpu.idle_after_ns * 2 + gpu.min_dwell_ns for gpu in mine) + self.policy.survey_timeout_ns
        quarantines = [gpu.trusted_again_ns for gpu in self.state.gpus.values()]
        start_ns = max([self.now_ns, *self.holds.values(), *quarantines])
        return start_ns + slack_ns + (self.policy.wake_retry_ns << MOST_DOUBLINGS) + 1

    def run_well(self, until_ns: int) -> None:
        """Let time pass with prompt surveys, levers that work and a daemon that keeps its deadlines."""
        while self.now_ns < until_ns:
            self.work_off()
            self.now_ns = max(self.now_ns, min(self.deadline_ns, until_ns))
            self.look_at_counters()
        self.work_off()

    def work_off(self) -> None:
        while self.work():
            pass

    def work(self) -> bool:
        """One thing that is pending, done well; False if there is nothing."""
        for slot, watch in self.watches.items():
            if watch.rings:
                self.ring(slot)
                return True
        for uuid, board in self.boards.items():
            if board.replies:
                self.reply(uuid)
                return True
            if board.queue:
                self.act(uuid, Outcome.APPLIED if isinstance(board.queue[0], Park) else Outcome.WOKEN)
                return True
        if self.surveys:
            self.further_survey(self.surveys[0])
            return True
        return False

    def run_toward(self, uuid: str, phase: Phase) -> None:
        """Let everybody leave and everything work until this GPU is in this phase, with all its answers pending."""
        for slot, watch in self.watches.items():
            while watch.ledger:
                self.close(slot, lost=False)
        for _ in range(100):
            gpu = self.state.gpus[uuid]
            if gpu.phase is phase or uuid in self.stopped or gpu.distrust:
                break
            if not self.work():
                self.now_ns = max(self.now_ns, self.deadline_ns)
                self.look_at_counters()

    def at_rest(self) -> bool:
        """Parked where it may be, at full speed where it may not."""
        for uuid, gpu in self.state.gpus.items():
            stays_up = uuid in self.stopped or gpu.distrust
            goal = {Phase.STOPPED, Phase.UNMANAGED} if stays_up else {Phase.PARKED}
            if gpu.phase not in goal or self.boards[uuid].down == bool(stays_up):
                return False
        return True


def _of(uuid: str, actions: tuple[Action, ...]) -> list[Action]:
    return [action for action in actions if getattr(action, "gpu", None) == uuid]


def _rest(policy: Policy) -> dict[str, int]:
    names = ("reconcile_every_ns", "parked_look_ns", "survey_timeout_ns", "wake_retry_ns")
    return {name: getattr(policy, name) for name in names}
