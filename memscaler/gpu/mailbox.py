"""The orders waiting for one actuator: at most one of each kind, the newest, taken by urgency.

The main loop posts without ever blocking. The bell is a bare lock, released by the poster: of the ways to wake a
thread in CPython it is the one with the least Python between `post` and the woken thread.
"""

from __future__ import annotations

import threading

WAKE, CLOSE, PARK, SAMPLE = "wake", "close", "park", "sample"
_BY_URGENCY = (WAKE, CLOSE, PARK, SAMPLE)


class Mailbox:
    """Posted to by one thread, taken from by another. dict.pop and item assignment are atomic."""

    def __init__(self) -> None:
        self._pending: dict[str, int] = {}
        self._bell = threading.Lock()
        self._bell.acquire()

    def post(self, kind: str, seq: int = 0) -> None:
        """Leave an order, in place of an older one of its kind."""
        self._pending[kind] = seq
        try:  # noqa: SIM105  # suppress() would cost more than the whole method
            self._bell.release()
        except RuntimeError:  # it rings already
            pass

    def withdraw(self, kind: str) -> None:
        self._pending.pop(kind, None)

    def take(self) -> tuple[str, int] | None:
        """The most urgent order, removed."""
        for kind in _BY_URGENCY:
            seq = self._pending.pop(kind, None)
            if seq is not None:
                return kind, seq
        return None

    def is_urgent(self) -> bool:
        """True if something waits that ends any settling."""
        return WAKE in self._pending or CLOSE in self._pending

    def wait(self, timeout_s: float = -1) -> None:
        """Sleep until something is posted, or for `timeout_s`. May return early; look before waiting again."""
        self._bell.acquire(timeout=timeout_s)
