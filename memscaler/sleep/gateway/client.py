"""A client that is not passed on yet: what it says first, whether it is there still, and our own answer to it."""

from __future__ import annotations

import asyncio
import select
import socket
from contextlib import suppress

from memscaler.sleep.gateway import heads
from memscaler.sleep.gateway.heads import Line, Odd
from memscaler.sleep.gateway.poller import Poller

PIECE = 4096
FAREWELL_S, FAREWELL_BYTES = 2.0, 1 << 20  # for a request that goes on while it is refused

_GONE = select.EPOLLHUP | select.EPOLLERR


class Client:
    """Belongs to one event loop. first: what was read of it: no more than a request line and a little."""

    def __init__(self, poller: Poller, connection: socket.socket, peer: tuple[str, int]) -> None:
        self.connection, self.peer = connection, peer
        host, port = connection.getsockname()[:2]
        self.ends = peer, (str(host).removeprefix("::ffff:"), int(port))
        self.first = b""
        self.gone = False  # it was reset, or closed
        self.ended_after_s = 0.0  # when it said that it will say no more: half-closed, or closed; 0: it did not
        self._poller = poller
        self._loop = asyncio.get_running_loop()
        self._came_s = self._loop.time()
        self._news: asyncio.Future[None] | None = None
        poller.add(connection.fileno(), self._ready)

    def _ready(self, events: int) -> None:
        # both are said of this connection, unless its number was another one's in the same round: so look
        if events & _GONE and self._is_broken():
            self.gone = True
        if events & select.EPOLLRDHUP and not self.ended_after_s:
            self.ended_after_s = self._loop.time() - self._came_s
        self.poke()

    def _is_broken(self) -> bool:
        if self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return True
        try:
            self.connection.getpeername()
        except OSError:
            return True
        return False

    def poke(self) -> None:
        """Whoever waits for news looks again."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def news(self, until_s: float) -> None:
        """Until there are some, or this time of the loop."""
        self._news = self._loop.create_future()
        timer = self._loop.call_at(until_s, self.poke)
        try:
            await self._news
        finally:
            timer.cancel()
            self._news = None

    async def line(self, until_s: float) -> Line | Odd | None:
        """What it says first; None if it says too little until then, or goes."""
        while not self.gone:
            found = heads.first_line(self.first)
            if found is not Odd.PARTIAL:
                return found
            try:
                data = self.connection.recv(PIECE)
            except BlockingIOError:
                if self._loop.time() >= until_s:
                    return None
                await self.news(until_s)
                continue
            except OSError:
                data = b""
            if not data:
                self.gone = True
            self.first += data
        return None

    async def refuse(self, answer: bytes) -> None:
        """Say this and close. What it says meanwhile is read: a reset would take the answer away from it."""
        with suppress(OSError):
            if answer:
                self.connection.send(answer)
                self.connection.shutdown(socket.SHUT_WR)
                await self._let_finish(self._loop.time() + FAREWELL_S)
        self.close()

    async def _let_finish(self, until_s: float) -> None:
        """Raise OSError."""
        left = FAREWELL_BYTES
        while left > 0 and self._loop.time() < until_s:
            try:
                data = self.connection.recv(1 << 16)
            except BlockingIOError:
                await self.news(until_s)
                continue
            if not data:
                return
            left -= len(data)

    def close(self) -> None:
        """Without a word."""
        if self.connection.fileno() >= 0:
            self._poller.shut(self.connection)
