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
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from functools import partial

from memscaler.core import governor
from memscaler.core.errors import MemscalerError
from memscaler.core.model import (
    SECOND_NS,
    Action,
    Alarm,
    Arm,
    Counters,
    Doubt,
    Hold,
    LeverResult,
    Look,
    Observation,
    Outcome,
    Park,
    Phase,
    Reconcile,
    Stop,
    Surveyed,
    Unhold,
    Wake,
)
from memscaler.core.snapshot import Snapshot
from memscaler.daemon.discovery import Found
from memscaler.daemon.guardian import START_TIMEOUT_S, Guardian
from memscaler.daemon.mailbox import Mailbox
from memscaler.daemon.notify import Notifier
from memscaler.daemon.record import Recorder
from memscaler.daemon.scout import LookFailed, Scout, WatchesFound
from memscaler.daemon.server_word import ServerSpoke
from memscaler.daemon.watching import Watching
from memscaler.gpu.actuator import Actuator, hand_over
from memscaler.gpu.reports import Note, Report, Sample, WakeTiming
from memscaler.kernel.doorbell import Door, Doorbell
from memscaler.kernel.ledger import Ledger

GUARDIAN_HOLD = "guardian"
FOR_EVER_NS = 2**62
GUARDIAN_PAUSE_NS = SECOND_NS
THINK_AFTER_S = 0.002
STOP_BUDGET_NS = 900_000_000  # of the second in which we promise to be gone
CHECK_AFTER_NS = 3 * SECOND_NS  # an order's driver call has begun by then: is it overdue?
JOIN_S = 0.2
SAMPLE_AFTER_NS = 2 * SECOND_NS
HEAL_EVERY_NS = 5 * SECOND_NS
POLL_NS = 20_000_000  # while a GPU is parked and the kernel cannot ring (before Linux 5.8)
LISTEN_EVERY_NS = 2 * SECOND_NS  # see kernel/traffic.py: what is said in between counts as one
SNAPSHOT_WAIT_NS = 250_000_000
SNAPSHOT_FRESH_NS = SECOND_NS


@dataclass(frozen=True, slots=True)
class SnapshotWanted:
    """Another thread wants to know everything; the answer goes into the future."""

    answer: Future[Snapshot]


@dataclass(frozen=True, slots=True)
class StopWanted:
    """A signal (or a failure elsewhere) asks us to end."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the loop connects. unmanaged: GPU -> why no lever works on it; start_guardian None: a dry run needs none."""

    watching: Watching
    unmanaged: Mapping[str, str]
    ledger: Ledger
    actuators: Mapping[str, Actuator]
    doors: Mapping[str, Door]
    recorder: Recorder
    mailbox: Mailbox
    notifier: Notifier
    scout: Scout
    start_guardian: Callable[[], Guardian] | None
    sample_every_ns: int


