"""A real park and wake of one GPU outside of the governor: `doctor --probe` tries levers so, `calibrate` measures them.

    guardian -> for one idle GPU, while nobody is connected to its servers:
        journal -> driver call -> read back until down -> (stay) -> undo -> read back until up -> journal released

Whatever happens, the undo follows: when somebody wants this to end, on the first sign of work and on the first client
at once; if this process is killed or stands still, the guardian wakes what the journal names, or else `memscaler
restore`. An undo that reports success proves nothing: only clocks that rise do.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from memscaler.core.errors import GpuError, GpuPermission, GpuUnsupported, MemscalerError, in_a_line
from memscaler.daemon.doctor.clients import Clients
from memscaler.daemon.guardian import Guardian
from memscaler.gpu.capability import choose
from memscaler.gpu.inventory import Device, Driver
from memscaler.gpu.journal import Entry, Journal
from memscaler.gpu.levers import EveryLever, Lever, rebuild

LOOK_S = 0.01  # between two looks whether somebody comes
UNDO_PAUSES_S = (0.0, 0.02, 0.1, 0.5)
ON_ITS_WAY_S = 0.5  # a park that was called off may still take effect
SAME_OCCUPANT = 0.9  # of the memory used: what kept the clocks up is still there
RESTORE = "sudo memscaler restore"
RESTORE_ALL = "sudo memscaler restore --all; if its clocks stay down, reboot"
IDLE = "try again while it is idle"


class NotTried(Exception):
    """Something speaks against it; the message says what."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Parked:
    """How a park went. down_s: seconds until the clocks were down, None: not seen. Else what came in between, or why.

    used_bytes: of the GPU's memory, before. began_s: when the driver was called (time.monotonic). denied: it is the
    right that is missing.
    """

    used_bytes: int | None
    down_s: float | None = None
    disturbance: str = ""
    refusal: str = ""
    applied: bool = True
    began_s: float = 0.0
    denied: bool = False


@dataclass(frozen=True, slots=True)
class Woken:
    """seconds: until the clocks were seen to rise; None: they were not. by: what did it, "" if the first undo did.

    began_s: when the driver was called first (time.monotonic).
    """

    seconds: float | None
    by: str = ""
    began_s: float = 0.0


def _look_again() -> None:
    time.sleep(LOOK_S)


def _not_at_all(_: Parked) -> str:
    return ""


