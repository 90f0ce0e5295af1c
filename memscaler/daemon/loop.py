"""The event loop: one thread that waits for the actuators' answers, requests, signals and the next deadline.

It connects the parts: what the edges see goes to the governor (governing.py), what operators ask is answered
(operators.py), and the end is begun by whoever wants it first (ending.py).
"""

from __future__ import annotations

import contextlib
import select
import time
from concurrent.futures import Future, InvalidStateError

from memscaler.core.errors import MemscalerError
from memscaler.core.gaps import Gap
from memscaler.core.model import FOR_EVER_NS, SECOND_NS, Doubt, Hold, LeverResult, Phase, Unhold
from memscaler.daemon import conflicts, rivals
from memscaler.daemon.answers import Answers, SnapshotWanted
from memscaler.daemon.arbiter import Arbiter
from memscaler.daemon.children import Children
from memscaler.daemon.ending import End, Ending
from memscaler.daemon.fleet import Fleet
from memscaler.daemon.governing import Governing
from memscaler.daemon.hours import Hours
from memscaler.daemon.keeper import Keeper
from memscaler.daemon.operators import Operators
from memscaler.daemon.parts import Parts
from memscaler.daemon.reload import Plan, Reloaded
from memscaler.daemon.requests import Asked, TiedEnded
from memscaler.daemon.roster import Followers, Roster
from memscaler.daemon.scout import LookFailed, WatchesFound
from memscaler.daemon.server_word import ServerSpoke
from memscaler.daemon.signals import ReloadSignal, Signals, StopWanted
from memscaler.daemon.sleeper import Sleeper
from memscaler.daemon.steering import Steering
from memscaler.daemon.teller import Teller
from memscaler.daemon.wall_clock import WallClock
from memscaler.gpu.reports import Note, Report, Sample, WakeTiming

GUARDIAN_HOLD = "guardian"
THINK_AFTER_S = 0.002
PROOF_NS = 5_000_000
LONGER_NS = 2 * SECOND_NS  # every GPU is awake, and only what sleeps deeper is waited for
JOIN_S = 0.2
LONG_JOIN_S = 6.0  # where nobody waits for the process to end: a read may take its time
SAMPLE_AFTER_NS = 2 * SECOND_NS


