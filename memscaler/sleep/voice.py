"""Our own connections to watched servers, announced to the governor before they are made: they are nobody's work.

Used by the threads that call drivers; the link belongs to the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator

from memscaler.daemon.sleeper_words import Announce, Forget
from memscaler.sleep.drivers.protocol import Endpoint, NotAnnounced
from memscaler.sleep.link import Announced

ANSWER_S = 2.0


class Voice:
    """send: puts a message on the link, in the loop's thread. connected: False: there is no governor that counts."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        send: Callable[[Announce | Forget], None],
        connected: Callable[[], bool],
    ) -> None:
        self._loop, self._send, self._connected = loop, send, connected
        self._ids = itertools.count(1)
        self._waiting: dict[int, tuple[threading.Event, list[bool]]] = {}

    @contextlib.contextmanager
    def announced(self, key: str, local: Endpoint, to: Endpoint) -> Iterator[None]:
        """As drivers/protocol.py wants it. Raise NotAnnounced."""
        if not self._connected():
            yield
            return
        number, answered, said = next(self._ids), threading.Event(), [False]
        self._waiting[number] = answered, said
        self._loop.call_soon_threadsafe(self._send, Announce(number, key, local, to))
        try:
            if not answered.wait(ANSWER_S) and self._connected():
                raise NotAnnounced("the governor does not answer")
            if not said[0] and self._connected():
                raise NotAnnounced("the governor cannot tell this connection from a client's")
            yield
        finally:
            self._waiting.pop(number, None)
            with contextlib.suppress(RuntimeError):  # the loop is over
                self._loop.call_soon_threadsafe(self._send, Forget(number))

    def answer(self, told: Announced) -> None:
        """The governor's answer."""
        waiting = self._waiting.get(told.id)
        if waiting is not None:
            waiting[1][0] = told.ok
            waiting[0].set()

    def hang_up(self) -> None:
        """There is no governor any more: nobody is to wait for his answers."""
        for answered, _ in list(self._waiting.values()):
            answered.set()
