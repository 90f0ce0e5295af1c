"""sd_notify(3): one datagram per message.

A few lines of our own: the packages that do it are abandoned or need a compiler.
"""

from __future__ import annotations

import contextlib
import os
import socket


class Notifier:
    """Tells systemd what happens, if systemd asked for it (NOTIFY_SOCKET)."""

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address else None
        watchdog_us = int(os.environ.pop("WATCHDOG_USEC", "0") or 0)
        pid = os.environ.pop("WATCHDOG_PID", "")
        mine = not pid or int(pid) == os.getpid()
        self.heartbeat_ns = watchdog_us * 1000 // 2 if address and mine else 0
        """How often to send WATCHDOG=1, in ns; 0: nobody listens."""

    def send(self, *lines: str) -> None:
        """Send, for example, "READY=1". Never raises: telling must not stop the governor."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto("\n".join(lines).encode(), socket.MSG_DONTWAIT, self._address)
