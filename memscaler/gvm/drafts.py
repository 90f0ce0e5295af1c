"""Entries of the journal that are written while it is quiet: when a client comes, one rename makes each of them valid.

    NAME.draft   nobody's: no reader of the journal looks at it
    NAME.json    the entry (journal.py)

A draft is for a freeze of what is not frozen, which is all that has to be quick. What is to be written otherwise (by
another rule, of a place that somebody has set) is written as ever. After the undo the file is a draft again.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from memscaler.core.gpuctl import Knob, Means
from memscaler.gvm.above import Waiter, waiters
from memscaler.gvm.journal import Entry, Journal
from memscaler.gvm.turning import Place, Was
from memscaler.gvm.wanted import Aim, Want, wanted
from memscaler.kernel.processes import PROC

WAS = Was(0)  # not frozen: who is frozen already is somebody else's, and nothing is written


@dataclass(frozen=True, slots=True)
class _Draft:
    entry: Entry
    draft: Path
    valid: Path


class Drafts:
    """Of the process that has the journal's lock. `keep` is slow, and is called by one thread; the rest by any."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lock = threading.Lock()  # of what is below
        self._ready: dict[str, _Draft] = {}
        self._used: dict[str, _Draft] = {}
        self._kept: frozenset[str] = frozenset()
        self._tidied = False

    def keep(self, aims: Iterable[Aim], proc: Path = PROC) -> None:
        """These may be to do soon. What cannot be written is written, or refused, when its time comes."""
        known = [aim for aim in aims if aim.place.knob is Knob.COMPUTE_FREEZE and aim.value == 1]
        wants = wanted(known, {(aim.rule, aim.watch) for aim in known})
        if wants and not self._tidied:
            self._journal.tidy()
            self._tidied = True
        with self._lock:
            self._kept = frozenset(wants)
            over = [self._ready.pop(key) for key in self._ready.keys() - self._kept]
        for each in over:
            with contextlib.suppress(OSError):
                each.draft.unlink(missing_ok=True)
        for key, want in wants.items():
            with contextlib.suppress(OSError):
                above = waiters(want.place.pid, proc) if want.place.means is Means.SIGNAL else ()
                self._make(key, entry_of(self._journal, want.place, WAS, (1,), want, above))

    def _make(self, key: str, entry: Entry) -> None:
        with self._lock:
            ready = self._ready.get(key)
            if key in self._used or (ready is not None and ready.entry == entry and ready.draft.exists()):
                return
            self._ready.pop(key, None)  # before its file is another one
        draft = self._journal.draft(entry)
        with self._lock:
            self._ready[key] = _Draft(entry, draft, self._journal.path(entry.place))

    def waiting(self, place: Place) -> tuple[Waiter, ...] | None:
        """Who is above that process, whether he is stopped or not; None if that was not looked at."""
        with self._lock:
            ready = self._ready.get(place.key)
        return None if ready is None else ready.entry.waiting

    def use(self, entry: Entry) -> bool:
        """This place is about to be turned. False: there is no such draft, write it."""
        key = entry.place.key
        with self._lock:
            ready = self._ready.pop(key, None)
            if ready is None or ready.entry != replace(entry, at_unix_s=0.0):
                self._used.pop(key, None)
                return False
            try:
                os.replace(ready.draft, ready.valid)  # noqa: PTH105  # quicker
            except OSError:  # somebody has tidied up
                return False
            self._used[key] = ready
        return True

    def back(self, place: Place) -> bool:
        """Nothing of ours is there any more. False: the file is no draft's, take it away."""
        with self._lock:
            used = self._used.pop(place.key, None)
            if used is None or place.key not in self._kept:
                return False
            try:
                os.replace(used.valid, used.draft)  # noqa: PTH105
            except OSError:
                return False
            self._ready[place.key] = used
        return True


def entry_of(
    journal: Journal,
    place: Place,
    was: Was,
    ours: tuple[int, ...],
    whose: Want | None,
    waiting: tuple[Waiter, ...] = (),
) -> Entry:
    """at_unix_s is left 0: its file tells when it became valid. whose: for people who read the journal."""
    name = whose.subjects[0].name if whose is not None and whose.subjects else ""
    rule = "" if whose is None else whose.rule
    return Entry(place, was, ours, journal.boot_id, name, rule, 0.0, os.getpid(), waiting)
