"""sd_notify(3): one datagram per message.

A few lines of our own: the packages that do it are abandoned or need a compiler.
"""

from __future__ import annotations

import os
import socket
import time

NAMES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
PATIENCE_S = 0.5  # systemd reads its socket within milliseconds, unless the machine is very busy


class Notifier:
    """Tells systemd what happens, if systemd asked for it (NOTIFY_SOCKET).

    Takes the variables out of the environment: what is said here is the daemon's to say, not its children's.
    """

    def __init__(self) -> None:
        self._told = {name: os.environ[name] for name in NAMES if name in os.environ}
        address = os.environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address else None
        interval, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        mine = pid in ("", str(os.getpid()))
        self.heartbeat_ns = int(interval) * 1000 // 2 if address and mine and interval.isdecimal() else 0
        """How often to send WATCHDOG=1, in ns; 0: nobody listens."""

    def hand_on(self) -> None:
        """For the program that this process is about to become."""
        os.environ.update(self._told)

    def ready(self, status: str = "") -> None:
        """It governs: from the start on, or again after `reloading`."""
        self._insist("READY=1", *_status(status))

    def reloading(self) -> None:
        """A new configuration is being taken up; `ready` must follow, also if it is refused.

        The time tells systemd (Type=notify-reload, from 253 on) that this answers its signal and none before.
        """
        self._insist("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """It is on the way out by its own will."""
        self._insist("STOPPING=1")

    def longer(self, by_ns: int) -> None:
        """The end takes longer than by_ns, and 10 s more at least (sd_notify(3), EXTEND_TIMEOUT_USEC)."""
        self.send(f"EXTEND_TIMEOUT_USEC={by_ns // 1000 + 10_000_000}")

    def alive(self, status: str = "") -> None:
        """The heartbeat, with what `systemctl status` shows."""
        self.send("WATCHDOG=1", *_status(status))

    def status(self, status: str) -> None:
        """What `systemctl status` shows; also why a start failed, until the next one."""
        self.send(*_status(status))

    def send(self, *lines: str) -> bool:
        """Send, for example, "WATCHDOG=1". Never raises and never waits: telling must not stop the governor.

        False if it could not be sent now, because systemd is behind with reading.
        """
        if self._socket is not None:
            try:
                self._socket.sendto("\n".join(lines).encode(), socket.MSG_DONTWAIT, self._address)
            except BlockingIOError:
                return False
            except OSError:
                pass  # nobody is there
        return True

    def _insist(self, *lines: str) -> None:
        """For what would be missed: a lost READY=1 ends in a kill."""
        end = time.monotonic() + PATIENCE_S
        while not self.send(*lines) and time.monotonic() < end:
            time.sleep(0.01)


def _status(text: str) -> tuple[str, ...]:
    """One line, whatever is in it: another one would be another message to systemd."""
    line = " ".join(text.split())
    return (f"STATUS={line}",) if line else ()
