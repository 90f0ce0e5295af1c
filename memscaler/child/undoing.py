"""Undoes what a child that is gone has left: what gvm/undo.py and sleep/undo.py have in common.

They wait while a child lives: it undoes everything itself when its governor has gone. One that stands still (SIGSTOP, a
debugger) does not, so it is killed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from memscaler.child.journal import Entry, Journal, Rival
from memscaler.core.errors import MemscalerError, PermissionMissing

log = structlog.get_logger()


class Result(Protocol):
    """Of one entry of the journal; str() is for people. error: why it is not undone, "" if it is."""

    @property
    def error(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Report:
    """How it went with those that are worth a word. busy: of a child that lives, and will do it; "" if none does."""

    results: tuple[Result, ...] = ()
    busy: str = ""

    @property
    def ok(self) -> bool:
        return not self.busy and not any(each.error for each in self.results)

    def lines(self) -> tuple[str, ...]:
        """For people; () if there was nothing to do."""
        return (*((self.busy,) if self.busy else ()), *(str(each) for each in self.results))


def own(journal: Journal[Entry], end_s: float, *, look_s: float, still_s: float) -> int | None:
    """The right to act; None: a child lives, and has it.

    end_s: until when to wait, of CLOCK_MONOTONIC. look_s: how often to look. still_s: how long it may stand still.
    Raise MemscalerError, PermissionMissing.
    """
    rival = Rival(journal, still_s)
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
        time.sleep(look_s)


def main(name: str, event: str, undo: Callable[[Path], Report], arguments: Sequence[str]) -> int:
    """The program: RUNTIME_DIR text|json. Exit status as of `memscaler restore`. Its lines are of the governor's form.

    name: of the child whose it was. event: of each line.
    """
    from memscaler.child.lines import speak  # `memscaler restore` has lines of its own

    form = arguments[1]
    speak(name, form, "info")
    try:
        report = undo(Path(arguments[0]))
        lines, ok = report.lines(), report.ok
    except MemscalerError as error:
        lines, ok = (str(error),), False
    for line in lines:
        if form == "json":
            (log.info if ok else log.error)(event, what=line)
        else:
            with suppress(OSError):
                sys.stderr.write(f"memscaler restore: {line}\n")
    return 0 if ok else 1
