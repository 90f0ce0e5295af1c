"""The event loop: turns what the edges see into observations, and actions of the governor into calls of the edges.

One thread waits for the actuators' answers, signals, and the next deadline. When the doorbell rings, GPUs wake first
and the loop thinks later: the actuators of parked GPUs listen to the doorbell themselves and tell what they did
(docs/adr/0004). The loop listens only while an actuator does not, because its park is still under way; then it hands
the wake over and sleeps again, because the actuators' threads need the interpreter now.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import partial

from memscaler.config.schema import Settings
from memscaler.core import governor
from memscaler.core.errors import MemscalerError
from memscaler.core.model import (
    FOR_EVER_NS,
    SECOND_NS,
    Action,
    Alarm,
    Arm,
    Counters,
    Doubt,
    GovernorState,
    GpuPolicy,
    Hold,
    LeverResult,
    Look,
    Observation,
    Outcome,
    Park,
    Phase,
    Policy,
    Reconcile,
    Stop,
    Surveyed,
    Unhold,
    Wake,
)
from memscaler.core.snapshot import Intent, Released, Snapshot
from memscaler.daemon import conflicts, hours, rivals
from memscaler.daemon.conflicts import Conflicts
from memscaler.daemon.guardian import Guardian
from memscaler.daemon.hours import Hours
from memscaler.daemon.keeper import Keeper
from memscaler.daemon.leases import Leases
from memscaler.daemon.listening import Listening
from memscaler.daemon.mailbox import Mailbox
from memscaler.daemon.notify import Notifier
from memscaler.daemon.record import About, Recorder
from memscaler.daemon.reload import Plan, Reloaded
from memscaler.daemon.requests import Asked, Document, ReleaseWanted, ReloadWanted, Status, TiedEnded
from memscaler.daemon.scout import LookFailed, Scout, WatchesFound
from memscaler.daemon.server_word import ServerSpoke
from memscaler.daemon.steering import Steering
from memscaler.daemon.targets import Governed
from memscaler.daemon.wall_clock import WallClock
from memscaler.daemon.watching import Watching
from memscaler.gpu.actuator import Actuator, hand_over
from memscaler.gpu.capability import Choice
from memscaler.gpu.reports import Note, Report, Sample, WakeTiming
from memscaler.kernel.doorbell import Door, Doorbell
from memscaler.kernel.ledger import Ledger
from memscaler.observe import status

GUARDIAN_HOLD = "guardian"
HUNG_REMEDY = "see `dmesg | grep -i nvrm`; a driver that hangs for minutes is cured by a reboot"
THINK_AFTER_S = 0.002
STOP_BUDGET_NS = 900_000_000  # of the second in which we promise to be gone
CHECK_AFTER_NS = 3 * SECOND_NS  # an order's driver call has begun by then: is it overdue?
JOIN_S = 0.2
LONG_JOIN_S = 6.0  # where nobody waits for the process to end: a read may take its time
SAMPLE_AFTER_NS = 2 * SECOND_NS
HEAL_EVERY_NS = 5 * SECOND_NS
POLL_NS = 20_000_000  # while a GPU is parked and the kernel cannot ring (before Linux 5.8)
SNAPSHOT_WAIT_NS = 250_000_000
SNAPSHOT_FRESH_NS = SECOND_NS


class Ending(StrEnum):
    """What is to follow the end of the loop."""

    STOP = "stop"
    RELEASE = "release"  # let go of the driver, and wait
    RESTART = "restart"  # begin anew in this process


@dataclass(frozen=True, slots=True)
class SnapshotWanted:
    """Another thread wants to know everything; the answer goes into the future."""

    answer: Future[Snapshot]


@dataclass(frozen=True, slots=True)
class StopWanted:
    """A signal (or a failure elsewhere) asks us to end."""

    reason: str


@dataclass(frozen=True, slots=True)
class ReloadSignal:
    """SIGHUP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the loop connects. start_guardian None: a dry run needs none.

    governed: what to begin with; equip: makes the actuator of a GPU, and its door where the kernel can ring.
    plan: begins to read the configuration anew, and reports a Reloaded with this future.
    gpu_users: the pids that had a context on a GPU when that was last looked at.
    is_journaled: whether the journal says that a GPU is parked. applied: told the settings that a reload put in force.
    outdated: says why the driver's library has to be loaded anew, "" if it has not.
    """

    watching: Watching
    governed: Mapping[str, Governed]
    ledger: Ledger
    equip: Callable[[Governed], tuple[Actuator, Door | None]]
    recorder: Recorder
    mailbox: Mailbox
    notifier: Notifier
    scout: Scout
    leases: Leases
    conflicts: Conflicts
    start_guardian: Callable[[], Guardian] | None
    plan: Callable[[Future[Document]], None]
    gpu_users: Callable[[], Collection[int]]
    outdated: Callable[[], str]
    is_journaled: Callable[[str], bool]
    applied: Callable[[Settings], None]
    sample_every_ns: int


class Loop:
    """Composed by main.py; run() returns when memscaler ends: True if every GPU is known to be awake."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._watching = parts.watching
        self._scout = parts.scout
        self._ledger = parts.ledger
        self._recorder = parts.recorder
        self._mailbox = parts.mailbox
        self._notifier = parts.notifier
        self._conflicts = parts.conflicts
        self._sample_every_ns = parts.sample_every_ns
        self._doorbell = Doorbell(parts.ledger.attachment.fds["doorbell"]) if parts.ledger.attachment.rings else None
        self._epoll = select.epoll()
        self._keeper = Keeper(parts.start_guardian, self._epoll, parts.recorder, self._alone, self._guarded)
        self._governed = dict(parts.governed)
        self._actuators: dict[str, Actuator] = {}
        self._doors: dict[str, Door] = {}
        self._policy = parts.watching.policy()
        now_ns = time.monotonic_ns()
        self._state = GovernorState({}, now_ns + self._policy.reconcile_every_ns, now_ns)
        self._take_on({uuid: parts.equip(each) for uuid, each in self._governed.items()})
        self._listening = Listening(parts.ledger)
        self._steering = Steering(parts.leases, self._feed, lambda: self._state, self._why_awake)
        self._hours = Hours(self._feed)
        self._wall = WallClock()
        self._seen: deque[Observation] = deque()
        self._ready_wakes: Sequence[tuple[tuple[int, ...], Wake]] = ()
        self._listens = False
        self._wedged: dict[str, tuple[int, int]] = {}  # GPU -> (deadline, order) of a call that is known to hang
        self._wanted: list[tuple[int, int, Future[Snapshot]]] = []  # (samples from, answer by, for whom)
        self.ending = Ending.STOP
        self.asker: Future[Document] | None = None
        """Who waits for what follows the end."""
        self.released: Released | None = None
        """What the operator said who asked for a release."""
        # When to do what; 0: not at all.
        self._deadline_ns = now_ns
        self._sample_due_ns = now_ns
        self._heartbeat_due_ns = now_ns
        self._check_due_ns = 0
        self._healed_ns = 0
        self._stop_by_ns = 0

    # ---- life -----------------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """Govern until told to stop. What is to follow then is `ending`."""
        if self._doorbell is not None:
            self._epoll.register(self._doorbell.fd, 0)
        self._epoll.register(self._mailbox.fd, select.EPOLLIN)
        self._epoll.register(self._wall.fd, select.EPOLLIN)
        self._keeper.wait_ready()
        self._mind_signals()
        self._follow_governed()
        self._scout.start()
        self._note_states(time.monotonic_ns())
        self._recorder.started()
        self._notifier.ready()
        while not self._ended():
            self._turn()
        return self._leave()

    def _mind_signals(self) -> None:
        """End well when asked to, and never be stopped: a stopped governor could not wake anything."""
        # A signal that comes just before epoll_wait would otherwise be handled after it.
        self._signal_pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._signal_pipe[1], warn_on_full_buffer=False)
        self._epoll.register(self._signal_pipe[0], select.EPOLLIN)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda got, _: self._mailbox.put(StopWanted(signal.Signals(got).name)))
        if has_terminal():  # then a hang-up is one
            if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
                signal.signal(signal.SIGHUP, lambda *_: self._mailbox.put(StopWanted("SIGHUP")))
        else:
            signal.signal(signal.SIGHUP, lambda *_: self._mailbox.put(ReloadSignal()))
        for number in (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
            signal.signal(number, signal.SIG_IGN)

    def _ended(self) -> bool:
        if not self._stop_by_ns:
            return False
        stopped = all(gpu.phase is Phase.STOPPED for gpu in self._state.gpus.values())
        return stopped or time.monotonic_ns() >= self._stop_by_ns

    def _leave(self) -> bool:
        if self.ending is Ending.STOP:
            self._notifier.stopping()
        self._scout.end()
        left = [uuid for uuid, gpu in self._state.gpus.items() if gpu.phase is not Phase.STOPPED]
        for uuid in left:
            self._recorder.left_parked(uuid)
        self._keeper.leave(all_awake=not left)
        for actuator in self._actuators.values():
            actuator.close()
        self._wall.close()
        self._tell_who_waits()
        # One that hangs in the driver would make closing the driver hang too.
        end_s = time.monotonic() + (JOIN_S if self.ending is Ending.STOP else LONG_JOIN_S)
        ended = [actuator.join(max(0.0, end_s - time.monotonic())) for actuator in self._actuators.values()]
        if self.ending is not Ending.STOP:
            self._scout.join(max(0.0, end_s - time.monotonic()))
        return not left and all(ended)

    # ---- one turn -------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        wait_ns = self._next_ns() - time.monotonic_ns()
        ready = {fd for fd, _ in self._epoll.poll(max(0, wait_ns) / SECOND_NS)}
        if self._doorbell is not None and self._doorbell.fd in ready:
            self._wake_who_rang(deaf_only=True)
            # The actuators' threads need the interpreter now. Their answer, or this time, wakes us again.
            ready |= {fd for fd, _ in self._epoll.poll(THINK_AFTER_S)}
            self._think()
        if self._signal_pipe[0] in ready:
            os.read(self._signal_pipe[0], 64)  # its handler has run by now
        if self._mailbox.fd in ready:
            self._read_mail()
        self._keeper.heed(ready)
        if self._wall.fd in ready:
            self._look_at_the_clock()
        self._timers(time.monotonic_ns())

    def _think(self) -> None:
        """Tell the governor who rang. Silence first: a thread that misses its edge for that is told by the governor."""
        if self._doorbell is not None:
            self._doorbell.silence()
        self._feed(Counters(self._ledger.readings()))

    def _wake_who_rang(self, *, deaf_only: bool) -> bool:
        """Wake the GPUs whose watches rang; those whose actuators hear the doorbell themselves need no telling.

        True if there was one.
        """
        is_armed, rang = self._ledger.counters.is_armed, False
        for slots, wake in self._ready_wakes:
            actuator = self._actuators[wake.gpu]
            if not (deaf_only and actuator.listens) and not all(map(is_armed, slots)):
                actuator.wake(wake.seq)
                rang = True
        return rang

    def _next_ns(self) -> int:
        due = [self._deadline_ns, self._sample_due_ns, *(at for _, at in self._calls_due())]
        due += [by_ns for _, by_ns, _ in self._wanted]
        if self._doorbell is None and self._ready_wakes:
            due.append(time.monotonic_ns() + POLL_NS)
        others = (self._check_due_ns, self._listening.due_ns, self._keeper.due_ns, self._stop_by_ns)
        due += [at for at in (*others, self._steering.next_end_ns()) if at]
        if self._notifier.heartbeat_ns:
            due.append(self._heartbeat_due_ns)
        return min(due)

    def _timers(self, now_ns: int) -> None:
        if now_ns >= self._check_due_ns:
            self._check_due_ns = 0
        self._mark_hung_calls(now_ns)
        if self._listening.due_ns and now_ns >= self._listening.due_ns:
            self._listen_in()
        if self._doorbell is None and self._wake_who_rang(deaf_only=True):
            self._think()
        if now_ns >= self._deadline_ns:
            self._heal_overflow()
            self._listen_in()
            self._feed(Counters(self._ledger.readings()))
        if now_ns >= self._sample_due_ns:
            self._mend_hooks()
            self._steering.tidy()
            self._sample()
        if outdated := self._parts.outdated():
            self._stop(outdated, Ending.RESTART)
        if self._keeper.due_ns and now_ns >= self._keeper.due_ns:
            self._keeper.start_again()
        if 0 < self._steering.next_end_ns() <= now_ns:
            self._steering.end_what_is_over(now_ns)
        self._let_go()
        self._answer_snapshots(now_ns)
        if self._notifier.heartbeat_ns and now_ns >= self._heartbeat_due_ns:
            self._heartbeat_due_ns = now_ns + self._notifier.heartbeat_ns
            self._notifier.alive(self._recorder.summary(self._state))

    def _mark_hung_calls(self, now_ns: int) -> None:
        for uuid, due_ns in self._calls_due():
            call = self._actuators[uuid].overdue(now_ns)
            if call is not None:
                self._wedged[uuid] = due_ns, self._state.gpus[uuid].seq
                reason = f"the driver does not return from {call}"
                hung = LeverResult(uuid, self._state.gpus[uuid].seq, Outcome.WEDGED, reason, HUNG_REMEDY)
                self._recorder.lever_answered(hung)
                self._recorder.error(uuid, "hung", reason)
                self._feed(hung)

    def _calls_due(self) -> list[tuple[str, int]]:
        """(GPU, deadline) of the driver calls under way, without those already known to hang."""
        due = ((uuid, actuator.call_due_ns()) for uuid, actuator in self._actuators.items())
        seqs = {uuid: gpu.seq for uuid, gpu in self._state.gpus.items()}
        return [(uuid, at) for uuid, at in due if at is not None and self._wedged.get(uuid) != (at, seqs.get(uuid))]

    # ---- the governor ---------------------------------------------------------------------------------------------

    def _feed(self, seen: Observation) -> None:
        """One observation, and every observation that its actions lead to at once."""
        self._seen.append(seen)
        while self._seen:
            now_ns = time.monotonic_ns()
            step = governor.step(self._state, self._seen.popleft(), now_ns, self._policy)
            wakes = [action for action in step.actions if isinstance(action, Wake)]
            for wake in wakes:
                self._actuators[wake.gpu].wake(wake.seq)
            if wakes:
                hand_over()
            before, self._state, self._deadline_ns = self._state, step.state, step.deadline_ns
            for action in step.actions:
                self._do(action)
            if step.state is not before:
                self._note_states(now_ns)
        self._listening.plan(self._state, self._policy)
        self._ready_wakes = governor.wakes_on_ring(self._state, self._policy)
        self._listen(wanted=not all(self._actuators[wake.gpu].listens for _, wake in self._ready_wakes))
        self._steering.look_at_parks(time.monotonic_ns())

    def _listen(self, *, wanted: bool) -> None:
        """Hear the doorbell or not. It is silenced after some thought, hence by its edge."""
        if self._doorbell is not None and wanted is not self._listens:
            self._listens = wanted
            self._epoll.modify(self._doorbell.fd, select.EPOLLIN | select.EPOLLET if wanted else 0)

    def _note_states(self, now_ns: int) -> None:
        """Power is sampled when a state begins, and once more when the card's one-second average has followed."""
        for uuid in self._recorder.states(self._state, now_ns):
            self._actuators[uuid].sample()
            self._sample_due_ns = min(self._sample_due_ns, now_ns + SAMPLE_AFTER_NS)

    def _do(self, action: Action) -> None:
        match action:
            case Wake(uuid, seq, reason):
                self._recorder.wake_asked(uuid, seq, reason, self._rang_ns(uuid))
                self._check_due_ns = time.monotonic_ns() + CHECK_AFTER_NS
            case Park(uuid, seq):
                self._recorder.park_asked(uuid, seq)
                self._actuators[uuid].park(seq)
                self._check_due_ns = time.monotonic_ns() + CHECK_AFTER_NS
            case Arm(uuid, seq):
                # Arming a watch that is shared would make another GPU's ring unheard.
                if self._doorbell is not None:
                    self._doorbell.silence()
                self._ready_wakes = governor.wakes_on_ring(self._state, self._policy)  # as of this very step
                self._wake_who_rang(deaf_only=False)
                for slot in self._policy.gpus[uuid].watches:
                    self._ledger.counters.arm(slot)
                self._survey(uuid, seq, self._ledger.listen_for_data)
            case Look(uuid, seq):
                self._survey(uuid, seq, self._ledger.check_silence)
            case Reconcile(reason):
                if self._reconcile(self._ledger.watches, reason):
                    self._seen.append(Counters(self._ledger.readings()))
                else:
                    self._seen.append(Doubt("sock_diag does not answer"))
            case Alarm(uuid, reason):
                self._recorder.alarm(uuid, reason)

    def _survey(self, uuid: str, seq: int, about_silence: Callable[[Iterable[int]], None]) -> None:
        slots = self._policy.gpus[uuid].watches
        if self._reconcile(slots, "survey") and self._ask_sockets(partial(about_silence, slots)):
            readings = self._ledger.readings()
            self._seen += (Surveyed(uuid, seq, readings), Counters(readings))
        else:
            self._seen.append(Doubt("sock_diag does not answer", uuid))

    def _reconcile(self, slots: Iterable[int], reason: str) -> bool:
        """False if the ledger cannot be asked now: then nothing may be parked on its word."""

        def heal() -> None:
            for slot, corrections in self._ledger.reconcile_all(slots).items():
                self._recorder.corrected(self._ledger.watches[slot], corrections, reason)

        return self._ask_sockets(heal)

    def _ask_sockets(self, ask: Callable[[], None]) -> bool:
        try:
            ask()
        except OSError as error:
            self._recorder.ledger_failed(str(error))
            return False
        return True

    def _listen_in(self) -> None:
        """Of GPUs that are up: what was said on open connections."""
        slots = self._listening.slots(self._state, self._policy)
        if slots:
            self._ask_sockets(partial(self._ledger.listen_in, slots))

    # ---- GPUs -----------------------------------------------------------------------------------------------------

    def _take_on(self, equipped: Mapping[str, tuple[Actuator, Door | None]]) -> None:
        """From now on these GPUs are governed too."""
        for uuid, (actuator, door) in equipped.items():
            self._actuators[uuid] = actuator
            if door is not None:
                self._doors[uuid] = door
        self._state = governor.regroup(
            self._state,
            self._policy,
            time.monotonic_ns(),
            {uuid: each.choice.why for uuid, each in self._governed.items() if not each.choice.levers},
            [uuid for uuid in equipped if self._actuators[uuid].left_behind],
            [uuid for uuid, each in self._governed.items() if each.choice.unsure],
        )

    def _follow_governed(self) -> None:
        """Let everybody know which GPUs there are now, and what they go by."""
        mine = {uuid: each for uuid, each in self._governed.items() if uuid in self._watching.governed}
        self._hours.govern({uuid: each.settings for uuid, each in mine.items()})
        self._steering.govern({uuid: each.device for uuid, each in mine.items()})
        self._follow_hours()

    def _let_go(self) -> None:
        """GPUs that are not governed any more go when they are awake."""
        gone = [
            uuid
            for uuid, gpu in self._state.gpus.items()
            if gpu.phase is Phase.STOPPED and uuid not in self._watching.governed
        ]
        if not gone:
            return
        left = {uuid: mine for uuid, mine in self._policy.gpus.items() if uuid not in gone}
        self._policy = replace(self._policy, gpus=left)
        self._state = governor.regroup(self._state, self._policy, time.monotonic_ns())
        for uuid in gone:
            self._actuators.pop(uuid).close()
            self._doors.pop(uuid, None)
            self._recorder.let_go(uuid)
            self._conflicts.forget(uuid)
            del self._governed[uuid]
        self._follow_watches()

    def _apply(self, plan: Plan) -> None:
        """A new configuration, which was checked as a whole. GPUs that did not change do not notice."""
        gone = self._governed.keys() - plan.governed.keys()
        fresh = {uuid: each for uuid, each in plan.governed.items() if uuid not in self._governed}
        others = plan.other_levers(self._governed)
        equipped = {uuid: self._parts.equip(each) for uuid, each in fresh.items()}  # raises before anything is changed
        for uuid in gone:
            self._feed(Stop(uuid))
        before = dict(self._governed)
        self._governed |= plan.governed
        self._sample_every_ns = round(plan.settings.sample_every_s * SECOND_NS)
        self._conflicts.pause_s = plan.settings.conflict_pause_s
        self._recorder.take_on({uuid: each.device.identity for uuid, each in fresh.items()})
        self._watching.reconfigure(plan.settings, plan.governed, plan.named)
        self._scout.look_with(plan.look)
        self._watching.apply(plan.founds)
        self._policy = self._with_leaving(self._watching.policy())
        self._take_on(equipped)
        if self._keeper.alone:
            self._alone()
        for uuid in others:
            self._choose_anew(uuid, before[uuid].choice, plan.governed[uuid].choice)
            self._actuators[uuid].use(plan.governed[uuid].choice.levers, plan.governed[uuid].settings.lever)
            self._feed(Doubt("it has another lever now", uuid))
        self._follow_governed()

    def _choose_anew(self, uuid: str, before: Choice, after: Choice) -> None:
        """Another lever: a GPU may be parked that could not be, or the other way round."""
        if not after.levers or not before.levers:
            why = "" if after.levers else after.why
            self._state = governor.with_trust(self._state, uuid, why, time.monotonic_ns())

    def _with_leaving(self, policy: Policy) -> Policy:
        """GPUs on their way out are nobody's."""
        leaving = self._state.gpus.keys() - policy.gpus.keys()
        return replace(policy, gpus={**policy.gpus, **dict.fromkeys(leaving, GpuPolicy(frozenset()))})

    # ---- watches --------------------------------------------------------------------------------------------------

    def _found(self, found: WatchesFound) -> None:
        if found.generation != self._scout.generation:
            return  # looked for with settings that are no more
        if self._watching.apply(found.founds):
            self._follow_watches()
        for uuid in self._watching.restarted:
            self._feed(Doubt("a server begins to listen", uuid))
        self._watching.restarted.clear()
        self._scout.expect_more(wanted=self._watching.expects_more)

    def _follow_watches(self) -> None:
        """Let the governor and the doors know which watches there are now, and how long they may be quiet."""
        self._policy = self._with_leaving(self._watching.policy(self._hours.quiet))
        self._scout.watches_changed()
        for uuid, door in self._doors.items():
            door.watch(slot for slot in self._policy.gpus[uuid].watches if slot >= 0)
        self._feed(Counters(self._ledger.readings()))

    def _heal_overflow(self) -> None:
        """Not at every deadline: with a full set this takes most of a second."""
        full = [slot for slot, watch in self._ledger.watches.items() if self._ledger.overflowed(watch)]
        now_ns = time.monotonic_ns()
        if full and now_ns >= self._healed_ns + HEAL_EVERY_NS:
            self._reconcile(full, "overflow")
            self._healed_ns = now_ns

    def _mend_hooks(self) -> None:
        """Somebody may have detached what we attached: then connections may have come unseen."""
        for hook, problem in (("sockops", self._ledger.attachment.mend()), ("data", self._ledger.data_hook.mend())):
            if problem is not None:
                self._recorder.hook_lost(hook, problem)
                self._follow_watches()  # without it the sockets are looked at more often
                self._feed(Doubt(f"somebody detached the {hook} hook"))

    def _rang_ns(self, uuid: str) -> int:
        """When the kernel rang for this GPU first; 0 if no doorbell of its watches is pressed."""
        slots = (self._ledger.counters.read(slot) for slot in self._policy.gpus[uuid].watches if slot >= 0)
        return min((slot.rang_ns for slot in slots if not slot.armed and slot.rang_ns), default=0)

    # ---- time -----------------------------------------------------------------------------------------------------

    def _look_at_the_clock(self) -> None:
        """A time of day has come, the clock was set, or the machine has slept."""
        self._wall.read()
        slept_s = self._wall.slept_s()
        if slept_s:
            self._recorder.resumed(slept_s)
            self._steering.hold_on()
            self._scout.watches_changed()
            self._feed(Doubt("the machine was suspended"))  # drivers forget locks: wake, and park anew
        self._follow_hours()

    def _follow_hours(self) -> None:
        self._wall.wake_at(self._hours.look())
        self._follow_watches()

    # ---- other threads --------------------------------------------------------------------------------------------

    def _read_mail(self) -> None:
        messages = self._mailbox.drain()
        if any(self._is_unasked(message) for message in messages):
            self._think()
        for message in messages:
            if isinstance(message, LeverResult | WakeTiming | Sample | Note):
                if message.gpu in self._state.gpus:
                    self._hear_actuator(message)
            else:
                self._hear(message)

    def _hear_actuator(self, message: Report) -> None:
        match message:
            case LeverResult():
                self._recorder.lever_answered(message)
                self._feed(message)
            case WakeTiming():
                self._recorder.woke(message)
            case Sample():
                self._recorder.sampled(message.gpu, message.reading)
                self._judge(message)
            case Note(uuid, event, detail):
                self._recorder.note(uuid, event, detail)

    def _judge(self, sample: Sample) -> None:
        """What a sample gives away: somebody works on a parked GPU, or somebody has changed the clocks of one."""
        uuid, phase = sample.gpu, self._state.gpus[sample.gpu].phase
        if phase is Phase.PARKED and sample.reading.utilization_ratio:
            self._feed(Doubt("the GPU works, although no watched connection is live", uuid))
        elif phase in (Phase.AWAKE, Phase.UNMANAGED) and not self._state.gpus[uuid].retries:
            clocks_mhz = self._governed[uuid].device.capabilities.memory_clocks_mhz
            if what := self._conflicts.judge_working(uuid, clocks_mhz, sample.reading):
                self._recorder.conflict(uuid, what, rivals.find)
        else:
            lever = self._actuators[uuid].parked_with if phase is Phase.PARKED else None
            conflict = self._conflicts.judge(uuid, lever, sample.reading)
            if conflict is not None and not self._parts.is_journaled(uuid):
                self._feed(Doubt("the guardian has woken it", uuid))
            elif conflict is not None:
                self._feed(Hold(uuid, conflicts.OWNER, conflict.until_ns))
                self._recorder.conflict(uuid, conflict.what, rivals.find)
        if self._conflicts.look_again_ns > time.monotonic_ns():
            self._sample_due_ns = min(self._sample_due_ns, self._conflicts.look_again_ns)

    def _hear(self, message: object) -> None:
        match message:
            case SnapshotWanted(answer):
                self._want_snapshot(answer)
            case Asked():
                self._answer(message)
            case TiedEnded(lease_id):
                self._steering.tied_ended(lease_id)
            case WatchesFound():
                self._found(message)
            case LookFailed(error):
                self._recorder.note("", "watch.look_failed", error)
            case ServerSpoke(slot, tells):
                self._ledger.server_tells(slot, tells=tells)
            case ReloadSignal():
                self._notifier.reloading()
                self._parts.plan(Future())
            case Reloaded():
                self._reloaded(message)
            case StopWanted(reason):
                self._stop(reason, Ending.STOP)

    def _answer(self, asked: Asked) -> None:
        """A request over the control socket."""
        try:
            match asked.request:
                case Status():
                    self._want_snapshot(_then(asked.answer, partial(_tell, servers=self._parts.gpu_users())))
                case ReloadWanted():
                    self._parts.plan(asked.answer)
                case ReleaseWanted(reason):
                    self._release(Released(asked.peer.name, reason, time.time()), asked.answer)
                case steered:
                    self._steering.obey(steered, asked.peer, asked.answer)
        except MemscalerError as error:
            asked.answer.set_exception(error)

    def _release(self, released: Released, asker: Future[Document]) -> None:
        """Raise MemscalerError if the end has begun already."""
        if self._stop_by_ns:
            raise MemscalerError("memscaler is about to end")
        self.asker, self.released = asker, released
        why = f": {released.reason}" if released.reason else ""
        self._stop(f"released by {released.owner}{why}", Ending.RELEASE)

    def _reloaded(self, reloaded: Reloaded) -> None:
        error = reloaded.error
        if error is None and self._stop_by_ns:
            error = MemscalerError("memscaler is about to end")
        if error is None and reloaded.plan is not None:
            error = self._try(reloaded.plan)
        changes = () if reloaded.plan is None else reloaded.plan.changes
        self._recorder.reloaded(changes, error)
        self._notifier.ready()
        with contextlib.suppress(InvalidStateError):  # the asker has given up
            if error is not None:
                reloaded.answer.set_exception(error)
            else:
                reloaded.answer.set_result({"changes": list(changes)})

    def _try(self, plan: Plan) -> MemscalerError | None:
        """Apply a new configuration; why not, if it cannot be."""
        leaving = self._state.gpus.keys() - self._watching.governed
        if leaving & plan.governed.keys():
            return MemscalerError("a GPU that it wants is still being let go of", hint="try again when it is awake")
        try:
            self._apply(plan)
        except (OSError, RuntimeError) as error:  # no descriptor, no thread: nothing was changed
            return MemscalerError(f"another GPU cannot be taken on: {error}")
        self._parts.applied(plan.settings)
        return None

    def _is_unasked(self, message: object) -> bool:
        """True if an actuator has heard the doorbell and tells of the wake that the governor is about to ask for."""
        if not isinstance(message, WakeTiming | LeverResult) or message.gpu not in self._state.gpus:
            return False
        gpu = self._state.gpus[message.gpu]
        return gpu.phase in governor.DOWN and message.seq == gpu.seq + 1

    def _stop(self, reason: str, ending: Ending) -> None:
        if not self._stop_by_ns:
            self._stop_by_ns = time.monotonic_ns() + STOP_BUDGET_NS
            self.ending = ending
            self._keeper.replace_no_more()
            self._recorder.stopping(reason)
            self._feed(Stop())
        elif ending is Ending.STOP:  # a signal goes before what else was to follow
            self.ending = ending

    def _sample(self) -> None:
        self._sample_due_ns = time.monotonic_ns() + self._sample_every_ns
        self._feed(Counters(self._ledger.readings()))  # an awake GPU may have fallen quiet since the last look
        for actuator in self._actuators.values():
            actuator.sample()

    def _want_snapshot(self, answer: Future[Snapshot]) -> None:
        """A fresh sample first, unless there is one; a GPU that does not answer does not hold the others up."""
        now_ns = time.monotonic_ns()
        self._wanted.append((now_ns - SNAPSHOT_FRESH_NS, now_ns + SNAPSHOT_WAIT_NS, answer))
        if self._recorder.oldest_sample_ns() < now_ns - SNAPSHOT_FRESH_NS:
            self._sample()

    def _answer_snapshots(self, now_ns: int) -> None:
        oldest_ns = self._recorder.oldest_sample_ns() if self._wanted else 0
        ready = [wanted for wanted in self._wanted if oldest_ns >= wanted[0] or now_ns >= wanted[1]]
        if ready:
            self._feed(Counters(self._ledger.readings()))
        for wanted in ready:
            self._wanted.remove(wanted)
            at_ns = min(now_ns, time.monotonic_ns())
            paused = self._steering.paused()
            snapshot = self._recorder.snapshot(self._state, self._ledger, at_ns, self._about, paused)
            with contextlib.suppress(InvalidStateError):  # the asker has given up
                if snapshot is not None:
                    wanted[2].set_result(snapshot)

    def _about(self, uuid: str) -> About:
        actuator, gpu = self._actuators[uuid], self._state.gpus[uuid]
        lever = actuator.lever  # not the first choice if that turned out not to work
        holds = tuple(
            replace(hold, left_s=self._hours.left_s(uuid)) if hold.reason == hours.OWNER and not hold.id else hold
            for hold in self._steering.holds_of(uuid, gpu)
        )
        parked_with = actuator.parked_with if gpu.phase is Phase.PARKED else None
        intent = Intent(parked_with.name, parked_with.target) if parked_with is not None else None
        return About("none" if lever is None else lever.name, holds, intent)

    def _tell_who_waits(self) -> None:
        """The end: nobody waits any longer for a sample."""
        self._answer_snapshots(FOR_EVER_NS)

    def _why_awake(self, uuid: str) -> str:
        """About a GPU that was to be parked and is not."""
        slots = [self._ledger.watches[slot] for slot in self._policy.gpus[uuid].watches if slot >= 0]
        live = {watch.port: self._ledger.reading(watch).live for watch in slots}
        busy = [f"{count} on port {port}" for port, count in live.items() if count]
        if busy:
            return f"connections at work: {', '.join(busy)}"
        return self._recorder.reason_of(uuid) if slots else "no port that drives it is watched now"

    # ---- the guardian ---------------------------------------------------------------------------------------------

    def _alone(self) -> None:
        for uuid in self._state.gpus:
            self._feed(Hold(uuid, GUARDIAN_HOLD, FOR_EVER_NS))

    def _guarded(self) -> None:
        for uuid in self._state.gpus:
            self._feed(Unhold(uuid, GUARDIAN_HOLD))


def has_terminal() -> bool:
    """True if this process would get a SIGHUP because its terminal has gone."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _tell(snapshot: Snapshot, servers: Collection[int]) -> Document:
    """The status, with the rivals that run: a look at every process, nothing for the loop's thread."""
    found = [asdict(rival) for rival in rivals.recent(servers)]
    return {**status.document(snapshot), "rivals": found}


def _then(answer: Future[Document], make: Callable[[Snapshot], Document]) -> Future[Snapshot]:
    """A future whose result becomes the answer, made in a thread of its own."""

    def work(done: Future[Snapshot]) -> None:
        try:
            document = make(done.result())
        except Exception as error:  # noqa: BLE001  # whatever it is, somebody waits
            answer.set_exception(MemscalerError(f"{type(error).__name__}: {error}"))
        else:
            with contextlib.suppress(InvalidStateError):  # the asker has given up
                answer.set_result(document)

    def pass_on(done: Future[Snapshot]) -> None:
        threading.Thread(target=work, args=(done,), name="status", daemon=True).start()

    snapshot: Future[Snapshot] = Future()
    snapshot.add_done_callback(pass_on)
    return snapshot
