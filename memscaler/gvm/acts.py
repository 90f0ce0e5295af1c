"""Doing what the book says: journal first, then the kernel or the driver; and what has come of it.

Called by several threads, for one place by one at a time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from memscaler.child.standstill import is_stop_pending, stands_still, state
from memscaler.core.errors import in_a_line
from memscaler.core.gpuctl import Knob, Means
from memscaler.core.knobs import DEFAULTS
from memscaler.gvm import turning
from memscaler.gvm.above import Above
from memscaler.gvm.book import Ended, NotTurned, NotUndone, Turn, Turned, Undo
from memscaler.gvm.drafts import Drafts, entry_of
from memscaler.gvm.errors import Gone, KnobError, Refused
from memscaler.gvm.journal import Entry, Journal
from memscaler.gvm.turning import Grip, Outcome, Place, Was
from memscaler.gvm.wanted import Want
from memscaler.kernel.processes import PROC

FROZEN_BEFORE = "somebody else has frozen it before us"
NOT_OURS = "somebody else has changed it since"

log = structlog.get_logger()


@dataclass
class Acts:
    """On the processes of this machine."""

    journal: Journal
    proc: Path = PROC
    drafts: Drafts = field(init=False)
    above: Above = field(default_factory=Above)

    def __post_init__(self) -> None:
        self.drafts = Drafts(self.journal)

    def turn(self, action: Turn, grip: Grip | None, whose: Want | None) -> Turned | NotTurned | Ended:
        """grip: the place, kept open. whose: for people who read the journal."""
        key, call, was = action.key, action.call, action.was
        try:
            if was is None or action.again:
                now = self._now(action.place, grip)
                if action.again and self._is_about_to(action.place):
                    now = Was(action.value)
                if was is None and self.above.stops_because_of_us(action.place):
                    now = Was(0)
                if (settled := _settled(action, now)) is not None:
                    return settled
                was = was or now
            waiting = self.above.running(action.place, self.drafts.waiting(action.place), self.proc)
            self._write_down(entry_of(self.journal, action.place, was, action.ours, whose, waiting))
            self.above.note(action.place, waiting)
            if grip is None:
                turning.turn(action.place, action.value, self.proc)
            else:
                grip.turn(action.value)
        except Gone:
            return self._ended(action)
        except (KnobError, OSError) as error:
            changed = isinstance(error, Refused) and error.changed
            if action.was is None and not changed:
                self._let_go_above(action.place)
                self._forget(action.place)
            why, now_s = in_a_line(error), time.monotonic()
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
            return NotUndone(action.key, action.call, in_a_line(error), time.monotonic())
        if outcome is Outcome.LEFT:
            log.info("gpuctl.left", pid=action.place.pid, knob=str(action.place.knob), why=NOT_OURS)
        return self._ended(action)

    def adopt(self, entry: Entry) -> None:
        """What an earlier arbiter has left, before its undo."""
        self.above.note(entry.place, entry.waiting, at_s=time.monotonic() - (time.time() - entry.at_unix_s))

    def look_above(self, now_s: float) -> None:
        """When it is due: those who learn late that what they wait for was stopped."""
        self.above.look(now_s, self.proc, _stays_stopped)

    def _let_go_above(self, place: Place) -> None:
        for problem in self.above.let_go(place, self.proc):
            _stays_stopped(problem)

    def _ended(self, action: Turn | Undo) -> Ended:
        self._let_go_above(action.place)
        self._forget(action.place)
        return Ended(action.key, action.call, time.monotonic())

    def _forget(self, place: Place) -> None:
        try:
            if not self.drafts.back(place):
                self.journal.take(place)
        except OSError as error:  # undoing it once more does no harm
            log.error("gpuctl.journal_failed", err=str(error))

    def _write_down(self, entry: Entry) -> None:
        """Valid before anything is turned. Raise OSError."""
        if not self.drafts.use(entry):
            self.journal.add(replace(entry, at_unix_s=time.time()))


def _stays_stopped(problem: str) -> None:
    log.warning("gpuctl.stays_stopped", err=problem)


def put_back(place: Place, was: Was, ours: tuple[int, ...], proc: Path = PROC) -> Outcome:
    """The newest value of ours that is there still goes back to what was. Raise KnobError, OSError."""
    outcome = Outcome.LEFT
    for value in reversed(ours):
        outcome = turning.undo(place, was, value, proc)
        if outcome is not Outcome.LEFT:
            break
    return outcome


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
