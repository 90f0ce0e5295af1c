"""What the supervisor of model servers tells others: one file that it writes, and status, page, `top` and metrics read.

The supervisor is an unprivileged process of its own; the governor believes nothing in the file, it only shows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

SCHEMA = 1
SUPERVISOR = "memscaler-servers"  # its unit, the user of that, and how its directories begin
REPORT = "servers.json"  # in the supervisor's runtime directory, readable by all


class ServerState(StrEnum):
    """Of a described server."""

    DISABLED = "disabled"  # by its description or by an operator
    STOPPED = "stopped"  # it ended, and its restart policy leaves it so; or the supervisor is about to start it
    STARTING = "starting"  # its process runs and does not answer yet: 503 while a model loads is no failure
    READY = "ready"
    STOPPING = "stopping"
    WAITING = "waiting"  # it failed, and is started again after a pause
    FAILED = "failed"  # it failed too often, or cannot be started as described: an operator is needed


RUNNING = frozenset({ServerState.STARTING, ServerState.READY})  # its port is, or is about to be, somebody's way in


@dataclass(frozen=True, slots=True)
class ServerReport:
    """One server. Times are seconds of the wall clock.

    gpus: UUIDs that it was given, () if its own business; names: how operators call these, also while it does not run.
    restarts: by the supervisor, since the operator last started it.
    reason: why it is in this state, a sentence; "" where the state says it. model: path or "".
    starts_unix_s: when it is started again (WAITING).
    ended: how the last process ended, e.g. "exit status 1", "SIGKILL".
    """

    name: str
    state: ServerState
    since_unix_s: float
    pid: int | None = None
    port: int | None = None
    gpus: tuple[str, ...] = ()
    user: str = ""
    model: str = ""
    restarts: int = 0
    reason: str = ""
    ended: str = ""
    starts_unix_s: float | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SupervisorReport:
    """All servers of one supervisor."""

    user: str
    pid: int
    started_unix_s: float
    servers: tuple[ServerReport, ...] = ()


@dataclass(frozen=True, slots=True)
class Supervised:
    """What all supervisors of this machine last told. gone: (user, pid) of those that have ended since they told.

    notices: why something that was told is not shown, sentences.
    """

    supervisors: tuple[SupervisorReport, ...] = ()
    gone: tuple[tuple[str, int], ...] = ()
    notices: tuple[str, ...] = ()

    def has_ended(self, supervisor: SupervisorReport) -> bool:
        """Its pid alone would not do: that is its own word, and may be another's."""
        return (supervisor.user, supervisor.pid) in self.gone

    @property
    def servers(self) -> tuple[tuple[ServerReport, SupervisorReport], ...]:
        """Each server with its supervisor."""
        return tuple((server, each) for each in self.supervisors for server in each.servers)
