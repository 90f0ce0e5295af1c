"""Brings back what a sleeper that is gone has left in its stages: for `memscaler restore`, and for the guardian.

    python -P undo.py RUNTIME_DIR text|json

Servers come back beside each other, each one's deepest stage first. Waits while a sleeper lives: it brings them back
itself when its governor has gone. One that stands still (SIGSTOP, a debugger) does not, so it is killed. May be run any
number of times.
"""

from __future__ import annotations

import os
import signal
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

import structlog

from memscaler.core.errors import MemscalerError, PermissionMissing
from memscaler.core.stages import Stage
from memscaler.servers.standstill import stands_still
from memscaler.sleep.drivers.protocol import Broken, Call, Driver, Gone, said
from memscaler.sleep.ending import machine_is_stopping
from memscaler.sleep.journal import Entry, Journal

BUDGET_S = 900.0
LOOK_S, STILL_S = 0.2, 2.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Brought:
    """One server. error: why it is not back, "" if it is."""

    name: str
    stages: tuple[Stage, ...]
    error: str = ""

    def __str__(self) -> str:
        what = ", ".join(self.stages)
        return f"{self.name}: not back from {what}: {self.error}" if self.error else f"{self.name}: back from {what}"


@dataclass(frozen=True, slots=True)
class Report:
    """How it went. busy: a sleeper lives, and will do it."""

    servers: tuple[Brought, ...] = ()
    busy: bool = False

    @property
    def ok(self) -> bool:
        return not self.busy and not any(each.error for each in self.servers)

    def lines(self) -> tuple[str, ...]:
        """For people; () if there was nothing to do."""
        busy = ("the servers that sleep are being brought back by the sleeper, which lives still",) if self.busy else ()
        return (*busy, *(str(each) for each in self.servers))


def anything_to_undo(runtime_dir: Path) -> bool:
    """Cheap: whether to begin at all."""
    return any((runtime_dir / "sleep").glob("*.json"))


def undo(runtime_dir: Path, *, budget_s: float = BUDGET_S, made: Mapping[Stage, Driver] | None = None) -> Report:
    """Bring back what the journal tells of. made: the drivers. Raise MemscalerError, PermissionMissing."""
    if not anything_to_undo(runtime_dir):
        return Report()
    from memscaler.sleep.drivers.make import Around, drivers  # only if there is something to do

    journal = Journal(runtime_dir)
    owned = _own(journal, time.monotonic() + budget_s)
    if owned is None:
        return Report(busy=True)
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


def _own(journal: Journal, end_s: float) -> int | None:
    """The right to act; None: a sleeper lives, and has it."""
    still: tuple[int, float] | None = None  # who, since when
    while True:
        try:
            return journal.own()
        except BlockingIOError:
            now_s, owner = time.monotonic(), journal.owner()
            if now_s >= end_s:
                return None
            if owner is None or not stands_still(owner):
                still = None
            elif still is None or still[0] != owner:
                still = owner, now_s
            elif now_s >= still[1] + STILL_S:
                with suppress(OSError):
                    os.kill(owner, signal.SIGKILL)
        except PermissionError as error:
            raise PermissionMissing(f"cannot write {journal.folder}") from error
        except OSError as error:
            raise MemscalerError(f"cannot write {journal.folder}: {error.strerror}") from error
        time.sleep(LOOK_S)


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


def main(arguments: list[str]) -> int:
    """Exit status as of `memscaler restore`. Its lines are of the governor's form, whoever's they are."""
    from memscaler.sleep.lines import speak

    speak(arguments[1], "info")
    try:
        report = undo(Path(arguments[0]))
        lines, ok = report.lines(), report.ok
    except MemscalerError as error:
        lines, ok = (str(error),), False
    for line in lines:
        if arguments[1] == "json":
            (log.info if ok else log.error)("sleep.undone", what=line)
        else:
            with suppress(OSError):
                sys.stderr.write(f"memscaler restore: {line}\n")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
