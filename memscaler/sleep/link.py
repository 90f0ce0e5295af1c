"""What the governor and the sleeper say to each other: one JSON object per message on a SOCK_SEQPACKET pair.

What the sleeper says is in memscaler/daemon/sleeper_words.py, because the governor reads it.

Each message has one key, which says what it is, and its fields below that, by the names of the dataclasses here
(core/plain.py). Neither side waits for the other: what cannot be sent now is kept until it can be. Times named _ns are
of CLOCK_MONOTONIC. `id` of an answer is that of the question; 0 answers none.

    governor -> sleeper: seen, settings, do, resumed, announced, end
    sleeper -> governor: guard, look, announce, forget, sleep, done
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from memscaler.config.stages import StageRule, Suspend
from memscaler.core.errors import MemscalerError
from memscaler.core.stages import Stage
from memscaler.daemon.sleeper_words import MOST_BYTES, WORDS, Word, decode, write

MOST_WAITING = 1000  # messages that the other side has not taken; more, and it does not read any more


class LinkLost(MemscalerError):
    """The other side is gone, or says what makes no sense."""


# ---- governor -> sleeper ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GpuSeen:
    """A GPU: its public state (core/snapshot.py), since when.

    held: its servers must be up: a hold, a pause, never_park, a release of the driver, a quiet reload.
    """

    state: str
    since_ns: int = 0
    held: bool = False


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
class Rules:
    """The settings. stages: in the ladder's order. gpu_names: UUIDs by what a StageRule may call a GPU ("gpu0")."""

    stages: tuple[StageRule, ...] = ()
    suspend: Suspend = field(default_factory=Suspend)
    gpu_names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Do:
    """An operator's or the gateway's wish.

    wake, sleep: of these servers (keys or names; (): all). stage: to go down to, None: the next one.
    suspend: now, with an alarm at wake_unix_s; force: whoever uses the machine or inhibits sleep.
    never, allow: suspending, for for_s seconds (None: until allowed again). by: who, for the log.
    """

    id: int
    what: Literal["wake", "sleep", "suspend", "never", "allow"]
    servers: tuple[str, ...] = ()
    stage: Stage | None = None
    for_s: float | None = None
    by: str = ""
    reason: str = ""
    force: bool = False
    wake_unix_s: float | None = None


@dataclass(frozen=True, slots=True)
class Resumed:
    """The machine has slept."""

    slept_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Announced:
    """Of one of our own connections: it counts for nobody now, or (ok is false) it would count."""

    id: int
    ok: bool = True


@dataclass(frozen=True, slots=True)
class End:
    """Leave every stage and go."""


FromGovernor = Seen | Rules | Do | Resumed | Announced | End
_FROM_GOVERNOR: Mapping[str, type[Any]] = {
    "seen": Seen,
    "settings": Rules,
    "do": Do,
    "resumed": Resumed,
    "announced": Announced,
    "end": End,
}


FromSleeper = Word
_WORDS = {kind: word for table in (_FROM_GOVERNOR, WORDS) for word, kind in table.items()}


def encode(message: FromGovernor | FromSleeper) -> bytes:
    """The bytes of a message. Raise ValueError if it is too long."""
    return write(_WORDS[type(message)], message)


def from_governor(data: bytes) -> FromGovernor | None:
    """What the governor said; None for words that we do not know. Raise ValueError."""
    made: FromGovernor | None = decode(_FROM_GOVERNOR, data)
    return made


class Link:
    """One end of the pair. Used by one thread; never waits."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MOST_BYTES)
        self._end = end
        self._waiting: deque[bytes] = deque()

    def fileno(self) -> int:
        return self._end.fileno()

    @property
    def waiting(self) -> bool:
        """Whether there is something that could not be sent yet: call flush() when the socket takes more."""
        return bool(self._waiting)

    def send(self, message: FromGovernor | FromSleeper) -> None:
        """Now, or when the other side takes it. Raise LinkLost, ValueError."""
        if len(self._waiting) >= MOST_WAITING:
            raise LinkLost("the governor does not read any more")
        self._waiting.append(encode(message))
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
