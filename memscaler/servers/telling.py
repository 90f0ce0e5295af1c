"""What the log says of a server's states: one event for each change."""

from __future__ import annotations

from typing import Any

import structlog

from memscaler.core.servers import ServerState
from memscaler.servers.decide import Standing

_EVENTS = {
    ServerState.STARTING: "server.starting",
    ServerState.READY: "server.ready",
    ServerState.STOPPING: "server.stopping",
    ServerState.STOPPED: "server.stopped",
    ServerState.DISABLED: "server.disabled",
    ServerState.WAITING: "server.waiting",
    ServerState.FAILED: "server.failed",
}

log = structlog.get_logger()


def say(name: str, at: Standing, pid: int | None, place: str) -> None:
    """It is in this state now. place: of its output, in words; "" if there is none."""
    facts: dict[str, Any] = {"server": name}
    if at.reason:
        facts["reason"] = at.reason
    if at.state is ServerState.WAITING and at.due_s is not None:
        facts["again_s"] = round(at.due_s - at.since_s, 3)
    if at.state is ServerState.READY:
        facts["pid"] = pid
    if at.state is ServerState.FAILED:
        its_log = f"its log: {place}; then " if place else ""
        facts["hint"] = f"{its_log}memscaler servers restart {name}"
    levels = {ServerState.FAILED: log.error, ServerState.WAITING: log.warning, ServerState.STARTING: log.debug}
    levels.get(at.state, log.info)(_EVENTS[at.state], **facts)
