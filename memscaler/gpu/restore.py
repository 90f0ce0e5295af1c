"""Undo what a memscaler that is gone left behind. Needs no daemon and no configuration; may run any number of times.

Each GPU is looked up and undone in a thread of its own: one that hangs in the driver does not keep the others down.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from memscaler.core.errors import GpuCallFailed, GpuError, GpuLost, GpuPermission
from memscaler.gpu.inventory import Device, Driver, open_driver
from memscaler.gpu.journal import UNKNOWN_LEVER, Entry, Journal
from memscaler.gpu.levers import EveryLever, Lever, recall
from memscaler.gpu.nvml_calls import NOT_FOUND

FIRST_PAUSE_S = 0.05
PAUSE_GROWTH = 2.0
LONGEST_PAUSE_S = 1.0
RISE_S = 2.0  # as long as the clocks of a park get to follow
RISE_POLL_S = 0.02
EVERY = "every lever"


class Result(StrEnum):
    """How it went for one GPU."""

    RESTORED = "restored"
    FAILED = "failed"  # the driver refused until the time was up
    LOST = "lost"  # the GPU is not there
    HUNG = "hung"  # the driver call did not return


@dataclass(frozen=True, slots=True)
class Restored:
    """One GPU: what was undone, and how that went."""

    uuid: str
    name: str
    lever: str
    result: Result
    reason: str = ""

    def __str__(self) -> str:
        gpu = f"{self.name} {self.uuid}" if self.name else self.uuid
        return f"{gpu}: {self.lever} {self.result}" + f" ({self.reason})" * bool(self.reason)


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """All GPUs that there was something to do for."""

    gpus: tuple[Restored, ...] = ()

    @property
    def ok(self) -> bool:
        return all(gpu.result is Result.RESTORED for gpu in self.gpus)

    @property
    def permission_missing(self) -> bool:
        return any("permission" in gpu.reason.lower() for gpu in self.gpus)

    def __str__(self) -> str:
        return "\n".join(str(gpu) for gpu in self.gpus) or "nothing to restore"


def restore(
    journal: Journal, driver: Driver, *, all_levers: bool = False, budget_s: float = 5.0, pid: int | None = None
) -> RestoreReport:
    """Undo what the journal says is applied; with `all_levers`, reset every lever of every GPU.

    Entries are released as their undo succeeds and kept otherwise, for the next try. pid: only what this process wrote.
    """
    jobs = _jobs(journal.entries_of(pid), driver, all_levers=all_levers)
    end = time.monotonic() + budget_s
    for job in jobs:
        job.start(journal, end)
    return RestoreReport(tuple(job.wait(end) for job in jobs))


def restore_from(
    directory: Path | str, *, all_levers: bool = False, budget_s: float = 5.0, pid: int | None = None
) -> RestoreReport:
    """Like `restore`, but opens the driver only if there is something to do. Raise DriverUnavailable."""
    journal = Journal(directory)
    if not all_levers and not journal.entries_of(pid):
        return RestoreReport()
    driver = open_driver(look=all_levers)
    report = restore(journal, driver, all_levers=all_levers, budget_s=budget_s, pid=pid)
    if not any(gpu.result is Result.HUNG for gpu in report.gpus):
        driver.close()  # would wait for the hung call
    return report


class _Job:
    """The undoing of one GPU."""

    def __init__(self, driver: Driver, uuid: str, what: str, entries: Sequence[Entry]) -> None:
        """what: the lever, or EVERY."""
        self._driver, self._uuid, self._what, self._entries = driver, uuid, what, entries
        self._device = driver.find(uuid)
        self._done: Restored | None = None
        self._thread: threading.Thread | None = None

    def start(self, journal: Journal, end: float) -> None:
        self._thread = threading.Thread(target=self._run, args=(journal, end), daemon=True)
        self._thread.start()

    def wait(self, end: float) -> Restored:
        if self._thread is not None:
            self._thread.join(max(0.0, end - time.monotonic()) + LONGEST_PAUSE_S / 10)
        return self._done or self._answer(Result.HUNG, "the driver does not answer")

    def _run(self, journal: Journal, end: float) -> None:
        self._driver.use(self._uuid)
        try:
            self._undo(journal, end)
        finally:
            self._driver.disuse(self._uuid)

    def _undo(self, journal: Journal, end: float) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                self._see_it_rise(self._undo_once(), end)
                for entry in self._entries:
                    journal.release_entry(entry)
            except (GpuError, OSError) as error:
                self._device = None  # its handle may be what is wrong
                will_not_change = isinstance(error, GpuPermission) or getattr(error, "code", 0) == NOT_FOUND
                if will_not_change or time.monotonic() + pause_s > end:
                    result = Result.LOST if isinstance(error, GpuLost) else Result.FAILED
                    self._done = self._answer(result, str(error))
                    return
            else:
                self._done = self._answer(Result.RESTORED)
                return
            time.sleep(pause_s)
            pause_s = min(pause_s * PAUSE_GROWTH, LONGEST_PAUSE_S)

    def _undo_once(self) -> Device:
        if self._device is None:
            self._device = self._driver.reopen(self._uuid)
        lever = EveryLever(self._device) if self._what == EVERY else recall(self._device, self._what)
        lever.undo()
        return self._device

    def _see_it_rise(self, device: Device, end: float) -> None:
        """Success is not effect: a GPU in use has its clocks up. Raise GpuCallFailed. One not in use cannot tell."""
        levers = [recall(device, entry.lever) for entry in self._entries if entry.lever != UNKNOWN_LEVER]
        end = min(end, time.monotonic() + RISE_S)
        while any(map(_stays_down, levers)) and device.in_use():
            if time.monotonic() > end:
                raise GpuCallFailed("undone, but its clocks stay down; does another program set them?")
            time.sleep(RISE_POLL_S)

    def _answer(self, result: Result, reason: str = "") -> Restored:
        device = self._driver.find(self._uuid)
        return Restored(self._uuid, device.identity.name if device else "", self._what, result, reason)


def _stays_down(lever: Lever) -> bool:
    try:
        return lever.is_down()
    except GpuError:
        return False  # the undo has succeeded, and nobody says anything else


def _jobs(entries: tuple[Entry, ...], driver: Driver, *, all_levers: bool) -> list[_Job]:
    if not all_levers:
        return [_Job(driver, entry.uuid, entry.lever, (entry,)) for entry in entries]
    uuids = dict.fromkeys([gpu.identity.uuid for gpu in driver.gpus] + [entry.uuid for entry in entries])
    return [_Job(driver, uuid, EVERY, [entry for entry in entries if entry.uuid == uuid]) for uuid in uuids]