class Loop:
    """Composed by composition.py; run() returns when memscaler ends: True if every GPU is known to be awake.

    end: what is to follow then, and who waits for it.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._scout, self._ledger, self._recorder = parts.scout, parts.ledger, parts.recorder
        self._mailbox, self._notifier, self._conflicts = parts.mailbox, parts.notifier, parts.conflicts
        self._sample_every_ns = parts.sample_every_ns
        self._epoll = select.epoll()
        self._keeper = Keeper(parts.start_guardian, self._epoll, parts.recorder, self._alone, self._guarded)
        self._fleet = Fleet(parts.governed, parts.equip, parts.recorder)
        policy = parts.watching.policy()
        self._governing = Governing(
            parts.ledger, self._fleet, parts.recorder, policy, self._epoll, self._note_states, self._settled
        )
        feed = self._governing.feed
        self._hours = Hours(feed)
        self._steering = Steering(parts.leases, feed, lambda: self._governing.state, self._why_awake)
        self._wall = WallClock()
        around = parts.settings, self._epoll, self._governing, parts.watching, parts.recorder
        self._children = Children(
            Arbiter(parts.start_arbiter, *around, parts.urgent),
            Sleeper(parts.start_sleeper, *around, self._sample_soon),
        )
        followers = self._followers(parts)
        self._roster = Roster(self._governing, self._fleet, followers, self._follow_hours, self._still_alone)
        self.end = End(self._governing, self._fleet, self._children, self._keeper, parts.recorder)
        teller = Teller(self._governing, self._fleet, self._recorder, self._hours, self._steering, parts)
        self._answers = Answers(teller.snapshot, self._oldest_ns, self._read_all, self._governing.look)
        self._operators = Operators(parts, self._answers, teller, self._steering, self._children.sleeper, self.end)
        # When to do what; 0: not at all.
        self._sample_due_ns = self._tidy_due_ns = self._heartbeat_due_ns = time.monotonic_ns()

    def _followers(self, parts: Parts) -> Followers:
        return Followers(
            watching=parts.watching,
            scout=parts.scout,
            steering=self._steering,
            hours=self._hours,
            conflicts=parts.conflicts,
            recorder=parts.recorder,
            adaptive=parts.adaptive,
        )

    # ---- life -----------------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """Govern until told to stop. What is to follow then is `end.then`."""
        self._epoll.register(self._mailbox.fd, select.EPOLLIN)
        self._epoll.register(self._wall.fd, select.EPOLLIN)
        self._keeper.wait_ready()
        self._signals = Signals(self._mailbox.put)
        self._epoll.register(self._signals.fd, select.EPOLLIN)
        self._roster.follow_governed()
        self._scout.start()
        self._note_states(time.monotonic_ns())
        self._governing.learn(self._learn)  # whoever comes from now on ends a gap or begins one
        self._recorder.started()
        self._notifier.ready()
        self._children.begin()
        while not self.end.is_reached():
            self._turn()
        return self._leave()

    def _leave(self) -> bool:
        if self.end.then is Ending.STOP:
            self._notifier.stopping()
        all_let_go = self._children.close()
        self._scout.end()
        self._fleet.close()
        self._wall.close()
        self._answers.answer_all()
        end_s = time.monotonic() + (JOIN_S if self.end.then is Ending.STOP else LONG_JOIN_S)
        ended = self._fleet.join(end_s)
        if self.end.then is not Ending.STOP:
            self._scout.join(max(0.0, end_s - time.monotonic()))
        left = self.end.left_parked()
        for uuid in left:
            self._recorder.left_parked(uuid)
        self._keeper.leave(all_awake=not left and all_let_go)  # the guardian goes to work where anything may be left
        return not left and ended

    # ---- one turn -------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        wait_ns = self._next_ns() - time.monotonic_ns()
        ready = {fd for fd, _ in self._epoll.poll(max(0, wait_ns) / SECOND_NS)}
        if self._governing.rings(ready):
            if self._governing.is_waking:
                # The actuators' threads need the interpreter now. Their answer, or this time, wakes us again.
                ready |= {fd for fd, _ in self._epoll.poll(THINK_AFTER_S)}
            self._children.arbiter.rung()
            self._governing.think()
        if self._signals.fd in ready:
            self._signals.clear()
        if self._mailbox.fd in ready:
            self._read_mail()
        self._keeper.heed(ready)
        self._children.heed(ready)
        if self._wall.fd in ready:
            self._look_at_the_clock()
        self._timers(time.monotonic_ns())
        self._governing.learn(self._learn)
        if self._parts.adaptive.changed:
            self._parts.adaptive.changed = False
            self._roster.follow_idle_times()
        self._children.turn(time.monotonic_ns())
        if self.end.by_ns and not self._children.gone:
            self._notifier.longer(LONGER_NS)

    def _next_ns(self) -> int:
        due = [self._sample_due_ns, self._tidy_due_ns, *self._governing.due_ns(), *self._answers.due_ns()]
        due += [*self._fleet.look_at_calls_ns(self._governing.state), *self._children.due_ns]
        due += [at for at in (self._keeper.due_ns, self._steering.next_end_ns()) if at]
        if self._notifier.heartbeat_ns:
            due.append(self._heartbeat_due_ns)
        if self.end.by_ns:  # a proof is not reported
            due.append(time.monotonic_ns() + (LONGER_NS if self.end.gpus_are_done() else PROOF_NS))
        return min(due)

    def _timers(self, now_ns: int) -> None:
        for hung in self._fleet.hung(self._governing.state, now_ns):
            self._governing.feed(hung)
        self._governing.timers(now_ns)
        if now_ns >= self._tidy_due_ns:  # samples that somebody asks for put off the next sample, but not this
            self._tidy_due_ns = now_ns + self._sample_every_ns
            self._mend_hooks()
            self._steering.tidy()
            self._children.arbiter.look_for_it()
        if now_ns >= self._sample_due_ns:
            self._sample()
        if outdated := self._parts.outdated():
            self.end.begin(outdated, Ending.RESTART)
        if self._keeper.due_ns and now_ns >= self._keeper.due_ns:
            self._keeper.start_again()
        if 0 < self._steering.next_end_ns() <= time.monotonic_ns():  # what is over ends "now", which is after now_ns
            self._steering.end_what_is_over(now_ns)
        self._roster.let_go()
        self._answers.answer(now_ns)
        if self._notifier.heartbeat_ns and now_ns >= self._heartbeat_due_ns:
            self._heartbeat_due_ns = now_ns + self._notifier.heartbeat_ns
            self._notifier.alive(self._recorder.summary(self._governing.state))

    def _sample(self) -> None:
        self._sample_due_ns = time.monotonic_ns() + self._sample_every_ns
        self._governing.look()  # an awake GPU may have fallen quiet since the last look
        self._fleet.sample()

    def _read_all(self) -> None:
        """Somebody wants to see readings."""
        self._children.arbiter.read()
        self._sample()

    def _oldest_ns(self) -> int:
        return min(self._recorder.oldest_sample_ns(), self._children.arbiter.oldest_ns())

    def _mend_hooks(self) -> None:
        """Somebody may have detached what we attached: then connections may have come unseen."""
        for hook, problem in (("sockops", self._ledger.attachment.mend()), ("data", self._ledger.data_hook.mend())):
            if problem is not None:
                self._recorder.hook_lost(hook, problem)
                self._roster.follow_watches()  # without it the sockets are looked at more often
                self._governing.feed(Doubt(f"somebody detached the {hook} hook"))

    def _look_at_the_clock(self) -> None:
        """A time of day has come, the clock was set, or the machine has slept."""
        self._wall.read()
        slept_s = self._wall.slept_s()
        if slept_s:
            self._recorder.resumed(slept_s)
            self._steering.hold_on()
            self._scout.watches_changed()
            self._children.resumed(slept_s)
            self._governing.feed(Doubt("the machine was suspended"))  # drivers forget locks: wake, and park anew
        self._follow_hours()

    def _follow_hours(self) -> None:
        self._wall.wake_at(self._hours.look())
        self._roster.follow_watches()

    def _learn(self, gap: Gap) -> None:
        self._parts.adaptive.gap(gap)
        self._parts.gap(gap)

    # ---- the governor, and the guardian ---------------------------------------------------------------------------

    def _note_states(self, now_ns: int) -> None:
        """Power is sampled when a state begins, and once more when the card's one-second average has followed."""
        for uuid in self._recorder.states(self._governing.state, now_ns, self._governing.heard_ns):
            self._sample_soon(uuid)

    def _sample_soon(self, uuid: str) -> None:
        """Something about it has changed: now, and once more when its average has followed."""
        if uuid in self._governing.state.gpus:
            self._fleet[uuid].sample()
            self._sample_due_ns = min(self._sample_due_ns, time.monotonic_ns() + SAMPLE_AFTER_NS)

    def _settled(self) -> None:
        self._steering.look_at_parks(time.monotonic_ns())

    def _why_awake(self, uuid: str) -> str:
        """About a GPU that was to be parked and is not."""
        live = self._governing.live(uuid)
        busy = [f"{count} on port {port}" for port, count in live.items() if count]
        if busy:
            return f"connections at work: {', '.join(busy)}"
        return self._recorder.reason_of(uuid) if live else "no port that drives it is watched now"

    def _alone(self) -> None:
        for uuid in self._governing.state.gpus:
            self._governing.feed(Hold(uuid, GUARDIAN_HOLD, FOR_EVER_NS))

    def _still_alone(self) -> None:
        if self._keeper.alone:
            self._alone()

    def _guarded(self) -> None:
        for uuid in self._governing.state.gpus:
            self._governing.feed(Unhold(uuid, GUARDIAN_HOLD))

    # ---- other threads --------------------------------------------------------------------------------------------

    def _read_mail(self) -> None:
        messages = self._mailbox.drain()
        if any(self._governing.is_unasked(message) for message in messages):
            self._governing.think()
        for message in messages:
            if isinstance(message, LeverResult | WakeTiming | Sample | Note):
                if message.gpu in self._governing.state.gpus:
                    self._hear_actuator(message)
            else:
                self._hear(message)

    def _hear_actuator(self, message: Report) -> None:
        match message:
            case LeverResult():
                self._recorder.lever_answered(message)
                self._governing.feed(message)
            case WakeTiming():
                self._recorder.woke(message)
            case Sample():
                self._recorder.sampled(message.gpu, message.reading)
                self._judge(message)
            case Note(uuid, event, detail):
                self._recorder.note(uuid, event, detail)

    def _judge(self, sample: Sample) -> None:
        """What a sample gives away: somebody works on a parked GPU, or somebody has changed the clocks of one."""
        uuid, gpu = sample.gpu, self._governing.state.gpus[sample.gpu]
        if gpu.phase is Phase.PARKED and sample.reading.utilization_ratio:
            self._governing.feed(Doubt("the GPU works, although no watched connection is live", uuid))
        elif gpu.phase in (Phase.AWAKE, Phase.UNMANAGED) and not gpu.retries:
            clocks_mhz = self._fleet.governed[uuid].device.capabilities.memory_clocks_mhz
            if what := self._conflicts.judge_working(uuid, clocks_mhz, sample.reading):
                self._recorder.conflict(uuid, what, rivals.find)
        else:
            lever = self._fleet[uuid].parked_with if gpu.phase is Phase.PARKED else None
            conflict = self._conflicts.judge(uuid, lever, sample.reading)
            if conflict is not None and not self._parts.is_journaled(uuid):
                self._governing.feed(Doubt("the guardian has woken it", uuid))
            elif conflict is not None:
                self._governing.feed(Hold(uuid, conflicts.OWNER, conflict.until_ns))
                self._recorder.conflict(uuid, conflict.what, rivals.find)
        if self._conflicts.look_again_ns > time.monotonic_ns():
            self._sample_due_ns = min(self._sample_due_ns, self._conflicts.look_again_ns)

    def _hear(self, message: object) -> None:
        match message:
            case SnapshotWanted(answer):
                self._answers.want(answer)
            case Asked():
                self._operators.answer(message)
            case TiedEnded(lease_id):
                self._steering.tied_ended(lease_id)
            case WatchesFound():
                self._roster.found(message)
            case LookFailed(error):
                self._recorder.note("", "watch.look_failed", error)
            case ServerSpoke(slot, tells):
                self._ledger.silence.server_tells(slot, tells=tells)
            case ReloadSignal():
                self._notifier.reloading()
                self._parts.plan(Future())
            case Reloaded():
                self._reloaded(message)
            case StopWanted(reason):
                self.end.begin(reason, Ending.STOP)

    # ---- a new configuration ----------------------------------------------------------------------------------------

    def _reloaded(self, reloaded: Reloaded) -> None:
        error = reloaded.error
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
        """Apply a new configuration; why not, if it cannot be: then nothing was changed."""
        try:
            self.end.refuse_late()
            self._roster.apply(plan)
        except MemscalerError as error:
            return error
        self._sample_every_ns = round(plan.settings.sample_every_s * SECOND_NS)
        self._parts.applied(plan.settings)
        self._children.follow(plan.settings)
        return None
