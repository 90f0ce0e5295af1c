"""The socket where clients come in; and why there can be none."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

from memscaler.config.values import Address
from memscaler.core.errors import MemscalerError

BACKLOG = 4096
UNPRIVILEGED = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
NEEDS_RIGHT = "ports below {} need CAP_NET_BIND_SERVICE: AmbientCapabilities= and CapabilityBoundingSet= in the unit"
_USUALLY = 1024
_HINTS = {
    errno.EADDRINUSE: "somebody listens there already: `ss -ltnp`",
    errno.EACCES: NEEDS_RIGHT.format(_USUALLY),
    errno.EADDRNOTAVAIL: "this machine has no such address (yet?): `ip address`",
}


class CannotListen(MemscalerError):
    """number: errno, if it was one."""

    def __init__(self, address: Address, error: OSError) -> None:
        self.number = error.errno or 0
        hint = _HINTS.get(self.number, "write HOST:PORT, as in 0.0.0.0:8080")
        super().__init__(f"cannot listen on {address}: {error.strerror or error}", hint=hint)


def listener(address: Address) -> socket.socket:
    """Listens, without blocking. Raise CannotListen."""
    made: socket.socket | None = None
    try:
        made = bound(address)
        made.listen(BACKLOG)
        # Those who come in inherit all that.
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 120)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 30)
    except OSError as error:
        if made is not None:
            made.close()
        raise CannotListen(address, error) from error
    made.setblocking(False)
    return made


def trouble(address: Address) -> CannotListen | None:
    """Why nobody could listen there now. The place is taken for a moment, and nobody is let in."""
    try:
        with bound(address):
            return None
    except OSError as error:
        return CannotListen(address, error)


def bound(address: Address) -> socket.socket:
    """Has the place, and does not listen. `::` is every address, of IPv4 too. Raise OSError."""
    flags = socket.AI_PASSIVE
    family, kind, _, _, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=flags)[0]
    made = socket.socket(family, kind)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address.host != "::"))
        made.bind(place)
    except BaseException:
        made.close()
        raise
    return made


def first_free_port() -> int:
    """The lowest one that needs no right."""
    try:
        return int(UNPRIVILEGED.read_text())
    except (OSError, ValueError):
        return _USUALLY