class Loop:
    """Composed by main.py; run() returns when memscaler ends: True if every GPU is known to be awake."""

    def __init__(self, parts: Parts) -> None:
        self._watching = parts.watching
        self._doors = parts.doors
        self._scout = parts.scout
        self._policy = parts.watching.policy()
        self._ledger = parts.ledger
        self._actuators = parts.actuators
        self._recorder = parts.recorder
        self._mailbox = parts.mailbox
        self._notifier = parts.notifier
        self._start_guardian = parts.start_guardian
        self._sample_every_ns = parts.sample_every_ns
        fds = parts.ledger.attachment.fds
        self._doorbell = Doorbell(fds["doorbell"]) if parts.ledger.attachment.rings else None
        self._guardian = parts.start_guardian() if parts.start_guardian else None
        self._epoll = select.epoll()
        now_ns = time.monotonic_ns()
        left_behind = [uuid for uuid, actuator in parts.actuators.items() if actuator.left_behind]
        self._state = governor.initial(self._policy, now_ns, parts.unmanaged, left_behind)
        self._seen: deque[Observation] = deque()
        self._ready_wakes: Sequence[tuple[tuple[int, ...], Wake]] = ()
        self._listens = False
        self._wedged: dict[str, int] = {}  # GPU -> deadline of the driver call that is known to hang
        self._wanted: list[tuple[int, int, Future[Snapshot]]] = []  # (samples from, answer by, for whom)
        # When to do what; 0: not at all.
        self._deadline_ns = now_ns
        self._sample_due_ns = now_ns
        self._heartbeat_due_ns = now_ns
        self._check_due_ns = 0
        self._listen_due_ns = 0
        self._healed_ns = 0
        self._guardian_due_ns = 0
        self._guardian_started_ns = 0
        self._stop_by_ns = 0

    # ---- life -----------------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """Govern until told to stop."""
        if self._doorbell is not None:
            self._epoll.register(self._doorbell.fd, 0)
        self._epoll.register(self._mailbox.fd, select.EPOLLIN)
        if self._guardian is not None:
            if not self._guardian.wait_ready(START_TIMEOUT_S):
                raise MemscalerError("the guardian process does not start", hint="see the log above")
            self._recorder.guardian_ready(self._guardian.pid)
            self._epoll.register(self._guardian.pidfd, select.EPOLLIN)
        self._mind_signals()
        self._follow_watches()
        self._scout.start()
        self._note_states(time.monotonic_ns())
        self._recorder.started()
        self._notifier.send("READY=1")
        while not self._ended():
            self._turn()
        return self._leave()

    def _mind_signals(self) -> None:
        """End well when asked to, and never be stopped: a stopped governor could not wake anything."""
        # A signal that comes just before epoll_wait would otherwise be handled after it.
        self._signal_pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._signal_pipe[1], warn_on_full_buffer=False)
        self._epoll.register(self._signal_pipe[0], select.EPOLLIN)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, lambda got, _: self._mailbox.put(StopWanted(signal.Signals(got).name)))
        for number in (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
            signal.signal(number, signal.SIG_IGN)

    def _ended(self) -> bool:
        if not self._stop_by_ns:
            return False
        stopped = all(gpu.phase is Phase.STOPPED for gpu in self._state.gpus.values())
        return stopped or time.monotonic_ns() >= self._stop_by_ns

    def _leave(self) -> bool:
        self._notifier.send("STOPPING=1")
        self._scout.end()
        left = [uuid for uuid, gpu in self._state.gpus.items() if gpu.phase is not Phase.STOPPED]
        for uuid in left:
            self._recorder.left_parked(uuid)
        if self._guardian is not None:
            self._guardian.close() if left else self._guardian.dismiss()
        for actuator in self._actuators.values():
            actuator.close()
        # One that hangs in the driver would make closing the driver hang too.
        return not left and all(actuator.join(JOIN_S) for actuator in self._actuators.values())

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
        if self._guardian is not None and self._guardian.pidfd in ready:
            self._guardian_died()
        elif self._guardian is not None and self._guardian.fd in ready:
            self._guardian_spoke()
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
        others = (self._check_due_ns, self._listen_due_ns, self._guardian_due_ns, self._stop_by_ns)
        due += [at for at in others if at]
        if self._notifier.heartbeat_ns:
            due.append(self._heartbeat_due_ns)
        return min(due)

    def _timers(self, now_ns: int) -> None:
        if now_ns >= self._check_due_ns:
            self._check_due_ns = 0
        for uuid, due_ns in self._calls_due():
            call = self._actuators[uuid].overdue(now_ns)
            if call is not None:
                self._wedged[uuid] = due_ns
                reason = f"the driver does not return from {call}"
                self._recorder.error(uuid, "hung", reason)
                self._feed(LeverResult(uuid, self._state.gpus[uuid].seq, Outcome.WEDGED, reason))
        if self._listen_due_ns and now_ns >= self._listen_due_ns:
            self._listen_in()
        if self._doorbell is None and self._wake_who_rang(deaf_only=True):
            self._think()
        if now_ns >= self._deadline_ns:
            self._heal_overflow()
            self._listen_in()
            self._feed(Counters(self._ledger.readings()))
        if now_ns >= self._sample_due_ns:
            self._sample()
        if self._guardian_due_ns and now_ns >= self._guardian_due_ns:
            self._replace_guardian()
        self._answer_snapshots(now_ns)
        if self._notifier.heartbeat_ns and now_ns >= self._heartbeat_due_ns:
            self._heartbeat_due_ns = now_ns + self._notifier.heartbeat_ns
            self._notifier.send("WATCHDOG=1", "STATUS=" + self._recorder.summary(self._state))

    def _calls_due(self) -> list[tuple[str, int]]:
        """(GPU, deadline) of the driver calls under way, without those already known to hang."""
        due = ((uuid, actuator.call_due_ns()) for uuid, actuator in self._actuators.items())
        return [(uuid, at) for uuid, at in due if at is not None and self._wedged.get(uuid) != at]

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
        self._plan_listening()
        self._ready_wakes = governor.wakes_on_ring(self._state, self._policy)
        self._listen(wanted=not all(self._actuators[wake.gpu].listens for _, wake in self._ready_wakes))

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

    # ---- silence --------------------------------------------------------------------------------------------------

    def _listen_in(self) -> None:
        """Of GPUs that are up: what was said on open connections, in pieces short enough to tell touches from work."""
        self._listen_due_ns = 0
        down = self._down_slots()
        slots = [slot for slot in self._ledger.needs_listening() if slot not in down]
        if slots:
            self._ask_sockets(partial(self._ledger.listen_in, slots))

    def _down_slots(self) -> set[int]:
        """The watches that somebody relies on to be silent: what was said there, the data hook tells."""
        quiet = governor.DOWN | {Phase.ARMING}
        mine = [self._policy.gpus[uuid].watches for uuid, gpu in self._state.gpus.items() if gpu.phase in quiet]
        return set().union(*mine)

    def _resting_slots(self) -> set[int]:
        """The watches of GPUs that wait to be parked."""
        resting = (Phase.AWAKE, Phase.COOLING)
        gpus = [uuid for uuid, gpu in self._state.gpus.items() if gpu.phase in resting and not gpu.distrust]
        return set().union(*[self._policy.gpus[uuid].watches for uuid in gpus])

    def _plan_listening(self) -> None:
        """The data hook stays while it is needed; without it we look again now and then."""
        down = self._down_slots()
        if self._ledger.data_hook.attached and not down:
            self._ledger.stop_listening()
        if not self._listen_due_ns and self._resting_slots() & set(self._ledger.needs_listening()) - down:
            self._listen_due_ns = time.monotonic_ns() + LISTEN_EVERY_NS

    # ---- watches --------------------------------------------------------------------------------------------------

    def _found(self, founds: Sequence[Found]) -> None:
        if self._watching.apply(founds):
            self._follow_watches()
        for uuid in self._watching.restarted:
            self._feed(Doubt("a server begins to listen", uuid))
        self._watching.restarted.clear()
        self._scout.expect_more(wanted=self._watching.expects_more)

    def _follow_watches(self) -> None:
        """Let the governor and the doors know which watches there are now."""
        self._policy = self._watching.policy()
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

    def _rang_ns(self, uuid: str) -> int:
        """When the kernel rang for this GPU first; 0 if no doorbell of its watches is pressed."""
        slots = (self._ledger.counters.read(slot) for slot in self._policy.gpus[uuid].watches if slot >= 0)
        return min((slot.rang_ns for slot in slots if not slot.armed and slot.rang_ns), default=0)

    # ---- other threads --------------------------------------------------------------------------------------------

    def _read_mail(self) -> None:
        messages = self._mailbox.drain()
        if any(self._is_unasked(message) for message in messages):
            self._think()
        for message in messages:
            if isinstance(message, LeverResult | WakeTiming | Sample | Note):
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
                if message.reading.utilization_ratio and self._state.gpus[message.gpu].phase is Phase.PARKED:
                    self._feed(Doubt("the GPU works, although no watched connection is live", message.gpu))
            case Note(uuid, event, detail):
                self._recorder.note(uuid, event, detail)

    def _hear(self, message: object) -> None:
        match message:
            case SnapshotWanted(answer):
                self._want_snapshot(answer)
            case WatchesFound(founds):
                self._found(founds)
            case LookFailed(error):
                self._recorder.note("", "watch.look_failed", error)
            case ServerSpoke(slot, tells):
                self._ledger.server_tells(slot, tells=tells)
            case StopWanted(reason):
                self._stop(reason)

    def _is_unasked(self, message: object) -> bool:
        """True if an actuator has heard the doorbell and tells of the wake that the governor is about to ask for."""
        if not isinstance(message, WakeTiming | LeverResult):
            return False
        gpu = self._state.gpus[message.gpu]
        return gpu.phase in governor.DOWN and message.seq == gpu.seq + 1

    def _stop(self, reason: str) -> None:
        if not self._stop_by_ns:
            self._stop_by_ns = time.monotonic_ns() + STOP_BUDGET_NS
            self._recorder.stopping(reason)
            self._feed(Stop())

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
            snapshot = self._recorder.snapshot(self._state, self._ledger, now_ns)
            with contextlib.suppress(InvalidStateError):  # the asker has given up
                if snapshot is not None:
                    wanted[2].set_result(snapshot)

    # ---- the guardian ---------------------------------------------------------------------------------------------

    def _guardian_died(self) -> None:
        """Nobody would wake the GPUs if we died now: hold them awake until another guardian is ready."""
        if self._guardian is None:
            return
        for uuid in self._state.gpus:
            self._feed(Hold(uuid, GUARDIAN_HOLD, FOR_EVER_NS))
        self._epoll.unregister(self._guardian.pidfd)
        self._guardian.close()
        self._guardian = None
        self._recorder.guardian_died()
        now_ns = time.monotonic_ns()
        if now_ns - self._guardian_started_ns < GUARDIAN_PAUSE_NS:  # it dies at once: not in a circle
            self._guardian_due_ns = now_ns + GUARDIAN_PAUSE_NS
        else:
            self._replace_guardian()

    def _guardian_spoke(self) -> None:
        """It is ready, or it dies: then its pidfd says so too."""
        if self._guardian is None:
            return
        self._epoll.unregister(self._guardian.fd)
        if self._guardian.wait_ready(0):
            self._recorder.guardian_ready(self._guardian.pid)
            for uuid in self._state.gpus:
                self._feed(Unhold(uuid, GUARDIAN_HOLD))

    def _replace_guardian(self) -> None:
        self._guardian_due_ns = 0
        if self._start_guardian is None or self._stop_by_ns:
            return
        self._guardian_started_ns = time.monotonic_ns()
        try:
            self._guardian = self._start_guardian()
        except OSError as error:
            self._recorder.note("", "guardian.start_failed", str(error))
            self._guardian_due_ns = self._guardian_started_ns + GUARDIAN_PAUSE_NS
            return
        self._epoll.register(self._guardian.pidfd, select.EPOLLIN)
        self._epoll.register(self._guardian.fd, select.EPOLLIN)
