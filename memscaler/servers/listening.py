"""Whether a server can listen where it is told to, asked before it loads a model for minutes."""

from __future__ import annotations

import errno
import socket

from memscaler.core.errors import MemscalerError
from memscaler.servers.ports import taken_by


def free_port(host: str, port: int) -> int:
    """The port, or a free one for 0. Raise MemscalerError if something listens there, or nothing may."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
            return int(probe.getsockname()[1])
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            who = taken_by(port, host) or "something"
            hint = f"take another one: --port {port + 1}, or --port 0 for any"
            raise MemscalerError(f"port {port} is taken: {who} listens there", hint=hint) from error
        raise MemscalerError(f"cannot listen on port {port} at {host}: {error.strerror}") from error
