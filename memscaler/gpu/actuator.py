"""One thread per GPU that parks and wakes it. The main loop gives orders and never waits; answers come as reports.

Order of things, which is what keeps a GPU from staying parked:

    park   checks -> journal -> driver call -> APPLIED -> read back until down -> VERIFIED
    wake   driver call -> WOKEN -> journal released -> read back until up, else NO_EFFECT and journal again

Here are the thread, the orders that it is given, and the wake; the park is in parking.py, and what both go by, above
all what is to be undone, in hands.py. While its GPU is parked the thread listens to the doorbell itself and wakes
without being told, under the number that the main loop's order will have.

Handles go stale (hands.py). So an undo that fails is tried once more with a fresh handle before it counts as failed.

A driver call that never returns takes only this thread with it: `overdue` lets the main loop see it, and when the call
does return, the newest wake comes first. There are never two threads in the driver for one GPU.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from time import monotonic_ns

from memscaler.core.errors import DriverUnavailable, GpuError, GpuLost
from memscaler.core.model import Outcome
from memscaler.gpu import mailbox
from memscaler.gpu.hands import Means
from memscaler.gpu.levers import Lever
from memscaler.gpu.parking import Parking
from memscaler.gpu.reports import WakeTiming

# The first request after a wake is at work just then, and on some cards a read makes the CPUs wait (facts/peers.md 7).
WAKE_FIRST_LOOK_S = 0.1
HAND_OVER_S = 1e-5
SAME_OCCUPANT = 0.9  # of the memory used: the server that was there at the park is still there
STAYS_DOWN = "does another program set its clocks? else reload the driver, or reboot"
MISTAKE_PAUSE_S = 0.1  # after a mistake of ours, which may come again at once


def hand_over() -> None:
    """Let actuator threads that were just given a wake reach the driver; call it once after the last `wake`.

    A woken thread needs CPython's global lock, and a main loop that works on keeps it for 5 ms and more. Sleeping for
    an instant gives it away: measured on 2 cores, from `wake` to the driver call, with the main loop busy for 20 ms
    afterwards: median 41 us and p99 126 us with this, 7.9 ms and 12 ms without, 39 us and 6.3 ms with sleep(0).
    """
    time.sleep(HAND_OVER_S)


class Actuator(Parking):
    """Parks and wakes one GPU. All public methods return at once."""

    def __init__(self, means: Means) -> None:
        super().__init__(means)
        self._first = means.first
        name = f"gpu{means.device.identity.index}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    # ---- called by the main loop ----------------------------------------------------------------------------------

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

    # ---- wake -----------------------------------------------------------------------------------------------------

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
