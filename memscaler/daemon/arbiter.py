"""The governor's side of what is set on the applications of GPUs: keeps the arbiter running (child.py tells how).

It runs while a [[gpuctl]] rule is configured, or GVM's driver is there (for its figures). Beside what every child is:
it has an urgent channel, on which actuators ask it before they touch clocks, and is asked for readings when somebody
wants to see them.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import structlog

from memscaler.config.schema import Settings
from memscaler.core.gpuctl import Gpuctl, GvmAt, RuleState
from memscaler.core.model import FOR_EVER_NS, SECOND_NS
from memscaler.daemon import rights
from memscaler.daemon.arbiter_words import WORDS
from memscaler.daemon.child import Child, Kind
from memscaler.daemon.child_process import ChildProcess
from memscaler.daemon.child_words import Done
from memscaler.daemon.governing import Governing
from memscaler.daemon.journals import CONTROLLED
from memscaler.daemon.urgent import Urgent
from memscaler.daemon.watching import Watching

LEFT_PAUSE_NS = 2 * SECOND_NS  # at most before the next one, while somebody may stand still
PROBE_NS = 5 * SECOND_NS  # while something is set it is asked so often whether it lives: who leaves is not always told
END_S = 10.0  # what is frozen goes on at once; a limit that is taken away may have to wait for one that is being set
STARTING = "the arbiter is starting: no rule is in force yet"
KIND = Kind(
    "arbiter",
    CONTROLLED,
    WORDS,
    next_one="undoes what is set",
    left="something may still be frozen: memscaler restore",
    no_more="memscaler sets nothing on applications from now on",
)

log = structlog.get_logger()


class Book(Protocol):
    """Who writes down what it tells."""

    def controlled(self, gpuctl: Gpuctl) -> None: ...


class Arbiter(Child):
    """Used by the loop's thread. start None: a dry run has none. urgent: is given each arbiter's channel."""

    def __init__(
        self,
        start: Callable[[], ChildProcess] | None,
        settings: Settings,
        epoll: select.epoll,
        governing: Governing,
        watching: Watching,
        book: Book,
        urgent: Urgent,
    ) -> None:
        super().__init__(KIND, start, settings, epoll, governing, watching)
        self._book, self._urgent = book, urgent
        self._gpuctl = Gpuctl()
        self._asked: dict[int, int] = {}  # for readings: when, by number
        self._number = 0
        self._lacking: tuple[str, ...] = ()  # capabilities, and it was said
        self._probe_due_ns = 0
        self._read_ns = 0  # when the readings were asked for that were told last

    # ---- what kind of child it is -----------------------------------------------------------------------------------

    def _is_wanted(self) -> bool:
        if self._settings.gpuctl:
            return True
        try:
            return (self._settings.gvm.root / "nvidia-uvm" / "processes").is_dir()
        except OSError:  # debugfs is for root
            return False

    def _rules(self) -> dict[str, object]:
        gpus = self._watching.gpu_names(())
        lacking = rights.lacking(self._settings.gpuctl)
        if lacking and lacking != self._lacking:
            log.warning("gpuctl.rights_missing", lacking=lacking, hint=rights.REMEDY)
        self._lacking = lacking
        return {"rules": self._settings.gpuctl, "gvm": self._settings.gvm, "gpu_names": gpus}

    def _longest_pause_ns(self) -> int:
        return LEFT_PAUSE_NS if self.has_left_something else super()._longest_pause_ns()

    def _patience_s(self) -> float:
        return END_S

    def _runs(self, process: ChildProcess) -> None:
        if process.urgent is not None:
            self._urgent.attach(process.urgent)
        rules = self._gpuctl.rules or tuple(  # none of them is in force until it tells
            RuleState(rule.name, rule.when, why_not=STARTING, waits=True) for rule in self._settings.gpuctl
        )
        self._tell_book(replace(self._gpuctl, pid=process.pid, problem="", rules=rules))

    def _stopped(self, why: str) -> None:  # noqa: ARG002  # nobody waits for an answer of it
        self._urgent.detach()
        self._asked.clear()
        self._probe_due_ns = 0

    def _say_what_is_not(self, problem: str) -> None:
        # what it told last stays true until the next one has looked
        kept = self._gpuctl if problem else Gpuctl()
        self._tell_book(replace(kept, pid=None, problem=problem, first=()))

    def _tell_book(self, gpuctl: Gpuctl) -> None:
        if gpuctl.pid is not None:
            gvm = self._settings.gvm
            gpuctl = replace(gpuctl, gvm_at=GvmAt(str(gvm.root), str(gvm.proc), gvm.gpu_map))
        self._gpuctl = gpuctl
        self._book.controlled(gpuctl)

    def _said(self, said: object) -> None:
        self._says_last(said)
        if isinstance(said, Gpuctl):
            self._urgent.first, self._urgent.gvm = frozenset(said.first), said.gvm
            if not said.controlled:
                self._probe_due_ns = 0
            elif not self._probe_due_ns:
                self._probe_due_ns = time.monotonic_ns() + PROBE_NS

    def _says_last(self, said: object) -> None:
        match said:
            case Gpuctl():
                pid = self._process.pid if self._process is not None else None
                note = rights.sentence(self._lacking)
                notes = {**said.notes, rights.ABOUT: f"{note}: {rights.REMEDY}"} if note else said.notes
                self._tell_book(replace(said, pid=pid, notes=notes))
            case Done(number):
                self._read_ns = max(self._read_ns, self._asked.pop(number, 0))

    # ---- while something is set -------------------------------------------------------------------------------------

    @property
    def due_ns(self) -> list[int]:
        return [*super().due_ns, self._probe_due_ns] if self._probe_due_ns else super().due_ns

    def turn(self, now_ns: int) -> None:
        """One that stands still has something unread then, and is replaced: nobody else would let go."""
        if 0 < self._probe_due_ns <= now_ns:
            self._probe_due_ns = now_ns + PROBE_NS
            self.read()
        super().turn(now_ns)

    # ---- readings -------------------------------------------------------------------------------------------------

    def look_for_it(self) -> None:
        """GVM's driver may be loaded later than we: to be called now and then."""
        if self._process is None and not self._start_due_ns and self._is_wanted():  # what is left: it has tried
            self.begin()

    def read(self) -> None:
        """Somebody wants to know how things are now."""
        if self._process is not None and not self._end_by_ns:
            self._number += 1
            self._asked[self._number] = time.monotonic_ns()
            self._tell("read", {"id": self._number})

    def oldest_ns(self) -> int:
        """When the readings were asked for that are known now; nobody need wait for those of an arbiter that is not."""
        return self._read_ns if self._process is not None and not self._end_by_ns else FOR_EVER_NS
