"""What it means to watch a port: where the server is (scope), and what counts as work of its clients."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Quiet(StrEnum):
    """When a server is quiet: as soon as nobody is connected, or as soon as nothing is said and no answer is owed."""

    NO_CONNECTIONS = "no-connections"
    NO_TRAFFIC = "no-traffic"


@dataclass(frozen=True, slots=True)
class Scope:
    """Where a watched port is: the network namespace that a kind of name stands for. No kind: our own namespace.

    kind, name: "netns" a path, "pid" a process, "unit" a systemd unit, "container" its name or id.
    """

    kind: str = ""
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.kind else "host"


HOST = Scope()
SCOPE_KINDS = ("netns", "pid", "unit", "container")


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """What counts as work on one port.

    ignore: client prefixes whose connections do not exist for us ("10.0.0.0/8", "fd00::/8").
    touch_s, touch_bytes: a connection (or a request on an open one) that is over sooner than this and to which the
        client sent fewer bytes than this is a touch: a health check, a scrape. touch_s 0: nothing is.
    touch_cooldown_s: after a touch the GPU may park this much later, instead of its whole idle time.
    """

    quiet: Quiet = Quiet.NO_TRAFFIC
    ignore: tuple[str, ...] = ()
    touch_s: float = 0.25
    touch_bytes: int = 1024
    touch_cooldown_s: float = 0.05
