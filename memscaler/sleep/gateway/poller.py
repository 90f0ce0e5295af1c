"""Which sockets are ready: the selector of the gateway's event loop, with an edge-triggered epoll of its own around it.

asyncio's transports would keep buffers, and its add_reader and add_writer change epoll's set at each turn of
back-pressure. Here a socket is registered once, and its handler is called while the loop selects: one epoll_wait for
each round, no task and no callback in between. Who is told must go on until the kernel says EAGAIN.
"""

from __future__ import annotations

import asyncio
import select
import selectors
import socket
from collections import deque
from collections.abc import Callable

import structlog

EVERYTHING = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
MOST_EVENTS = 512

Handler = Callable[[int], None]

log = structlog.get_logger()


class Poller(selectors.EpollSelector):
    """Belongs to one event loop, which is made with it."""

    def __init__(self) -> None:
        super().__init__()
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._fresh: set[int] = set()
        self._again: deque[Callable[[], None]] = deque()
        self._others = self.fileno()  # whatever asyncio itself waits for
        self._epoll.register(self._others, select.EPOLLIN)

    def add(self, descriptor: int, handler: Handler, events: int = EVERYTHING) -> None:
        """handler: gets the events, from now on. What is ready already is told, if it was not registered before."""
        if descriptor not in self._handlers:
            self._epoll.register(descriptor, events)
            self._fresh.add(descriptor)
        self._handlers[descriptor] = handler

    def drop(self, descriptor: int) -> None:
        """Its handler is not called again. For a socket that lives on."""
        if self._handlers.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def shut(self, connection: socket.socket) -> None:
        """Close it. The kernel takes it out of epoll's set."""
        self._handlers.pop(connection.fileno(), None)
        connection.close()

    def again(self, call: Callable[[], None]) -> None:
        """When the others have had their turn."""
        self._again.append(call)

    def later(self, after_s: float, call: Callable[[], None]) -> None:
        """After this time."""
        asyncio.get_running_loop().call_later(after_s, call)

    def close(self) -> None:
        """No longer."""
        self._epoll.close()
        super().close()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """A round: whoever is registered here is told; what asyncio waits for is returned."""
        wait_s = 0.0 if self._again else -1.0 if timeout is None else max(0.0, timeout)
        self._fresh.clear()
        others = False
        for descriptor, events in self._epoll.poll(wait_s, MOST_EVENTS):
            handler = self._handlers.get(descriptor)
            if handler is None:  # or one before it in the list has closed it
                others = others or descriptor == self._others
            elif descriptor not in self._fresh:  # else the number was another one's a moment ago
                try:
                    handler(events)
                except Exception:  # a mistake with one connection must not end the others
                    log.exception("gateway.mistake")
        for _ in range(len(self._again)):
            try:
                self._again.popleft()()
            except Exception:
                log.exception("gateway.mistake")
        return super().select(0) if others else []
