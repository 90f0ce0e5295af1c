"""What all gateways of a process share, and what they are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from memscaler.config.stages import Gateway
from memscaler.sleep.gateway.governor import Governor
from memscaler.sleep.gateway.poller import Poller

End = tuple[str, int]  # address and port


@dataclass(slots=True)
class World:
    """What all gateways of a process share.

    own: both ends of connections to backends, by which a loop is known, and whom to tell that one has come back.
    dry_run: nothing is woken.
    """

    poller: Poller
    governor: Governor
    dry_run: bool = False
    own: dict[tuple[End, End], Callable[[], None]] = field(default_factory=dict)


def end_of(address: Any) -> End:
    """Address and port, IPv4 within IPv6 as IPv4."""
    return str(address[0]).removeprefix("::ffff:"), int(address[1])


def name_of(gateway: Gateway) -> str:
    """What it is called in the log and in metrics."""
    return gateway.name or str(gateway.listen.port)
