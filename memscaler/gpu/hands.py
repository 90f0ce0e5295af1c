"""What parking and waking a GPU have in common: driver calls under a deadline, and the debt of an undo.

`_owed` holds what is to be undone. It is set before a lever is applied and cleared only after its undo reported
success; the journal says the same on disk, for whoever comes after us. `_parked` says that the park took effect as far
as the driver tells; from then on the thread listens to the doorbell itself.

`_call` is the driver call under way, with its deadline, for other threads to look at. Handles go stale: the driver is
reloaded, the GPU is reset, or falls off the bus and comes back; then the levers that are applied are looked up anew.

A base class (parking.py and actuator.py build on it) and not a part of the actuator: a wake reads these words on its
way to the driver, and each step in between would be a step of the wake.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic_ns
from typing import TypeVar

from memscaler.core.errors import GpuCallFailed, GpuError
from memscaler.core.model import LeverResult, Outcome
from memscaler.gpu import mailbox
from memscaler.gpu.grip import Grip, Reopening
from memscaler.gpu.inventory import Device
from memscaler.gpu.journal import Journal
from memscaler.gpu.levers import Lever, recall
from memscaler.gpu.mailbox import Door, Mailbox
from memscaler.gpu.reports import ActuatorPolicy, Note, Repeats, Report, Sample

Value = TypeVar("Value")

FIRST_POLL_S = 0.005
POLL_GROWTH = 1.6  # 12 looks in 2 s: dense while most cards settle, then out of the way


def _nobody(_: str) -> str:
    """No server says that it works."""
    return ""


@dataclass(frozen=True, slots=True)
class Means:
    """What one GPU is connected to.

    working: asked before a park which of this GPU's servers says that it works, and on what ("": none).
    reopening: how to get a fresh handle after a failure; without it the first one is for ever.
    first: what is to be done before a lever is undone; told whether a client rang. It must return soon.
    """

    device: Device
    levers: tuple[Lever, ...]
    journal: Journal
    report: Callable[[Report], None]
    policy: ActuatorPolicy = field(default_factory=ActuatorPolicy)
    door: Door | None = None
    working: Callable[[str], str] = _nobody
    reopening: Reopening | None = None
    first: Callable[[str, bool], None] | None = None


class Hands:
    """The state of one GPU, and how it is touched. Used by its thread."""

    def __init__(self, means: Means) -> None:
        self.gpu = means.device.identity.uuid
        self._policy = means.policy
        pretend = (lambda text: self._note("lever.pretended", text)) if means.policy.dry_run else None
        self._grip = Grip(means.device, means.levers, means.reopening, pretend)
        self._journal = means.journal
        self._report = means.report
        self._door = means.door
        self._mail = Mailbox()
        self._repeats = Repeats()
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

    @property
    def lever(self) -> Lever | None:
        """The lever that the next park uses; None if none works."""
        return self._grip.lever

    def _rang(self) -> bool:
        """True if a connection came while this GPU is parked."""
        return self._parked and self._mail.rang()

    def _is_urgent(self) -> bool:
        return self._mail.is_urgent(self._woken_seq) or self._rang()

    # ---- driver calls ---------------------------------------------------------------------------------------------

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

    # ---- what is to be undone -------------------------------------------------------------------------------------

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

    # ---- reports --------------------------------------------------------------------------------------------------

    def _answer(self, outcome: Outcome, reason: str = "", remedy: str = "") -> None:
        self._report(LeverResult(self.gpu, self._seq, outcome, reason, remedy))

    def _note(self, event: str, detail: str) -> None:
        if event == "lever.pretended" or self._repeats.passes(event, detail, time.monotonic()):
            self._report(Note(self.gpu, event, detail))
