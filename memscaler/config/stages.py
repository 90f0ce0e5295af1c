"""Descriptions of deeper sleep: [[stage]] tables, [suspend], and [[gateway]] tables."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal

from memscaler.config.hours import Window
from memscaler.config.values import Address
from memscaler.core.stages import Stage

WakeOn = Literal["connection", "work"]
BeforeSuspend = Literal["stop-server", "checkpoint", "keep"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRule:
    """After this much quiet time, this stage; checked.

    servers: names of described servers, ports as text ("8080"), or GPUs as the operator names them; (): all.
    level: of vLLM's sleep, 1 or 2. force: also where another manager is at work on the same server.
    wake_on: "connection": the first connection leaves the stage; "work": one that was more than a touch.
    program: cuda-checkpoint's path, "" looks for it. enter_timeout_s, leave_timeout_s: for the stage's own calls.
    """

    stage: Stage
    after_s: float
    servers: tuple[str, ...] = ()
    level: int = 1
    force: bool = False
    wake_on: WakeOn = "connection"
    program: str = ""
    enter_timeout_s: float = 180.0
    leave_timeout_s: float = 600.0
    origin: str = field(default="", compare=False)


def ladder(rules: Iterable[StageRule], names: Collection[str]) -> tuple[StageRule, ...]:
    """The rules that hold for a server, in their order. names: all that it is known by, its GPUs' among them.

    Of each stage one: a rule that names the server goes before one for all.
    """
    found: dict[Stage, StageRule] = {}
    for rule in rules:
        held = found.get(rule.stage)
        if any(name in names for name in rule.servers) or (not rule.servers and held is None):
            found[rule.stage] = rule if held is None or not held.servers else held
    return tuple(found.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspend:
    """What the suspend stage goes by; checked.

    servers: what is done to those that run, before. users: whether logged-in users keep the machine up ("active": those
    that were not idle). ssh: open SSH sessions keep it up. cpu_load: so many CPUs at work on average keep it up, 0 is
    not looked at. network_bytes_per_s: so much traffic, of all interfaces but loopback, 0 is not looked at.
    busy: commands that keep it up while one of them ends with 0. never: times of the week at which it is not suspended.
    wake_at: times at which it is to be up: the start of each window is an alarm, and within it is `never`.
    timeout_s: so long after logind said yes the machine must have gone down; then its servers come back.
    min_awake_s: shortest time between a resume and the next suspend.
    """

    servers: BeforeSuspend = "stop-server"
    users: Literal["any", "active", "ignore"] = "active"
    ssh: bool = True
    inhibitors: bool = True
    cpu_load: float = 0.5
    network_bytes_per_s: float = 100_000.0
    busy: tuple[tuple[str, ...], ...] = ()
    never: tuple[Window, ...] = ()
    wake_at: tuple[Window, ...] = ()
    timeout_s: float = 60.0
    min_awake_s: float = 120.0
    origin: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """One place where clients connect, and what is behind it; checked.

    to: the backend, host and port. server: the name or port of the local server that the governor brings back if
    nobody listens there. mac: of the machine to be woken; () is none. wake_to: where magic packets go (broadcast).
    protocol: "http" allows answers of the gateway's own; "tcp" never looks at a byte.
    ready: a path that must answer 200 after a wake before the client is let through; "" is none: when it listens.
    wait_s: so long a client is held; then HTTP clients get a 503, others are closed. hold: False: a 503 at once.
    retry_after_s: said in a 503. wake_timeout_s: a wake that took longer has failed; wake_pause_s: then nobody is woken
    for so long. no_wake_paths: requests that wake nothing (HTTP); no_wake_from: clients that do not (prefixes).
    most_waiting: clients held at the same time, more get a 503. connect_timeout_s: of one attempt.
    """

    listen: Address
    to: Address
    name: str = ""
    server: str = ""
    mac: str = ""
    secure_on: str = ""
    wake_to: Address | None = None
    protocol: Literal["http", "tcp"] = "http"
    ready: str = "/health"
    wait_s: float = 120.0
    hold: bool = True
    retry_after_s: float = 15.0
    wake_timeout_s: float = 180.0
    wake_pause_s: float = 10.0
    no_wake_paths: tuple[str, ...] = ()
    no_wake_from: tuple[str, ...] = ()
    most_waiting: int = 1000
    connect_timeout_s: float = 2.0
    origin: str = field(default="", compare=False)