@dataclass(slots=True)
class Trial:
    """What one GPU's park takes. stop: set when somebody wants this to end. pause: between two looks at the clocks."""

    driver: Driver
    journal: Journal
    device: Device
    clients: Clients
    stop: threading.Event
    settle_s: float
    pause: Callable[[], None] = _look_again
    _entry: Entry | None = field(default=None, init=False)
    _looked_s: float = field(default=0.0, init=False)

    @property
    def name(self) -> str:
        return f"gpu{self.device.identity.index}"

    @property
    def uuid(self) -> str:
        return self.device.identity.uuid

    def levers(self, wanted: str, again: str) -> tuple[Lever, ...]:
        """Those that it has, if nothing speaks against a park. again: the command to type. Raise NotTried, GpuError."""
        if self.stop.is_set():
            raise NotTried("interrupted", again)
        if self.journal.entry(self.uuid) is not None:
            raise NotTried("it was left parked by a memscaler that is gone", RESTORE)
        choice = choose(self.device, wanted)
        if not choice.levers:
            raise NotTried(f"no lever ({choice.why})", "see MS-GPU-03")
        busy = self.device.utilization_ratio()
        if busy is None:
            raise NotTried("the driver does not tell whether it works", "see `memscaler gpus`")
        if busy:
            raise NotTried(f"it is at work ({busy:.0%})", IDLE)
        if port := self.clients.connected():
            raise NotTried(f"a client is connected to port {port}", "try again when nobody is")
        return choice.levers

    def disturbance(self) -> str:
        """What speaks against its being parked, looked at anew every LOOK_S; "" is nothing."""
        if self.stop.is_set():
            return "interrupted"
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_S:
            return ""
        self._looked_s = now_s
        if (found := self.journal.entry(self.uuid)) != self._entry:
            other = found is not None and found.pid != os.getpid()
            how = "another memscaler has parked it"
            return how if other else "this process stood still, so its guardian has stepped in"
        try:
            if self.device.utilization_ratio() != 0:  # also if nobody can tell
                return "work came in between"
            return "a client came in between" if self.clients.connected() else ""
        except (GpuError, OSError):
            return "work may have come in between"

    def occupied(self, used_bytes: int | None) -> bool:
        """True if something keeps its clocks up as before, or nobody can tell."""
        try:
            now_bytes = self.device.memory_used_bytes()
            return (
                self.device.in_use() or not used_bytes or now_bytes is None or now_bytes >= used_bytes * SAME_OCCUPANT
            )
        except GpuError:
            return True

    def park_and_wake(self, lever: Lever, stay: Callable[[Parked], str] = _not_at_all) -> tuple[Parked, Woken]:
        """Park, and wake in every case. stay: called once the clocks are down; answers what came in between.

        Raise NotTried if the journal cannot be written, or GpuError, while nothing is done yet.
        """
        parked, woken = Parked(self.device.memory_used_bytes()), Woken(0.0)
        try:
            self._entry = self.journal.record(self.device.identity, lever.name, lever.target)
        except OSError as error:
            raise NotTried(f"the journal cannot be written ({error.strerror})", "see MS-UNIT-02") from error
        try:
            parked = self._park(lever, parked)
            if parked.down_s is not None and (disturbance := stay(parked)):
                parked = replace(parked, disturbance=disturbance)
        finally:
            if parked.applied:
                woken = self._wake(lever, seen_down=parked.down_s is not None)
            if woken.seconds is not None:  # else the guardian is left something to do
                self.journal.release(self.uuid)
            self._entry = None
        return parked, woken

    def _park(self, lever: Lever, before: Parked) -> Parked:
        """Until the clocks are down, or something comes in between."""
        self._looked_s, disturbance = 0.0, ""
        began_s = time.monotonic()
        before = replace(before, began_s=began_s)
        try:
            lever.apply()
            while not (disturbance := self.disturbance()) and time.monotonic() < began_s + self.settle_s:
                with contextlib.suppress(GpuError):
                    if lever.is_down():
                        return replace(before, down_s=time.monotonic() - began_s)
                self.pause()
        except GpuError as error:
            applied = not isinstance(error, GpuPermission | GpuUnsupported)  # else the driver has done nothing
            refusal = in_a_line(error)
            return replace(before, refusal=refusal, applied=applied, denied=isinstance(error, GpuPermission))
        return replace(before, disturbance=disturbance)

    # ---- wake -------------------------------------------------------------------------------------------------------

    def _wake(self, lever: Lever, *, seen_down: bool) -> Woken:
        """Undo until its clocks are seen to rise: again with a fresh handle, then with all that could hold them."""
        began_s = time.monotonic()
        means: tuple[tuple[str, Callable[[], tuple[Lever, Lever]]], ...] = (
            ("", lambda: (lever, lever)),
            ("a second undo", partial(self._afresh, lever.name, every=False)),
            ("the reset of every lever", partial(self._afresh, lever.name, every=True)),
        )
        self.driver.use(self.uuid)
        try:
            in_vain = False
            for by, fetch in means:
                moved = _undone(fetch)
                if moved is not None and self._rises(moved, seen_down=seen_down):
                    return Woken(time.monotonic() - began_s, by if in_vain else "", began_s)
                in_vain |= moved is not None
        finally:
            self.driver.disuse(self.uuid)
        return Woken(None, began_s=began_s)

    def _afresh(self, name: str, *, every: bool) -> tuple[Lever, Lever]:
        """(what undoes, what moves), with a handle that cannot be stale. Raise GpuError."""
        device = self.driver.reopen(self.uuid)
        moved = rebuild(device, name)
        return EveryLever(device) if every else moved, moved

    def _rises(self, lever: Lever, *, seen_down: bool) -> bool:
        """Seen to be up. Where it was not seen to be down, the park may still be on its way: then it has to stay up."""
        if not seen_down:
            time.sleep(min(self.settle_s, ON_ITS_WAY_S))
        end_s = time.monotonic() + self.settle_s
        while True:
            with contextlib.suppress(GpuError):
                if not lever.is_down():
                    return True
            if time.monotonic() >= end_s:
                return False
            self.pause()


def _undone(fetch: Callable[[], tuple[Lever, Lever]]) -> Lever | None:
    """The lever whose undo was reported as a success; None if none was."""
    for pause_s in UNDO_PAUSES_S:
        time.sleep(pause_s)
        with contextlib.suppress(GpuError):
            undoing, moved = fetch()
            undoing.undo()
            return moved
    return None


@contextlib.contextmanager
def guarded(runtime_dir: Path, environment: Mapping[str, str], journal: Journal) -> Iterator[None]:
    """While a guardian watches. One that is not told good-bye wakes what we left. journal: of this directory."""
    guardian = Guardian(runtime_dir, environment, watch_standstill=True)
    try:
        if not guardian.wait_ready():
            raise MemscalerError("not tried: the guardian process does not start", hint="see what it says above")
        yield
    finally:
        guardian.close() if journal.entries_of(os.getpid()) else guardian.dismiss()
