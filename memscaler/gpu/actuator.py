"""One thread per GPU that parks and wakes it. The main loop gives orders and never waits; answers come as reports.

Order of things, which is what keeps a GPU from staying parked:

    park   checks -> journal -> driver call -> APPLIED -> read back until down -> VERIFIED
    wake   driver call -> WOKEN -> journal released -> read back until up, else NO_EFFECT and journal again

`_owed` holds what is to be undone. It is set before a lever is applied and cleared only after its undo reported
success. `_parked` says that the park took effect as far as the driver tells; from then on the thread listens to the
doorbell itself and wakes its GPU without being told, under the number that the main loop's order will have.

Handles go stale: the driver is reloaded, the GPU is reset, or falls off the bus and comes back. So an undo that fails
is tried once more with a fresh handle before it counts as failed, and a park after any failure begins with a fresh
handle and a new choice of levers.

A driver call that never returns takes only this thread with it: `overdue` lets the main loop see it, and when the call
does return, the newest wake comes first. There are never two threads in the driver for one GPU.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from time import monotonic_ns
from typing import TypeVar

from memscaler.core.errors import DriverUnavailable, GpuCallFailed, GpuError, GpuLost, GpuPermission, GpuUnsupported
from memscaler.core.model import LeverResult, Outcome
from memscaler.gpu import mailbox
from memscaler.gpu.grip import Grip, Reopening
from memscaler.gpu.inventory import Device
from memscaler.gpu.journal import Journal
from memscaler.gpu.levers import Lever, recall
from memscaler.gpu.mailbox import Door, Mailbox
from memscaler.gpu.reports import ActuatorPolicy, Note, Repeats, Report, Sample, WakeTiming

Value = TypeVar("Value")

FIRST_POLL_S = 0.005
POLL_GROWTH = 1.6  # 12 looks in 2 s: dense while most cards settle, then out of the way
# The first request after a wake is at work just then, and on some cards a read makes the CPUs wait (facts/peers.md 7).
WAKE_FIRST_LOOK_S = 0.1
HAND_OVER_S = 1e-5
SAME_OCCUPANT = 0.9  # of the memory used: the server that was there at the park is still there
STAYS_DOWN = "does another program set its clocks? else reload the driver, or reboot"
RETRY_PAUSE_S = (0.02, 0.1)
MISTAKE_PAUSE_S = 0.1  # after a mistake of ours, which may come again at once


def hand_over() -> None:
    """Let actuator threads that were just given a wake reach the driver; call it once after the last `wake`.

    A woken thread needs CPython's global lock, and a main loop that works on keeps it for 5 ms and more. Sleeping for
    an instant gives it away: measured on 2 cores, from `wake` to the driver call, with the main loop busy for 20 ms
    afterwards: median 41 us and p99 126 us with this, 7.9 ms and 12 ms without, 39 us and 6.3 ms with sleep(0).
    """
    time.sleep(HAND_OVER_S)


class Actuator:
    """Parks and wakes one GPU. All public methods return at once."""

    def __init__(  # noqa: PLR0913  # what one GPU is connected to; made in one place
        self,
        device: Device,
        levers: tuple[Lever, ...],
        journal: Journal,
        report: Callable[[Report], None],
        policy: ActuatorPolicy | None = None,
        door: Door | None = None,
        working: Callable[[str], str] | None = None,
        *,
        reopening: Reopening | None = None,
        first: Callable[[str, bool], None] | None = None,
    ) -> None:
        """working: asked before a park which of this GPU's servers says that it works, and on what ("": none).

        first: what is to be done before a lever is undone; told whether a client rang. It must return soon.
        reopening: how to get a fresh handle after a failure; without it the first one is for ever.
        """
        self.gpu = device.identity.uuid
        self._policy = policy or ActuatorPolicy()
        pretend = (lambda text: self._note("lever.pretended", text)) if self._policy.dry_run else None
        self._grip = Grip(device, levers, reopening, pretend)
        self._journal = journal
        self._report = report
        self._door = door
        self._working = working or (lambda _: "")
        self._first = first
        self._mail = Mailbox()
        self._repeats = Repeats()
        self._failed_parks = 0
        self._worked = ""  # the lever that the last park used with success
        self._owed: Lever | None = self._left_behind()
        self._parked = False
        self._verified = False
        self._woken_seq = -1  # of the last wake that was carried out
        self._unproven: Lever | None = None  # undone, but the clocks were not seen to rise yet
        self._switched_ns: int | None = None
        self._used_bytes: int | None = None  # of the GPU's memory, at the last park
        self._call: tuple[str, int] | None = None  # the driver call under way, and its deadline
        self._seq = 0
        self.left_behind = self._owed is not None
        """True if an earlier run left this GPU parked: the first order must be a wake."""
        self._thread = threading.Thread(target=self._run, name=f"gpu{device.identity.index}", daemon=True)
        self._thread.start()

    # ---- called by the main loop ----------------------------------------------------------------------------------

    @property
    def lever(self) -> Lever | None:
        """The lever that the next park uses; None if none works."""
        return self._grip.lever

    @property
    def parked_with(self) -> Lever | None:
        """The lever that was seen to hold this GPU down; None if it is not parked, or its clocks still settle."""
        return self._owed if self._verified else None

    def use(self, levers: tuple[Lever, ...], wanted: str | None = None) -> None:
        """Park with these from the next time on. What is parked now is undone as it was done.

        wanted: the lever that the operator wants now, for when they have to be chosen again.
        """
        self._grip.use(levers, wanted)

    def park(self, seq: int) -> None:
        self._mail.post(mailbox.PARK, seq)

    def wake(self, seq: int) -> None:
        """Undo the park. Goes before everything that waits, and calls off a park that waits or settles.

        After the last of several, call `hand_over`.
        """
        self._mail.withdraw(mailbox.PARK)
        self._mail.post(mailbox.WAKE, seq)

    def sample(self) -> None:
        self._mail.post(mailbox.SAMPLE)

    def close(self) -> None:
        """Let the thread end after a wake that waits. It undoes nothing by itself."""
        self._mail.withdraw(mailbox.PARK)
        self._mail.post(mailbox.CLOSE)
        self._grip.let_go()

    def join(self, timeout_s: float) -> bool:
        """Wait for the end of the thread; False if a driver call still holds it."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def proven(self) -> bool:
        """True if nothing is applied, and the last undo was seen to work as far as that can be seen."""
        return self._owed is None and self._unproven is None

    @property
    def listens(self) -> bool:
        """True if the thread hears the doorbell by itself and needs no telling."""
        return self._parked and self._door is not None

    def overdue(self, now_ns: int) -> str | None:
        """The driver call that has not returned by its deadline."""
        call = self._call
        return call[0] if call is not None and now_ns > call[1] else None

    def call_due_ns(self) -> int | None:
        """When the driver call under way becomes overdue; None if there is none."""
        call = self._call
        return None if call is None else call[1]

    # ---- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                if self._rang():
                    self._obey(mailbox.WAKE, self._seq + 1)
                order = self._mail.take()
                if order is None:
                    self._mail.wait()
                elif order[0] is mailbox.CLOSE:
                    self._see_off()
                    self._mail.close()  # after `close` nobody posts
                    return
                else:
                    self._obey(*order)
            except Exception as error:  # noqa: BLE001  # a dead thread could never wake its GPU again
                self._call = None
                self._note("actuator.failed", f"{type(error).__name__}: {error}")
                self._answer(Outcome.FAILED, f"{type(error).__name__}: {error}")
                time.sleep(MISTAKE_PAUSE_S)

    def _obey(self, kind: str, seq: int) -> None:
        if kind is mailbox.WAKE:
            if seq != self._woken_seq:  # else the doorbell was faster than the order
                self._seq = self._woken_seq = seq
                self._wake(seq)
        elif kind is mailbox.PARK:
            self._seq = seq
            self._park()
        else:
            self._sample()

    def _sample(self) -> None:
        try:
            reading = self._read("reading", lambda: self._grip.device.reading_unless(self._interrupts_reading))
        except GpuError as error:
            self._note("gpu.sample_failed", f"{error}; {error.hint}" if error.hint else str(error))
            self._reopen()
            return
        if reading is None:
            self._mail.post(mailbox.SAMPLE)  # after what is urgent
        else:
            self._repeats.over("gpu.sample_failed")
            self._report(Sample(self.gpu, reading))

    def _interrupts_reading(self) -> bool:
        """Asked between two driver calls, each of which has the deadline for itself."""
        self._call = ("reading", monotonic_ns() + int(self._policy.read_deadline_s * 1e9))
        return self._is_urgent()

    # ---- wake -----------------------------------------------------------------------------------------------------

    def _rang(self) -> bool:
        """True if a connection came while this GPU is parked."""
        return self._parked and self._mail.rang()

    def _is_urgent(self) -> bool:
        return self._mail.is_urgent(self._woken_seq) or self._rang()

    def _wake(self, seq: int) -> None:
        self._parked = self._verified = False
        lever = self._owed or self._unproven
        if lever is None:
            self._answer(Outcome.WOKEN)
            return
        if self._first is not None:
            self._do_first(self._first)
        start_ns = monotonic_ns()
        error = self._undo(lever)
        if error is not None:
            lever, error = self._undo_afresh(lever, error)
        if error is not None:
            if self._owed is None:
                self._owe(lever)
            self._answer(Outcome.LOST if isinstance(error, GpuLost) else Outcome.FAILED, str(error), error.hint)
            return
        end_ns = monotonic_ns()
        self._report(WakeTiming(self.gpu, seq, start_ns, end_ns))
        self._answer(Outcome.WOKEN)
        self._switched_ns = end_ns
        self._owed, self._unproven = None, lever
        self._mail.stop_listening()
        self._release()
        self._prove_awake(lever)

    def _do_first(self, first: Callable[[str, bool], None]) -> None:
        try:
            first(self.gpu, self._door is None or self._door.rang())
        except Exception as error:  # noqa: BLE001  # whatever it is: the GPU wakes
            self._note("actuator.failed", f"{type(error).__name__}: {error}")

    def _undo(self, lever: Lever) -> GpuError | None:
        """None if the driver reports success."""
        self._call = ("undo", monotonic_ns() + int(self._policy.write_deadline_s * 1e9))
        try:
            lever.undo()
        except GpuError as error:
            self._grip.failed = True
            return error
        finally:
            self._call = None
        return None

    def _undo_afresh(self, lever: Lever, error: GpuError) -> tuple[Lever, GpuError | None]:
        """It may be the handle that is stale: once more with a fresh one. The old one stays while there is no other."""
        worse = self._reopen()
        if worse is not None:
            return lever, worse if isinstance(worse, GpuLost | DriverUnavailable) else error
        fresh = self._owed or self._unproven
        return (lever, error) if fresh is None or fresh is lever else (fresh, self._undo(fresh))

    def _reopen(self) -> GpuError | None:
        """Look the GPU up again, and its levers that are applied. The failure, if there is one."""
        try:
            self._read("looking up the GPU", self._reopen_now)
        except GpuError as error:
            self._grip.failed = True
            return error
        return None

    def _reopen_now(self) -> None:
        if self._grip.reopen():
            self._owed, self._unproven = self._grip.rebuilt(self._owed), self._grip.rebuilt(self._unproven)

    def _prove_awake(self, lever: Lever) -> None:
        """Read the clocks back. Without a context they may stay low by right, so only a GPU in use can tell."""
        if self._policy.dry_run:
            self._unproven = None
            return
        try:
            up = self._settle(lambda: not lever.is_down() or not self._occupied(), WAKE_FIRST_LOOK_S)
        except GpuError as error:
            self._note("gpu.wake_unproven", str(error))
            up = True
        if up is None:  # a newer wake undoes it once more, and then looks
            return
        self._unproven = None
        if not up:
            self._owe(lever)
            self._answer(Outcome.NO_EFFECT, f"undone, but still down: {lever.describe()}", STAYS_DOWN)
            self._reopen()  # perhaps the next try reaches more with another handle

    def _see_off(self) -> None:
        """The end: what was undone and stays down is written down again, for the guardian and `memscaler restore`."""
        lever = self._unproven
        if lever is None:
            return
        try:
            stays_down = self._read("read-back", lambda: lever.is_down() and self._occupied())
        except GpuError as error:
            self._note("gpu.wake_unproven", str(error))
            stays_down = False
        self._unproven = None
        if stays_down:
            self._owe(lever)

    def _occupied(self) -> bool:
        """True if the clocks must be up: by what runs, or because what kept them up at the park is still in memory."""
        if self._grip.device.in_use():
            return True
        used_bytes = self._grip.device.memory_used_bytes()
        return bool(self._used_bytes and used_bytes and used_bytes >= self._used_bytes * SAME_OCCUPANT)

    # ---- park -----------------------------------------------------------------------------------------------------

    def _park(self) -> None:
        self._sample()  # what it draws before the park is what the saving is counted from
        lever: Lever | None = None
        try:
            if self._grip.needs_choice():
                self._read("looking up the GPU", self._grip.choose_again)
            lever = self.lever
            if lever is not None and not self._hindered(lever):
                self._apply(lever)
        except GpuError as error:
            self._grip.failed = True
            self._park_failed(lever, error)
        else:
            if lever is None:
                self._answer(Outcome.FAILED, "no lever works on this GPU", "see `memscaler gpus`")

    def _park_failed(self, lever: Lever | None, error: GpuError) -> None:
        """Tell. Without a lever it has not come to using one."""
        if isinstance(error, GpuLost):
            self._answer(Outcome.LOST, str(error), error.hint)
        elif lever is None or isinstance(error, GpuPermission):  # rights: the operator is to know, no other lever
            self._answer(Outcome.FAILED, str(error), error.hint)
        elif isinstance(error, GpuCallFailed) or lever.name == self._worked:
            self._blame(f"{lever.name}: {error}", error.hint)
        else:
            self._use_next(f"{lever.name}: {error}", error.hint)

    def _hindered(self, lever: Lever) -> bool:
        """Look once more before parking, and answer if it is not the time."""
        try:
            load = self._read("utilisation", self._grip.device.utilization_ratio)
            low = self._read("clock", lever.is_down)
        except GpuCallFailed as error:  # says nothing about the lever
            self._grip.failed = True
            self._answer(Outcome.BUSY, f"cannot look: {error}")
            return True
        if load:
            self._answer(Outcome.BUSY, f"GPU utilisation is {load:.0%}")
        elif low:
            self._answer(Outcome.NOTHING_TO_GAIN, f"low by itself: {lever.name} {lever.target}")
        elif (wait_ms := self._switch_wait_ms()) > 0:
            self._answer(Outcome.BUSY, f"the driver wants {wait_ms} ms more between two switches")
        elif word := self._working(self.gpu):
            self._answer(Outcome.BUSY, word)
        else:
            return False
        return True

    def _switch_wait_ms(self) -> int:
        if self._switched_ns is None:
            return 0
        passed_ms = (monotonic_ns() - self._switched_ns) // 1_000_000
        return self._grip.device.capabilities.switch_interval_ms - passed_ms

    def _apply(self, lever: Lever) -> None:
        self._used_bytes = self._read("memory", self._grip.device.memory_used_bytes)
        try:
            self._owe(lever, strict=not self._policy.dry_run)
        except OSError as error:  # without a journal nothing is applied: nobody could undo it after a crash
            self._owed = None
            self._answer(Outcome.BUSY, f"the journal cannot be written: {error}")
            return
        if not self._call_driver(lever):
            return
        if self._door is not None:
            self._mail.listen(self._door)
        self._parked = True
        self._failed_parks = 0
        self._switched_ns = monotonic_ns()
        self._answer(Outcome.APPLIED, lever.describe())
        down = self._settle(lever.is_down)
        if down:
            self._worked = lever.name
            self._verified = not self._policy.dry_run
            self._answer(Outcome.VERIFIED, lever.describe())
        elif down is False:
            self._use_next(f"{lever.name}: the driver reports success, but nothing moved", "see `memscaler gpus`")

    def _call_driver(self, lever: Lever) -> bool:
        """Apply the lever; try again on unknown errors. False if a wake came first."""
        for attempt in range(self._policy.attempts):
            if self._is_urgent():
                if attempt == 0:
                    self._disown()
                return False
            try:
                self._write("apply", lever.apply)
            except GpuCallFailed:  # it may have taken effect, so it stays owed
                if attempt + 1 == self._policy.attempts:
                    raise
                self._mail.wait(random.uniform(*RETRY_PAUSE_S))  # noqa: S311  # jitter
            except (GpuUnsupported, GpuPermission):
                if attempt == 0:
                    self._disown()
                raise
            else:
                return True
        return False

    def _disown(self) -> None:
        """Nothing was applied after all."""
        self._owed = None
        self._release()

    def _blame(self, reason: str, remedy: str) -> None:
        """An unknown error may be the driver's bad day: the lever is given up only after several parks."""
        self._failed_parks += 1
        if self._failed_parks < self._policy.patience:
            self._answer(
                Outcome.NEXT_LEVER, reason, remedy
            )  # the same one; first the wake undoes what may have been applied
        else:
            self._use_next(reason, remedy)

    def _use_next(self, reason: str, remedy: str) -> None:
        self._grip.give_up()
        self._failed_parks = 0
        self._answer(Outcome.FAILED if self.lever is None else Outcome.NEXT_LEVER, reason, remedy)

    # ---- parts ----------------------------------------------------------------------------------------------------

    def _settle(self, reached: Callable[[], bool], first_look_s: float = 0.0) -> bool | None:
        """True as soon as `reached`; False if it is not in time; None if a wake or the end came in between.

        Raise GpuCallFailed if the last look failed.
        """
        end_ns = monotonic_ns() + int(self._policy.settle_timeout_s * 1e9)
        pause_s = FIRST_POLL_S
        self._mail.wait(first_look_s)
        while not self._is_urgent():
            left_s = (end_ns - monotonic_ns()) / 1e9
            try:
                if self._read("read-back", reached):
                    return True
            except GpuCallFailed:
                if left_s <= 0:
                    raise
            if left_s <= 0:
                return False
            self._mail.wait(min(pause_s, left_s))
            pause_s *= POLL_GROWTH
        return None

    def _read(self, what: str, ask: Callable[[], Value]) -> Value:
        return self._timed(what, self._policy.read_deadline_s, ask)

    def _write(self, what: str, act: Callable[[], None]) -> None:
        self._timed(what, self._policy.write_deadline_s, act)

    def _timed(self, what: str, limit_s: float, call: Callable[[], Value]) -> Value:
        self._call = (what, monotonic_ns() + int(limit_s * 1e9))
        try:
            return call()
        finally:
            self._call = None

    def _owe(self, lever: Lever, *, strict: bool = False) -> None:
        """Remember, here and on disk, that this lever is to be undone."""
        self._owed = lever
        if self._policy.dry_run:
            return
        try:
            self._journal.record(self._grip.device.identity, lever.name, lever.target)
        except OSError as error:
            if strict:
                raise
            self._note("journal.write_failed", str(error))

    def _release(self) -> None:
        if self._policy.dry_run:
            return
        try:
            self._journal.release(self.gpu)
        except OSError as error:  # a restore would undo it once more, which does no harm
            self._note("journal.release_failed", str(error))

    def _left_behind(self) -> Lever | None:
        """What an earlier run applied and nobody has undone yet."""
        entry = self._journal.entry(self.gpu)
        if entry is None or self._policy.dry_run:
            return None
        return recall(self._grip.device, entry.lever)

    def _answer(self, outcome: Outcome, reason: str = "", remedy: str = "") -> None:
        self._report(LeverResult(self.gpu, self._seq, outcome, reason, remedy))

    def _note(self, event: str, detail: str) -> None:
        if event == "lever.pretended" or self._repeats.passes(event, detail, time.monotonic()):
            self._report(Note(self.gpu, event, detail))
