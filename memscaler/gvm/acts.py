"""Doing what the book says: journal first, then the kernel or the driver; and what has come of it.

Called by several threads, for one place by one at a time.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import structlog

from memscaler.core.gpuctl import Knob, Means
from memscaler.core.knobs import DEFAULTS
from memscaler.gvm import turning
from memscaler.gvm.book import Ended, NotTurned, NotUndone, Turn, Turned, Undo
from memscaler.gvm.errors import Gone, KnobError, Refused
from memscaler.gvm.journal import Entry, Journal
from memscaler.gvm.turning import Grip, Outcome, Place, Was
from memscaler.gvm.wanted import Want
from memscaler.kernel.processes import PROC
from memscaler.servers.standstill import is_stop_pending, stands_still, state

FROZEN_BEFORE = "somebody else has frozen it before us"
NOT_OURS = "somebody else has changed it since"

log = structlog.get_logger()


@dataclass
class Acts:
    """On the processes of this machine."""

    journal: Journal
    proc: Path = PROC

    def turn(self, action: Turn, grip: Grip | None, whose: Want | None) -> Turned | NotTurned | Ended:
        """grip: the place, kept open. whose: for people who read the journal."""
        key, call, was = action.key, action.call, action.was
        try:
            if was is None or action.again:
                now = self._now(action.place, grip)
                if action.again and self._is_about_to(action.place):
                    now = Was(action.value)
                if (settled := _settled(action, now)) is not None:
                    return settled
                was = was or now
            self.journal.add(self._entry(action, was, whose))
            if grip is None:
                turning.turn(action.place, action.value, self.proc)
            else:
                grip.turn(action.value)
        except Gone:
            return self._ended(action)
        except (KnobError, OSError) as error:
            changed = isinstance(error, Refused) and error.changed
            if action.was is None and not changed:
                self._forget(action.place)
            why, now_s = said(error), time.monotonic()
            return NotTurned(key, call, why, now_s, changed=changed, was=was, at_unix_s=time.time())
        return Turned(key, call, was, time.time())

    def _now(self, place: Place, grip: Grip | None) -> Was:
        if grip is not None and place.means is Means.SIGNAL:  # the grip is of this process, so it needs no proof
            return Was(int(stands_still(place.pid, self.proc)))
        return turning.read(place, self.proc)

    def _is_about_to(self, place: Place) -> bool:
        """In a driver's call, or frozen by its cgroup, it cannot stop yet: nobody else has let it go on."""
        if place.means is not Means.SIGNAL:
            return False
        return state(place.pid, self.proc) == "D" or is_stop_pending(place.pid, self.proc)

    def undo(self, action: Undo) -> Ended | NotUndone:
        """A value of ours that is there still goes back to what was; a freeze always does."""
        try:
            outcome = put_back(action.place, action.was, action.ours, self.proc)
        except (KnobError, OSError) as error:
            return NotUndone(action.key, action.call, said(error), time.monotonic())
        if outcome is Outcome.LEFT:
            log.info("gpuctl.left", pid=action.place.pid, knob=str(action.place.knob), why=NOT_OURS)
        return self._ended(action)

    def _ended(self, action: Turn | Undo) -> Ended:
        self._forget(action.place)
        return Ended(action.key, action.call, time.monotonic())

    def _forget(self, place: Place) -> None:
        try:
            self.journal.take(place)
        except OSError as error:  # undoing it once more does no harm
            log.error("gpuctl.journal_failed", err=str(error))

    def _entry(self, action: Turn, was: Was, whose: Want | None) -> Entry:
        name = whose.subjects[0].name if whose is not None and whose.subjects else ""
        rule = "" if whose is None else whose.rule
        return Entry(action.place, was, action.ours, self.journal.boot_id, name, rule, time.time(), os.getpid())


def put_back(place: Place, was: Was, ours: tuple[int, ...], proc: Path = PROC) -> Outcome:
    """The newest value of ours that is there still goes back to what was. Raise KnobError, OSError."""
    outcome = Outcome.LEFT
    for value in reversed(ours):
        outcome = turning.undo(place, was, value, proc)
        if outcome is not Outcome.LEFT:
            break
    return outcome


def said(error: Exception) -> str:
    """A line."""
    hint = getattr(error, "hint", None)
    return f"{error} ({hint})" if hint else str(error)


def _settled(action: Turn, now: Was) -> Turned | NotTurned | None:
    """What was found makes an act needless, or is somebody else's; None: act."""
    place, is_so = action.place, {now.value, *now.threads.values()} == {action.value}
    if action.was is None:
        is_frozen = place.knob is Knob.COMPUTE_FREEZE and bool(now.value)
        return _lost(action, FROZEN_BEFORE) if is_frozen else None
    if is_so:
        return None if _forgets(place) else Turned(action.key, action.call, action.was)
    has_come_back = place.means is Means.GVM and now.value == DEFAULTS[place.knob]  # to its GPU, which forgets
    if has_come_back or now.value == action.value:  # or it has more threads now
        return None
    return _lost(action, NOT_OURS)


def _lost(action: Turn, why: str) -> NotTurned:
    return NotTurned(action.key, action.call, why, time.monotonic(), was=action.was, lost=True)


def _forgets(place: Place) -> bool:
    """What a process begins later does not inherit it (A10), and reading it back does not tell: it is written again."""
    return place.means is Means.GVM and place.knob in (Knob.COMPUTE_PRIORITY, Knob.COMPUTE_FREEZE)
