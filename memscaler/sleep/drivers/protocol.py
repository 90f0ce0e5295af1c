"""What a stage driver is: how the ladder puts one server into a stage, and gets it back.

    possible(server, rule)  ""           it can be entered, as far as can be seen
                            a sentence   it cannot, for a reason that lasts: the next stage may follow in its turn
                            Later        cannot be told now: the next stage waits too
    prepare(server, rule)   a memo: all that leave, look and a later undo need. Write it into the journal, then
    enter(memo, call)       returns: it is DOWN. Undone: it is UP as before. Stuck: it is not, leave it. Broken: it
                            never will be UP. Gone: its process has ended meanwhile
    leave(memo, call)       returns: it is UP and can serve. Stuck: it is not yet, try again. Broken: it never will be.
                            Gone: there is nothing left to leave
    look(memo, call)        where it really is; wakes nobody

All are called in a worker thread of that server, one at a time, and may take as long as the call's deadline says, not
longer, whatever hangs. Each reads the real state first: entering what is DOWN and leaving what is UP does nothing.
A memo is JSON, small, and enough for another process (`memscaler restore`) that knows nothing else.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from memscaler.config.stages import StageRule
from memscaler.core.errors import MemscalerError, in_a_line
from memscaler.core.stages import Stage

Memo = Mapping[str, Any]
Endpoint = tuple[str, int]
# announce(key, local, to): for as long as it is entered, a connection from `local` to the watched port `to` of the
# server `key` is ours and counts for nobody. Enter before connecting. Raise NotAnnounced if that cannot be: another
# local port may do.
Announce = Callable[[str, Endpoint, Endpoint], AbstractContextManager[None]]


class StageError(MemscalerError):
    """Something about a stage did not work; which of the leaves says how the server was left."""


class Later(StageError):
    """Nothing was done, and nothing is known now. Ask again later."""


class Undone(StageError):
    """It could not be entered, and the server is up as before. for_good: never try again with this process."""

    def __init__(self, message: str, *, hint: str | None = None, for_good: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.for_good = for_good


class Stuck(StageError):
    """The server is not up, or that is not known: leave it, again and again."""


class Broken(StageError):
    """This process will never be up again. Not ours to kill: an operator must restart it."""


class Gone(StageError):
    """That process is no more, or an operator has taken the server away: nothing is left to leave."""


def said(error: Exception) -> str:
    """What an operator is told of it: with the hint, if it is one of ours; with its kind, if it is not."""
    if not isinstance(error, MemscalerError):
        return f"{type(error).__name__}: {error}"
    return in_a_line(error)


class NotAnnounced(Exception):
    """The governor could not announce a connection of ours."""


class Where(StrEnum):
    """How a server stands to a stage, by its own word or that of who keeps it."""

    UP = "up"
    DOWN = "down"
    BETWEEN = "between"  # on its way, or stopped half way: leave brings it back
    GONE = "gone"  # that process is no more: nothing is left to leave
    FAILED = "failed"  # it will not come back
    UNKNOWN = "unknown"  # does not tell now


@dataclass(frozen=True, slots=True)
class Look:
    """text: a sentence for an operator, "" if there is nothing to add."""

    where: Where
    text: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """One watched server, as the governor saw it last.

    key: its watch, "8080" or "8080@container:web". scope: "" is the host, else "KIND:NAME". name: of the described
    server, or "". gpus: UUIDs. pids: of the host: who listens on the port.
    """

    key: str
    port: int
    scope: str = ""
    name: str = ""
    gpus: tuple[str, ...] = ()
    pids: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.name or f"port {self.key}"


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Call:
    """Until when a call may take, time.monotonic(). abandoned: somebody came meanwhile; entering gives up where it can.

    What cannot be given up half way is finished: leave follows.
    """

    until_s: float
    abandoned: Callable[[], bool] = _never

    @classmethod
    def within(cls, seconds: float, abandoned: Callable[[], bool] = _never) -> Call:
        return cls(time.monotonic() + seconds, abandoned)

    @property
    def left_s(self) -> float:
        return self.until_s - time.monotonic()


class Driver(Protocol):
    """One stage of servers."""

    stage: Stage

    def possible(self, server: Target, rule: StageRule, call: Call) -> str: ...

    def prepare(self, server: Target, rule: StageRule, call: Call) -> Memo: ...

    def enter(self, memo: Memo, call: Call) -> None: ...

    def leave(self, memo: Memo, call: Call) -> None: ...

    def look(self, memo: Memo, call: Call) -> Look: ...


def unannounced(_key: str, _local: Endpoint, _to: Endpoint) -> AbstractContextManager[None]:
    """Where no governor runs: nobody counts connections."""
    return contextlib.nullcontext()
