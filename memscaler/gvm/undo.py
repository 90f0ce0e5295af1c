"""Puts back what an arbiter that is gone has set on processes: for `memscaler restore`, and for the guardian.

    python -P undo.py RUNTIME_DIR text|json

Waits while an arbiter lives: it puts everything back itself when its governor has gone. One that stands still (SIGSTOP,
a debugger) does not, so it is killed. May be run any number of times.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # a checkout that is not installed; otherwise it is there already
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    sys.modules["rich"] = None  # type: ignore[assignment]  # structlog would load it, and nothing here draws with it

import structlog

from memscaler.core.errors import MemscalerError, PermissionMissing
from memscaler.core.gpuctl import Knob
from memscaler.gvm.acts import put_back, said
from memscaler.gvm.errors import KnobError
from memscaler.gvm.journal import Entry, Journal, Rival, anything_to_undo
from memscaler.gvm.turning import Outcome
from memscaler.observe.log import configure

BUDGET_S = 60.0
LOOK_S = 0.1
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0

log = structlog.get_logger()

__all__ = ["Report", "anything_to_undo", "main", "undo"]


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


@dataclass(frozen=True, slots=True)
class Report:
    """How it went. busy: an arbiter lives, and will do it."""

    places: tuple[Back, ...] = ()
    busy: bool = False

    @property
    def ok(self) -> bool:
        return not self.busy and not any(each.error for each in self.places)

    def lines(self) -> tuple[str, ...]:
        """For people; () if there was nothing to do. Who is gone is not worth a word."""
        busy = ("what is set on GPU processes is being put back by the arbiter, which lives",) if self.busy else ()
        return (*busy, *(str(each) for each in self.places if each.outcome != Outcome.GONE))


def undo(runtime_dir: Path, *, budget_s: float = BUDGET_S) -> Report:
    """Put back what the journal tells of. Raise MemscalerError, PermissionMissing."""
    if not anything_to_undo(runtime_dir):
        return Report()
    journal = Journal(runtime_dir)
    owned = _own(journal, time.monotonic() + budget_s)
    if owned is None:
        return Report(busy=True)
    end_s = time.monotonic() + budget_s  # whoever had it may have taken all of his time, and not have got anywhere
    try:
        found = journal.found()
        results = [Back(str(path), error="this entry of the journal cannot be read") for path in found.unreadable]
        return Report((*results, *_all(found.entries, journal, end_s)))
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
            journal.take(entry.place)
            return Back(str(entry), outcome)
        except (KnobError, OSError) as error:
            if time.monotonic() + pause_s >= end_s:
                return Back(str(entry), error=said(error))
        except Exception as error:  # noqa: BLE001  # a mistake with one must not keep the others frozen
            return Back(str(entry), error=f"{type(error).__name__}: {error}")
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, LONGEST_PAUSE_S)


def _own(journal: Journal, end_s: float) -> int | None:
    """The right to act; None: an arbiter lives, and has it."""
    rival = Rival(journal)
    while True:
        try:
            return journal.own()
        except BlockingIOError:
            now_s = time.monotonic()
            if now_s >= end_s:
                return None
            rival.look(now_s)
        except PermissionError as error:
            raise PermissionMissing(f"cannot write {journal.folder}") from error
        except OSError as error:
            raise MemscalerError(f"cannot write {journal.folder}: {error.strerror}") from error
        time.sleep(LOOK_S)


def main(arguments: list[str]) -> int:
    """Exit status as of `memscaler restore`. Its lines are of the governor's form."""
    configure("json" if arguments[1] == "json" else "console", "info", os.environ)
    try:
        report = undo(Path(arguments[0]))
        lines, ok = report.lines(), report.ok
    except MemscalerError as error:
        lines, ok = (str(error),), False
    for line in lines:
        if arguments[1] == "json":
            (log.info if ok else log.error)("gpuctl.undone", what=line)
        else:
            with contextlib.suppress(OSError):
                sys.stderr.write(f"memscaler restore: {line}\n")
    return 0 if ok else 1


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)  # a thread may hang in a driver: nobody waits for it
