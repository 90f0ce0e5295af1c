"""Brings back what a sleeper that is gone has left in its stages: for `memscaler restore`, and for the guardian.

    python -P undo.py RUNTIME_DIR text|json

Servers come back beside each other, each one's deepest stage first. Waits while a sleeper lives (child/undoing.py). May
be run any number of times.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

if __name__ == "__main__":  # a checkout that is not installed; otherwise it is there already
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    sys.modules["rich"] = None  # type: ignore[assignment]  # structlog would load it, and nothing here draws with it

from memscaler.child import undoing
from memscaler.child.undoing import Report
from memscaler.core.errors import MemscalerError
from memscaler.core.stages import Stage
from memscaler.sleep.drivers.protocol import Broken, Call, Driver, Gone, said
from memscaler.sleep.ending import machine_is_stopping
from memscaler.sleep.journal import Entry, Journal

BUDGET_S = 900.0
LOOK_S, STILL_S = 0.2, 2.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
BUSY = "the servers that sleep are being brought back by the sleeper, which lives still"


@dataclass(frozen=True, slots=True)
class Brought:
    """One server. error: why it is not back, "" if it is."""

    name: str
    stages: tuple[Stage, ...]
    error: str = ""

    def __str__(self) -> str:
        what = ", ".join(self.stages)
        return f"{self.name}: not back from {what}: {self.error}" if self.error else f"{self.name}: back from {what}"


def undo(runtime_dir: Path, *, budget_s: float = BUDGET_S, made: Mapping[Stage, Driver] | None = None) -> Report:
    """Bring back what the journal tells of. made: the drivers. Raise MemscalerError, PermissionMissing."""
    journal = Journal(runtime_dir)
    if not journal.tells_of_something:
        return Report()
    from memscaler.sleep.drivers.make import Around, drivers  # only if there is something to do

    owned = undoing.own(journal, time.monotonic() + budget_s, look_s=LOOK_S, still_s=STILL_S)
    if owned is None:
        return Report(busy=BUSY)
    del owned  # until this process ends: nobody else is to come in between
    end_s = time.monotonic() + budget_s  # whoever had it may have taken all of his time, and not have got anywhere
    found = journal.found()
    if found.entries and machine_is_stopping():
        entries = tuple(each for each in found.entries if each.spells[-1].rule.stage is not Stage.STOP_SERVER)
        found = replace(found, entries=entries)
    known = drivers(Around(runtime_dir)) if made is None else made
    results = [Brought(str(path), (), "this entry of the journal cannot be read") for path in found.unreadable]
    lock = threading.Lock()

    def one(entry: Entry) -> None:
        brought = _bring(entry, known, journal, end_s)
        with lock:
            results.append(brought)

    threads = [threading.Thread(target=one, args=(entry,), daemon=True) for entry in found.entries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(end_s - time.monotonic(), 0.0) + LOOK_S)
    with lock:
        told = {each.name for each in results}
        late = [each for each in found.entries if str(each.server) not in told]
        hang = [Brought(str(each.server), _stages(each), "it did not come back in time") for each in late]
        return Report((*results, *hang))


def _stages(entry: Entry) -> tuple[Stage, ...]:
    return tuple(spell.rule.stage for spell in entry.spells)


def _bring(entry: Entry, known: Mapping[Stage, Driver], journal: Journal, end_s: float) -> Brought:
    """Deepest first; what does not come is tried again until the time is over."""
    for spell in reversed(entry.spells):
        driver, pause_s = known.get(spell.rule.stage), FIRST_PAUSE_S
        if driver is None:
            return Brought(str(entry.server), _stages(entry), f"nobody knows how to leave {spell.rule.stage}")
        while True:
            try:
                timeout_s = min(spell.rule.leave_timeout_s, end_s - time.monotonic())
                with suppress(Gone):
                    driver.leave(spell.memo, Call.within(timeout_s))
                journal.take(entry.server, spell.rule)
                break
            except Broken as error:
                return Brought(str(entry.server), _stages(entry), said(error))
            except (MemscalerError, OSError) as error:
                if time.monotonic() + pause_s >= end_s:
                    return Brought(str(entry.server), _stages(entry), said(error))
            except Exception as error:  # noqa: BLE001  # a mistake in one driver must not keep the other servers down
                return Brought(str(entry.server), _stages(entry), said(error))
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
    return Brought(str(entry.server), _stages(entry))


if __name__ == "__main__":
    sys.exit(undoing.main("sleeper", "sleep.undone", undo, sys.argv[1:]))
