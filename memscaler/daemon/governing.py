"""The governor's senses and hands: gives it what the edges see, and has the edges do what it decides.

When the doorbell rings, GPUs wake first and the governor thinks later: the actuators of parked GPUs listen to the
doorbell themselves and tell what they did (docs/adr/0004). The loop listens only while an actuator does not, because
its park is still under way; then it hands the wake over and sleeps again, because the actuators' threads need the
interpreter now.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

from memscaler.core import governor, membership
from memscaler.core.gaps import Gap
from memscaler.core.model import (
    SECOND_NS,
    Action,
    Alarm,
    Arm,
    Counters,
    Doubt,
    GovernorState,
    LeverResult,
    Look,
    Observation,
    Park,
    Policy,
    Reconcile,
    Surveyed,
    Wake,
)
from memscaler.daemon.fleet import Fleet
from memscaler.daemon.learning import Learning
from memscaler.daemon.listening import Listening
from memscaler.daemon.record import Recorder
from memscaler.gpu.actuator import hand_over
from memscaler.gpu.reports import WakeTiming
from memscaler.kernel.doorbell import Doorbell
from memscaler.kernel.ledger import Ledger

HEAL_EVERY_NS = 5 * SECOND_NS
POLL_NS = 20_000_000  # while a GPU is parked and the kernel cannot ring (before Linux 5.8)


class Governing:
    """Used by the loop's thread. epoll: the doorbell rings here while that is needed.

    changed: called with the time when the governor's state has changed; settled: called when everything that followed
    from an observation has been done.
    """

    def __init__(
        self,
        ledger: Ledger,
        fleet: Fleet,
        recorder: Recorder,
        policy: Policy,
        epoll: select.epoll,
        changed: Callable[[int], None],
        settled: Callable[[], None],
    ) -> None:
        now_ns = time.monotonic_ns()
        self.ledger = ledger
        self._fleet = fleet
        self._recorder = recorder
        self._changed, self._settled = changed, settled
        self._doorbell = Doorbell(ledger.attachment.fds["doorbell"]) if ledger.attachment.rings else None
        self._epoll = epoll
        self._listens = False
        if self._doorbell is not None:
            epoll.register(self._doorbell.fd, 0)
        self._listening = Listening(ledger)
        self._guards: dict[str, frozenset[int]] = {}
        self._learning = Learning(ledger)
        self._seen: deque[Observation] = deque()
        self._ready_wakes: Sequence[tuple[tuple[int, ...], Wake]] = ()
        self._healed_ns = 0
        self._deadline_ns = now_ns
        self.policy = policy
        self.state = GovernorState({}, now_ns + policy.reconcile_every_ns, now_ns)
        self.regroup(policy)

    # ---- the doorbell ---------------------------------------------------------------------------------------------

    def rings(self, ready: set[int]) -> bool:
        """True if the doorbell is among the descriptors that are ready; then the GPUs have been told already."""
        if self._doorbell is None or self._doorbell.fd not in ready:
            return False
        self._wake_who_rang(deaf_only=True)
        return True

    @property
    def is_waking(self) -> bool:
        """Whether a GPU that is down wakes for who rang: then the actuators' threads need the interpreter."""
        is_armed = self.ledger.counters.is_armed
        return any(not all(map(is_armed, slots)) for slots, _ in self._ready_wakes)

    def think(self) -> None:
        """Tell the governor who rang. Silence first: a thread that misses its edge for that is told by the governor."""
        if self._doorbell is not None:
            self._doorbell.silence()
        self.look()

    def is_unasked(self, message: object) -> bool:
        """True if an actuator has heard the doorbell and tells of the wake that the governor is about to ask for."""
        if not isinstance(message, WakeTiming | LeverResult) or message.gpu not in self.state.gpus:
            return False
        gpu = self.state.gpus[message.gpu]
        return gpu.phase in governor.DOWN and message.seq == gpu.seq + 1

    def _wake_who_rang(self, *, deaf_only: bool) -> bool:
        """Wake the GPUs whose watches rang; those whose actuators hear the doorbell themselves need no telling.

        True if there was one.
        """
        is_armed, rang = self.ledger.counters.is_armed, False
        for slots, wake in self._ready_wakes:
            actuator = self._fleet[wake.gpu]
            if not (deaf_only and actuator.listens) and not all(map(is_armed, slots)):
                actuator.wake(wake.seq)
                rang = True
        return rang

    def _listen(self, *, wanted: bool) -> None:
        """Hear the doorbell or not. It is silenced after some thought, hence by its edge."""
        if self._doorbell is not None and wanted is not self._listens:
            self._listens = wanted
            self._epoll.modify(self._doorbell.fd, select.EPOLLIN | select.EPOLLET if wanted else 0)

    def _is_needed_at_the_door(self) -> bool:
        """True unless the actuators hear everybody who matters."""
        if not all(self._fleet[wake.gpu].listens for _, wake in self._ready_wakes):
            return True
        guarded = self._listening.guarded
        return bool(guarded) and not guarded <= {slot for slots, _ in self._ready_wakes for slot in slots}

    def _rang_ns(self, uuid: str) -> int:
        """When the kernel rang for this GPU first; 0 if no doorbell of its watches is pressed."""
        slots = (self.ledger.counters.read(slot) for slot in self.policy.gpus[uuid].watches if slot >= 0)
        return min((slot.rang_ns for slot in slots if not slot.armed and slot.rang_ns), default=0)

    # ---- time -----------------------------------------------------------------------------------------------------

    def due_ns(self) -> list[int]:
        """When to call `timers` (CLOCK_MONOTONIC)."""
        due = [self._deadline_ns]
        if self._doorbell is None and self._listening.guarded:
            due.append(time.monotonic_ns() + POLL_NS)
        if self._listening.due_ns:
            due.append(self._listening.due_ns)
        if self._doorbell is None and self._ready_wakes:
            due.append(time.monotonic_ns() + POLL_NS)
        return due

    def timers(self, now_ns: int) -> None:
        """Do what is due."""
        if self._listening.due_ns and now_ns >= self._listening.due_ns:
            self._listen_in()
        if self._doorbell is None and self._wake_who_rang(deaf_only=True):
            self.think()
        if now_ns >= self._deadline_ns:
            self._heal_overflow()
            self._listen_in()
            self.look()

    # ---- the governor ---------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Tell the governor what the counters say."""
        self.feed(Counters(self.ledger.readings()))

    def feed(self, seen: Observation) -> None:
        """One observation, and every observation that its actions lead to at once."""
        self._seen.append(seen)
        while self._seen:
            now_ns, seen = time.monotonic_ns(), self._seen.popleft()
            step = governor.step(self.state, seen, now_ns, self.policy)
            wakes = [action for action in step.actions if isinstance(action, Wake)]
            for wake in wakes:
                self._fleet[wake.gpu].wake(wake.seq)
            if wakes:
                hand_over()
            before, self.state, self._deadline_ns = self.state, step.state, step.deadline_ns
            for action in step.actions:
                self._do(action)
            if step.state is not before:
                self._changed(now_ns)
            self._learning.see(seen)
        self._listening.plan(self.state, self.policy)
        self._ready_wakes = governor.wakes_on_ring(self.state, self.policy)
        self._listen(wanted=self._is_needed_at_the_door())
        self._settled()

    def learn(self, tell: Callable[[Gap], None]) -> None:
        """Tell the gaps that have come to light, each once. To be called when nothing is urgent."""
        self._learning.learn(self.policy, tell)

    def regroup(self, policy: Policy) -> None:
        """Other GPUs from now on: those of this policy, all of which the fleet has."""
        governed, now_ns = self._fleet.governed, time.monotonic_ns()
        hopeless = {uuid: each.choice.why for uuid, each in governed.items() if not each.choice.levers}
        left_behind = [uuid for uuid in governed if self._fleet[uuid].left_behind]
        unsure = [uuid for uuid, each in governed.items() if each.choice.unsure]
        self.policy = policy
        self.state = membership.regroup(self.state, policy, now_ns, hopeless, left_behind, unsure)

    def trust(self, uuid: str, why_not: str) -> None:
        """A GPU may be parked that could not be ("": trusted), or the other way round."""
        self.state = membership.with_trust(self.state, uuid, why_not, time.monotonic_ns())

    def _do(self, action: Action) -> None:
        match action:
            case Wake(uuid, seq, reason):
                self._recorder.wake_asked(uuid, seq, reason, self._rang_ns(uuid))
                self._fleet.expect_a_call()
            case Park(uuid, seq):
                self._recorder.park_asked(uuid, seq)
                self._fleet[uuid].park(seq)
                self._fleet.expect_a_call()
            case Arm(uuid, seq):
                # Arming a watch that is shared would make another GPU's ring unheard.
                if self._doorbell is not None:
                    self._doorbell.silence()
                self._ready_wakes = governor.wakes_on_ring(self.state, self.policy)  # as of this very step
                self._wake_who_rang(deaf_only=False)
                for slot in self.policy.gpus[uuid].watches:
                    self.ledger.counters.arm(slot)
                self._survey(uuid, seq, self.ledger.silence.listen_for_data)
            case Look(uuid, seq):
                self._survey(uuid, seq, self.ledger.silence.check_silence)
            case Reconcile(reason):
                if self._reconcile(self.ledger.watches, reason):
                    self._seen.append(Counters(self.ledger.readings()))
                else:
                    self._seen.append(Doubt("sock_diag does not answer"))
            case Alarm(uuid, reason):
                self._recorder.alarm(uuid, reason)

    # ---- watches that are kept armed for our children ---------------------------------------------------------------

    def guard(self, owner: str, slots: frozenset[int]) -> None:
        """Of this owner, these and no others are armed from now on, whatever their GPUs do.

        Who rang is known by `rung`, which each owner keeps for itself.
        """
        self._guards[owner] = slots
        self._listening.guarded = frozenset().union(*self._guards.values())
        self.arm(slots)
        self._listening.plan(self.state, self.policy)
        self._listen(wanted=self._is_needed_at_the_door())

    def arm(self, slots: Iterable[int]) -> None:
        """Again, those that have rung. Their GPUs are woken first: afterwards nobody could tell that they rang."""
        is_armed = self.ledger.counters.is_armed
        rang = [slot for slot in slots if not is_armed(slot)]
        if not rang:
            return
        if self._doorbell is not None:
            self._doorbell.silence()
        self._wake_who_rang(deaf_only=False)
        self.look()
        for slot in rang:
            self.ledger.counters.arm(slot)

    def rung(self, slot: int) -> int:
        """How often a watch has rung."""
        return self.ledger.counters.read(slot).rings

    def compare(self, slots: Collection[int]) -> bool:
        """With the sockets. False if they cannot be asked: then nobody knows who is there.

        Of guarded watches, whoever speaks afterwards rings.
        """
        known = [slot for slot in slots if slot in self.ledger.watches]
        guarded = [slot for slot in known if slot in self._listening.guarded]
        resting = self._listening.unheard(known, self.state, self.policy)
        asked = (
            self._reconcile(known, "asked")
            and self._ask_sockets(partial(self.ledger.silence.listen_for_data, guarded))
            and self._ask_sockets(partial(self.ledger.silence.listen_in, resting))
            and self._ask_sockets(partial(self.ledger.silence.check_silence, set(known) - set(guarded) - set(resting)))
        )
        self.look()
        return asked

    def live(self, uuid: str) -> dict[int, int]:
        """Port -> connections at work, of the ports that drive a GPU."""
        watches = [self.ledger.watches[slot] for slot in self.policy.gpus[uuid].watches if slot >= 0]
        return {watch.port: self.ledger.reading(watch).live for watch in watches}

    def heard_ns(self, uuid: str) -> int:
        """When a client of this GPU did something last, touches included; 0 if nobody knows of any."""
        watches = [self.ledger.watches[slot] for slot in self.policy.gpus[uuid].watches if slot in self.ledger.watches]
        known = [self.ledger.reading(watch) for watch in watches]
        return max((max(each.last_activity_ns, each.last_touch_ns, each.last_unsure_ns) for each in known), default=0)

    # ---- sockets --------------------------------------------------------------------------------------------------

    def _survey(self, uuid: str, seq: int, about_silence: Callable[[Iterable[int]], None]) -> None:
        slots = self.policy.gpus[uuid].watches
        if self._reconcile(slots, "survey") and self._ask_sockets(partial(about_silence, slots)):
            readings = self.ledger.readings()
            self._seen += (Surveyed(uuid, seq, readings), Counters(readings))
        else:
            self._seen.append(Doubt("sock_diag does not answer", uuid))

    def _reconcile(self, slots: Iterable[int], reason: str) -> bool:
        """False if the ledger cannot be asked now: then nothing may be parked on its word."""

        def heal() -> None:
            for slot, corrections in self.ledger.reconcile_all(slots).items():
                self._recorder.corrected(self.ledger.watches[slot], corrections, reason)

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
        slots = self._listening.slots(self.state, self.policy)
        if slots:
            self._ask_sockets(partial(self.ledger.silence.listen_in, slots))
            self._learning.looked = True
        self._listening.plan(self.state, self.policy)

    def _heal_overflow(self) -> None:
        """Not at every deadline: with a full set this takes most of a second."""
        full = [slot for slot, watch in self.ledger.watches.items() if self.ledger.overflowed(watch)]
        now_ns = time.monotonic_ns()
        if full and now_ns >= self._healed_ns + HEAL_EVERY_NS:
            self._reconcile(full, "overflow")
            self._healed_ns = now_ns
