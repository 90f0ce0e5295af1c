"""The governor's side of deeper sleep: keeps the sleeper running while stages are configured (child.py tells how).

Beside what every child is: its own connections count for nobody (they are announced), it is asked what operators want,
and servers whose watches it guards are asleep, or about to be.
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from contextlib import ExitStack
from dataclasses import replace
from typing import NoReturn, Protocol

import structlog

from memscaler.config.schema import Settings
from memscaler.core.errors import Failed, MemscalerError
from memscaler.core.stages import Sleep
from memscaler.daemon import child_picture
from memscaler.daemon.child import Child, Kind
from memscaler.daemon.child_picture import Key
from memscaler.daemon.child_process import ChildProcess
from memscaler.daemon.child_words import Done
from memscaler.daemon.governing import Governing
from memscaler.daemon.journals import ASLEEP
from memscaler.daemon.requests import Document
from memscaler.daemon.sleeper_words import WORDS, Announce, Forget
from memscaler.daemon.watching import Watching
from memscaler.kernel.records import IDENTITY, address

END_GRACE_S = 5.0  # to say goodbye, beside what leaving a stage may take
MOST_ANNOUNCED = 256
NEXT_ONE = "the next one brings back first what sleeps; then try again: memscaler status tells"
NO_STAGE = "no deeper sleep is configured, so there is nothing to leave or to enter"
KIND = Kind(
    "sleeper",
    ASLEEP,
    WORDS,
    next_one="leaves every stage",
    left="something may still sleep: memscaler restore",
    no_more="memscaler sleeps no deeper from now on",
)

log = structlog.get_logger()


class Book(Protocol):
    """Who writes down what it tells; the answer is the GPUs to sample."""

    def slept(self, sleep: Sleep) -> Iterable[str]: ...


class Sleeper(Child):
    """Used by the loop's thread. start None: a dry run has none.

    sample: has a GPU's power read, because something about it has changed.
    """

    def __init__(
        self,
        start: Callable[[], ChildProcess] | None,
        settings: Settings,
        epoll: select.epoll,
        governing: Governing,
        watching: Watching,
        book: Book,
        sample: Callable[[str], None],
    ) -> None:
        super().__init__(KIND, start, settings, epoll, governing, watching)
        self._book, self._sample = book, sample
        self._sleep = Sleep()
        self._announced: dict[int, ExitStack] = {}
        self._asked: dict[int, Future[Document]] = {}
        self._number = 0

    # ---- what kind of child it is -----------------------------------------------------------------------------------

    def _is_wanted(self) -> bool:
        return bool(self._settings.stages)

    def _rules(self) -> dict[str, object]:
        gpus = self._watching.gpu_names(name for rule in self._settings.stages for name in rule.servers)
        settings = self._settings
        return {"stages": settings.stages, "suspend": settings.suspend, "gpu_names": gpus, "gvm": settings.gvm}

    def _patience_s(self) -> float:
        longest_s = {rule.stage: 0.0 for rule in self._settings.stages}
        for rule in self._settings.stages:
            longest_s[rule.stage] = max(longest_s[rule.stage], rule.leave_timeout_s)
        return sum(longest_s.values()) + END_GRACE_S  # a server may be in all of them

    def _runs(self, process: ChildProcess) -> None:
        self._sleep = replace(self._sleep, pid=process.pid, problem="")  # until it tells
        self._book.slept(self._sleep)

    def _stopped(self, why: str) -> None:
        for stack in self._announced.values():
            stack.close()
        self._announced.clear()
        for answer in self._asked.values():
            with contextlib.suppress(InvalidStateError):
                answer.set_exception(MemscalerError(why, hint=NEXT_ONE if self._start is not None else "see the log"))
        self._asked.clear()

    def _say_what_is_not(self, problem: str) -> None:
        kept = self._sleep if problem else Sleep()  # what it told last stays true until the next one has looked
        self._sleep = replace(kept, pid=None, problem=problem)
        self._book.slept(self._sleep)

    def _guarded(self, keys: frozenset[Key]) -> None:
        if keys != self._guards.keys:
            self._watching.guard(keys)
        super()._guarded(keys)

    # ---- talking --------------------------------------------------------------------------------------------------

    def ask(self, what: str, answer: Future[Document], **wanted: object) -> None:
        """Pass on what an operator wants; the answer comes when it knows. Raise MemscalerError."""
        if self._process is None or self._end_by_ns:
            self._refuse()
        self._number += 1
        self._asked[self._number] = answer
        self._tell("do", {"id": self._number, "what": what, **wanted})

    def _refuse(self) -> NoReturn:
        if self._sleep.problem:
            raise MemscalerError(self._sleep.problem, hint="see the log")
        if self._process is not None:
            raise MemscalerError("memscaler is about to end")
        if self._settings.stages:
            raise MemscalerError("in a dry run there is no deeper sleep")
        raise MemscalerError(NO_STAGE, hint="add a [[stage]] to the configuration; see docs/sleep.md")

    def _said(self, said: object) -> None:
        match said:
            case Announce():
                self._tell("announced", {"id": said.id, "ok": self._announce(said)})
            case Forget(number):
                if number in self._announced:
                    self._announced.pop(number).close()
            case _:
                self._says_last(said)

    def _says_last(self, said: object) -> None:
        match said:
            case Sleep():
                pid = self._process.pid if self._process is not None else None
                self._sleep = replace(said, pid=pid)
                for uuid in self._book.slept(self._sleep):
                    self._sample(uuid)
            case Done():
                answer = self._asked.pop(said.id, None)
                if answer is None:
                    return
                with contextlib.suppress(InvalidStateError):  # the asker has given up
                    if said.ok:
                        answer.set_result(dict(said.document))
                    else:
                        answer.set_exception(Failed(said.error, hint=said.hint or None, document=said.document))

    # ---- its own connections --------------------------------------------------------------------------------------

    def _announce(self, wanted: Announce) -> bool:
        """False: it would count, as another connection of the same name does."""
        watched = child_picture.watched(self._watching, wanted.key)
        if watched is None:
            return True  # nobody counts there
        if len(self._announced) >= MOST_ANNOUNCED or wanted.id in self._announced:
            return False
        try:
            here, there = address(wanted.local[0]), address(wanted.to[0])
            identity = IDENTITY.pack(watched.watch.netns, wanted.to[1], wanted.local[1], 0, there, here)
            stack = ExitStack()
            stack.enter_context(self._governing.ledger.own.announced(identity))
        except (OSError, ValueError, OverflowError):
            return False
        except Exception as error:  # noqa: BLE001  # struct.error: a port that is none
            log.error("sleeper.makes_no_sense", err=str(error))
            return False
        self._announced[wanted.id] = stack
        return True
