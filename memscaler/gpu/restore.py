"""Undo what a memscaler that is gone left behind. Needs no daemon and no configuration; may run any number of times.

Each GPU is undone in a thread of its own: one that hangs in the driver does not keep the others down.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from memscaler.core.errors import GpuError, GpuLost, GpuPermission
from memscaler.gpu.inventory import Driver, open_driver
from memscaler.gpu.journal import Entry, Journal
from memscaler.gpu.levers import EveryLever, Lever, recall

FIRST_PAUSE_S = 0.05
PAUSE_GROWTH = 2.0
LONGEST_PAUSE_S = 1.0


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


def restore(journal: Journal, driver: Driver, *, all_levers: bool = False, budget_s: float = 5.0) -> RestoreReport:
    """Undo what the journal says is applied; with `all_levers`, reset every lever of every GPU.

    Entries are released as their undo succeeds and kept otherwise, for the next try.
    """
    jobs = _jobs(journal.entries(), driver, all_levers=all_levers)
    end = time.monotonic() + budget_s
    for job in jobs:
        job.start(journal, end)
    return RestoreReport(tuple(job.wait(end) for job in jobs))


def restore_from(directory: Path | str, *, all_levers: bool = False, budget_s: float = 5.0) -> RestoreReport:
    """Like `restore`, but opens the driver only if there is something to do. Raise DriverUnavailable."""
    journal = Journal(directory)
    if not all_levers and not journal.entries():
        return RestoreReport()
    driver = open_driver()
    report = restore(journal, driver, all_levers=all_levers, budget_s=budget_s)
    if not any(gpu.result is Result.HUNG for gpu in report.gpus):
        driver.close()  # would wait for the hung call
    return report


class _Job:
    """The undoing of one GPU."""

    def __init__(  # private, and built in one place
        self, uuid: str, name: str, what: str, lever: Lever | None, entries: Sequence[Entry], reason: str = ""
    ) -> None:
        self._entries = entries
        self._uuid, self._name, self._what, self._lever = uuid, name, what, lever
        self._done = self._answer(Result.LOST, reason) if lever is None else None
        self._thread: threading.Thread | None = None

    def start(self, journal: Journal, end: float) -> None:
        if self._lever is not None:
            self._thread = threading.Thread(target=self._undo, args=(journal, self._lever, end), daemon=True)
            self._thread.start()

    def wait(self, end: float) -> Restored:
        if self._thread is not None:
            self._thread.join(max(0.0, end - time.monotonic()) + LONGEST_PAUSE_S / 10)
        return self._done or self._answer(Result.HUNG, "the driver does not answer")

    def _undo(self, journal: Journal, lever: Lever, end: float) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                lever.undo()
                for entry in self._entries:
                    journal.release_entry(entry)
            except GpuPermission as error:  # will not change
                self._done = self._answer(Result.FAILED, str(error))
                return
            except (GpuError, OSError) as error:
                if time.monotonic() + pause_s > end:
                    result = Result.LOST if isinstance(error, GpuLost) else Result.FAILED
                    self._done = self._answer(result, str(error))
                    return
            else:
                self._done = self._answer(Result.RESTORED)
                return
            time.sleep(pause_s)
            pause_s = min(pause_s * PAUSE_GROWTH, LONGEST_PAUSE_S)

    def _answer(self, result: Result, reason: str = "") -> Restored:
        return Restored(self._uuid, self._name, self._what, result, reason)


def _jobs(entries: tuple[Entry, ...], driver: Driver, *, all_levers: bool) -> list[_Job]:
    jobs = []
    for entry in entries:
        device = driver.find(entry.uuid)
        if device is None:
            reasons = "; ".join(f"gpu{gpu.index}: {gpu.reason}" for gpu in driver.lost)
            jobs.append(_Job(entry.uuid, "", entry.lever, None, (entry,), reasons or "not among this machine's GPUs"))
        elif not all_levers:
            jobs.append(_Job(entry.uuid, device.identity.name, entry.lever, recall(device, entry.lever), (entry,)))
    if all_levers:
        for gpu in driver.gpus:
            mine = [entry for entry in entries if entry.uuid == gpu.identity.uuid]
            jobs.append(_Job(gpu.identity.uuid, gpu.identity.name, "every lever", EveryLever(gpu), mine))
    return jobs
