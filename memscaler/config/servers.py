"""Descriptions of model servers: [[server]] tables, and one file each below servers.d."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Restart = Literal["always", "on-failure", "never"]
Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """A program beside a server, from its first readiness to its end; its own hooks: from its launch to its end."""

    name: str
    command: tuple[str, ...]
    environment: Pairs = ()
    enabled: bool = True
    hooks: tuple[Hook, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One server, checked. Either command (the whole argv) or model (and options, words for llama-server).

    user: "" is that of the default supervisor. port: also found in the command or its environment; None: not known.
    gpus: the operator's names; () leaves it to the command, or with `placed` to the planner at each start.
    health: a path; "" is none: ready when the port listens. health_every_s: 0 is only while it starts.
    start_timeout_s: for loading the model; 0 is for ever. log: "auto" is the journal where there is one.
    restart_limit: failures in a row before it is left FAILED, 0 is no limit; counted anew once it was ready for
    restart_window_s.
    origin: where it is described, file:line; two that differ only in it are the same.
    """

    name: str
    command: tuple[str, ...] = ()
    model: str = ""
    options: tuple[str, ...] = ()
    environment: Pairs = ()
    directory: str = ""
    user: str = ""
    port: int | None = None
    gpus: tuple[str, ...] = ()
    placed: bool = False
    enabled: bool = True
    restart: Restart = "on-failure"
    restart_after_s: float = 1.0
    restart_limit: int = 5
    restart_window_s: float = 600.0
    start_timeout_s: float = 600.0
    stop_timeout_s: float = 10.0
    health: str = "/health"
    health_every_s: float = 0.0
    log: Literal["auto", "journal", "file"] = "auto"
    hooks: tuple[Hook, ...] = ()
    origin: str = field(default="", compare=False)
