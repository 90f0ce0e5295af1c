"""A child's end of its link with the governor: one JSON object per message on a SOCK_SEQPACKET pair.

The children are the sleeper (memscaler/sleep/link.py) and the arbiter (memscaler/gvm/link.py); here is what both are
told, and how. What a child says is in memscaler/daemon/child_words.py, because the governor reads it.

Neither side waits for the other: what cannot be sent now is kept until it can be. Times named _ns are of
CLOCK_MONOTONIC. `id` of an answer is that of the question; 0 answers none.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from memscaler.core.errors import MemscalerError
from memscaler.daemon.child_words import MOST_BYTES

MOST_WAITING = 1000  # messages that the other side has not taken; more, and it does not read any more

Said = TypeVar("Said")


class LinkLost(MemscalerError):
    """The other side is gone, or says what makes no sense."""


# ---- governor -> child -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GpuSeen:
    """A GPU: its public state (core/snapshot.py), since when.

    held: its servers must be up: a hold, a pause, never_park, a release of the driver, a quiet reload. holds: by what,
    as the governor calls it: "lease:ID" for an operator's hold, "pause:ID", else a word.
    """

    state: str
    since_ns: int = 0
    held: bool = False
    holds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ServerSeen:
    """A watch. key: how it is named on this link, "8080" or "8080@container:web". scope: "" is the host.

    name: of the described server on that port, else "". live: connections that count. last_activity_ns: of what counts
    as work; last_touch_ns: of what was less (a health check). rang: a client came to this guarded watch, and nothing
    was seen since. guarded: it is armed for us. pids: of the processes that listen there, as the host sees them.
    """

    key: str
    port: int
    scope: str = ""
    name: str = ""
    gpus: tuple[str, ...] = ()
    live: int = 0
    last_activity_ns: int = 0
    last_touch_ns: int = 0
    rang: bool = False
    guarded: bool = False
    pids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Seen:
    """The whole picture. A server is in it as long as its port is watched, also while nobody listens there.

    id: of the `guard` or `look` that it answers; then the sockets were compared with sock_diag after that was asked.
    """

    at_ns: int
    reason: str = ""
    gpus: Mapping[str, GpuSeen] = field(default_factory=dict)
    servers: tuple[ServerSeen, ...] = ()
    id: int = 0


@dataclass(frozen=True, slots=True)
class Resumed:
    """The machine has slept."""

    slept_s: float = 0.0


@dataclass(frozen=True, slots=True)
class End:
    """Undo everything and go."""


COMMON: Mapping[str, type[Any]] = {"seen": Seen, "resumed": Resumed, "end": End}


class Link(Generic[Said]):
    """One end of the pair. Used by one thread; never waits."""

    def __init__(self, end: socket.socket, encode: Callable[[Said], bytes]) -> None:
        """encode: the bytes of what is said; raises ValueError if that is too long."""
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MOST_BYTES)
        self._end, self._encode = end, encode
        self._waiting: deque[bytes] = deque()

    def fileno(self) -> int:
        return self._end.fileno()

    @property
    def waiting(self) -> bool:
        """Whether there is something that could not be sent yet: call flush() when the socket takes more."""
        return bool(self._waiting)

    def send(self, message: Said) -> None:
        """Now, or when the other side takes it. Raise LinkLost, ValueError."""
        if len(self._waiting) >= MOST_WAITING:
            raise LinkLost("the governor does not read any more")
        self._waiting.append(self._encode(message))
        self.flush()

    def flush(self) -> None:
        """Send what waits. Raise LinkLost."""
        while self._waiting:
            try:
                self._end.send(self._waiting[0])
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                raise LinkLost(f"the governor is gone: {error.strerror}") from error
            self._waiting.popleft()

    def receive(self) -> bytes | None:
        """One message; None if there is none now. Raise LinkLost when the other side has gone."""
        try:
            data = self._end.recv(MOST_BYTES + 1)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            raise LinkLost(f"the governor is gone: {error.strerror}") from error
        if not data:
            raise LinkLost("the governor is gone")
        return data

    def close(self) -> None:
        self._end.close()
