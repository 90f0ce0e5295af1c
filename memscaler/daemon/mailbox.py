"""How other threads talk to the loop: a queue and an eventfd."""

from __future__ import annotations

import contextlib
import os
from queue import Empty, SimpleQueue
from typing import Any


class Mailbox:
    """put() from any thread; the loop waits for `fd` and then calls drain()."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._queue: SimpleQueue[Any] = SimpleQueue()

    def put(self, message: object) -> None:
        """Never blocks. Safe in a signal handler."""
        self._queue.put(message)
        os.eventfd_write(self.fd, 1)

    def drain(self) -> list[Any]:
        """Everything there is, oldest first."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        messages = []
        while True:
            try:
                messages.append(self._queue.get_nowait())
            except Empty:
                return messages
