"""One run of a child: hears the governor, owns its journal, tells how things are, and undoes everything at the end.

One event loop. It ends when the governor says so, has gone, or stands still, for then nobody tells who comes or goes:
everything is undone first.
"""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, TypeVarTuple

import structlog

from memscaler.child.journal import Journal
from memscaler.child.link import End, Link, LinkLost
from memscaler.child.standstill import stands_still

SOON_S = 0.02  # reports that follow each other so closely are one
OWN_S = 0.2
STILL_EVERY_S = 0.5  # while anything is to be undone: whether the governor stands still; found twice, it does

log = structlog.get_logger()

Said = TypeVar("Said")
Kept = TypeVar("Kept", bound=Journal[Any])
Given = TypeVarTuple("Given")


@dataclass(frozen=True, slots=True)
class Kind:
    """Of child. name: in the log.

    undoing: what is told while somebody else has the journal. doubt: what may be so if a file of it cannot be read.
    """

    name: str
    undoing: str
    doubt: str


class Life(ABC, Generic[Said, Kept]):
    """Make it in the loop's thread. All is of that thread, but for `_in_loop`."""

    def __init__(self, kind: Kind, link: Link[Said], from_governor: Callable[[bytes], object], journal: Kept) -> None:
        """from_governor: what a message of the governor says; raises ValueError."""
        self._loop = asyncio.get_running_loop()
        self._kind, self._from_governor, self.journal = kind, from_governor, journal
        self._link: Link[Said] | None = link
        self._problem = ""
        self._owns = False
        self._soon: asyncio.TimerHandle | None = None
        self._over = asyncio.Event()
        self._governor = os.getppid()
        self._watch: asyncio.Task[None] | None = None

    # ---- what kind of child it is ------------------------------------------------------------------------------------

    @abstractmethod
    def _adopt(self, entries: tuple[Any, ...]) -> None:
        """The journal is ours now: what an earlier one has left is to be undone first. entries: of the journal."""

    @abstractmethod
    def _begin(self) -> None:
        """After that."""

    @abstractmethod
    def _hear(self, message: object) -> None:
        """What the governor said, but for `end`; None: a word that we do not know."""

    @property
    @abstractmethod
    def _is_busy(self) -> bool:
        """Whether a governor that stands still must not be waited for."""

    @abstractmethod
    def _tell(self) -> None:
        """How things are, if that has changed."""

    @abstractmethod
    async def _undo_all(self) -> bool:
        """What cannot be undone within its time is left to the journal. True if nothing is left."""

    def _wait_for(self) -> None:
        """Somebody else has the journal still."""

    # ---- life --------------------------------------------------------------------------------------------------------

    async def run(self) -> bool:
        """Until the end. True if nothing of ours is left anywhere."""
        link = self._link
        if link is None:
            return True
        self._loop.add_reader(link.fileno(), self._readable)
        owned = await self._own()
        if owned is not None:
            self._read_journal()
            self._begin()
        await self._over.wait()
        self._problem = ""
        well = await self._undo_all()
        self._report()
        self._hang_up()
        if owned is not None:
            self.journal.release(owned)
        return well

    async def _own(self) -> int | None:
        """The journal's lock. Somebody may still be at work: an undo, or a child whose governor has died."""
        while not self._over.is_set():
            try:
                return self.journal.own()
            except BlockingIOError:
                self._wait_for()
                self._problem = self._kind.undoing
            except OSError as error:
                self._problem = f"cannot write {self.journal.folder}: {error.strerror}"
            self.changed()
            with suppress(TimeoutError):
                async with asyncio.timeout(OWN_S):
                    await self._over.wait()
        return None

    def _read_journal(self) -> None:
        found = self.journal.found()
        self._problem, self._owns = "", True
        if found.unreadable:
            files = [str(path) for path in found.unreadable]
            self._problem = f"cannot read {', '.join(files)}: {self._kind.doubt}"
            event = f"{self.journal.name}.journal_unreadable"
            log.error(event, files=files)
        self._adopt(found.entries)

    # ---- the governor ------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            while self._link is not None and (data := self._link.receive()) is not None:
                try:
                    message = self._from_governor(data)
                except ValueError as error:
                    log.error(self._event("message_refused"), err=str(error))
                    continue
                if isinstance(message, End):
                    self._over.set()
                else:
                    self._hear(message)
        except LinkLost as error:
            self._lost(error)

    def _lost(self, error: LinkLost) -> None:
        log.warning(self._event("governor_gone"), err=str(error))
        self._hang_up()
        self._over.set()

    async def _watch_governor(self) -> None:
        """As long as there is something to undo. It may be a moment (a debugger looks, and goes on)."""
        before = False
        while self._link is not None and self._is_busy:
            await asyncio.sleep(STILL_EVERY_S)
            still = stands_still(self._governor)
            if before and still:
                self._lost(LinkLost("the governor stands still"))
            before = still
        self._watch = None

    def _hang_up(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            self._loop.remove_reader(link.fileno())
            self._loop.remove_writer(link.fileno())
            link.close()

    def _send(self, message: Said) -> None:
        if self._link is None:
            return
        try:
            self._link.send(message)
            if self._link.waiting:
                self._loop.add_writer(self._link.fileno(), self._writable)
        except LinkLost as error:
            self._lost(error)
        except ValueError as error:  # too long
            log.error(self._event("not_told"), err=str(error))

    def _writable(self) -> None:
        if self._link is None:
            return
        try:
            self._link.flush()
            if not self._link.waiting:
                self._loop.remove_writer(self._link.fileno())
        except LinkLost as error:
            self._lost(error)

    def _event(self, what: str) -> str:
        """Its name in the log."""
        return f"{self._kind.name}.{what}"

    # ---- what is told ------------------------------------------------------------------------------------------------

    def changed(self) -> None:
        """Something is to be told, soon."""
        if self._soon is None:
            self._soon = self._loop.call_later(SOON_S, self._report)

    def _report(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        if self._watch is None and self._link is not None and self._is_busy:
            self._watch = self._loop.create_task(self._watch_governor())
        self._tell()

    def _in_loop(self, work: Callable[[*Given], object], *given: *Given) -> None:
        """From any thread: this is to be done in the loop's."""
        with suppress(RuntimeError):  # the loop is over
            self._loop.call_soon_threadsafe(work, *given)
