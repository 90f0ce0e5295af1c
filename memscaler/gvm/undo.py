"""Puts back what an arbiter that is gone has set on processes: for `memscaler restore`, and for the guardian.

    python -P undo.py RUNTIME_DIR text|json

Waits while an arbiter lives (child/undoing.py). May be run any number of times.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # a checkout that is not installed; otherwise it is there already
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    sys.modules["rich"] = None  # type: ignore[assignment]  # structlog would load it, and nothing here draws with it

from memscaler.child import undoing
from memscaler.child.undoing import Report
from memscaler.core.errors import in_a_line
from memscaler.core.gpuctl import Knob
from memscaler.gvm.above import let_all_go
from memscaler.gvm.acts import put_back
from memscaler.gvm.errors import KnobError
from memscaler.gvm.journal import STILL_S, Entry, Journal
from memscaler.gvm.turning import Outcome

BUDGET_S = 60.0
LOOK_S = 0.1
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
BUSY = "what is set on GPU processes is being put back by the arbiter, which lives"


@dataclass(frozen=True, slots=True)
class Back:
    """One knob of one process. error: why it is not back; outcome: how it is, "" if it is not."""

    what: str
    outcome: str = ""
    error: str = ""

    def __str__(self) -> str:
        if self.error:
            return f"{self.what}: not put back: {self.error}"
        how = {Outcome.BACK: "put back", Outcome.LEFT: "left, somebody else has changed it", Outcome.GONE: "gone"}
        return f"{self.what}: {how[Outcome(self.outcome)]}"


def undo(runtime_dir: Path, *, budget_s: float = BUDGET_S) -> Report:
    """Put back what the journal tells of. Raise MemscalerError, PermissionMissing."""
    journal = Journal(runtime_dir)
    if not journal.tells_of_something:
        return Report()
    owned = undoing.own(journal, time.monotonic() + budget_s, look_s=LOOK_S, still_s=STILL_S)
    if owned is None:
        return Report(busy=BUSY)
    end_s = time.monotonic() + budget_s  # whoever had it may have taken all of his time, and not have got anywhere
    try:
        found = journal.found()
        results = [Back(str(path), error="this entry of the journal cannot be read") for path in found.unreadable]
        results += _all(found.entries, journal, end_s)
        return Report(tuple(each for each in results if each.outcome != Outcome.GONE))  # that is not worth a word
    finally:
        journal.release(owned)


def _all(entries: tuple[Entry, ...], journal: Journal, end_s: float) -> list[Back]:
    """Beside each other: one that hangs in a driver holds up no other. Freezes first."""
    done: dict[str, Back] = {}
    lock = threading.Lock()

    def one(entry: Entry) -> None:
        back = _back(entry, journal, end_s)
        with lock:
            done[entry.place.key] = back

    ordered = sorted(entries, key=lambda each: each.place.knob is not Knob.COMPUTE_FREEZE)
    threads, left = [], list[Entry]()
    for entry in ordered:
        thread = threading.Thread(target=one, args=(entry,), daemon=True)
        try:
            thread.start()
            threads.append(thread)
        except RuntimeError:  # no room for so many: one after the other
            left.append(entry)
    for entry in left:
        one(entry)
    for thread in threads:
        thread.join(max(end_s - time.monotonic(), 0.0) + LOOK_S)
    with lock:
        hangs = "it did not end in time"
        return [done.get(entry.place.key, Back(str(entry), error=hangs)) for entry in entries]


def _back(entry: Entry, journal: Journal, end_s: float) -> Back:
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            outcome = put_back(entry.place, entry.was, entry.ours)
            problems = let_all_go(entry.waiting, entry.at_unix_s)
            journal.take(entry.place)
            return Back(str(entry), outcome, "; ".join(dict.fromkeys(problems)))
        except (KnobError, OSError) as error:
            if time.monotonic() + pause_s >= end_s:
                return Back(str(entry), error=in_a_line(error))
        except Exception as error:  # noqa: BLE001  # a mistake with one must not keep the others frozen
            return Back(str(entry), error=f"{type(error).__name__}: {error}")
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, LONGEST_PAUSE_S)


if __name__ == "__main__":
    status = undoing.main("arbiter", "gpuctl.undone", undo, sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)  # a thread may hang in a driver: nobody waits for it
