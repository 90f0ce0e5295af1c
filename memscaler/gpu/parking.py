"""How a GPU is parked: looked at once more, written down, called, and read back until it is down.

    checks -> journal -> driver call -> APPLIED -> read back until down -> VERIFIED

A wake that comes in between calls it off, before each driver call and while the clocks settle. A park after any failure
begins with a fresh handle and a new choice of levers; a lever that did nothing, or failed too often, is given up.
"""

from __future__ import annotations

import random
from time import monotonic_ns

from memscaler.core.errors import GpuCallFailed, GpuError, GpuLost, GpuPermission, GpuUnsupported
from memscaler.core.model import Outcome
from memscaler.gpu.hands import Hands, Means
from memscaler.gpu.levers import Lever

RETRY_PAUSE_S = (0.02, 0.1)


class Parking(Hands):
    """The part of an actuator that nobody waits for."""

    def __init__(self, means: Means) -> None:
        super().__init__(means)
        self._working = means.working
        self._failed_parks = 0
        self._worked = ""  # the lever that the last park used with success

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
