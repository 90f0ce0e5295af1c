"""The status page's server-sent events: a view at once when a state changes, and every 2 s while somebody looks.

Nobody looks: nothing happens here, no timer, no sample. Somebody does: one task asks the governor, and tells them all.
Who reads too slowly misses views, and who reads nothing for a while is dropped; memory is bounded for each.

    event    data
    now      the view (see `_message`): whole at first, then without the power that was told before
    silent   the governor does not answer
    full     too many look already; the connection ends
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from memscaler.core.snapshot import Snapshot
from memscaler.observe.pages import edition
from memscaler.observe.view import View, view

EVERY_S = 2.0
SETTLE_S = 0.05  # after a change: a client that wakes eight GPUs is told of once, and when the driver has been called
SLOW_S = 10.0
MOST_VIEWERS = 8
MOST_MISSED = 2  # views that wait for a slow reader
BUFFER_BYTES = 65536  # in the kernel, for each
AGAIN_MS, AGAIN_IF_FULL_MS = 1000, 15000

_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_FULL = f"retry: {AGAIN_IF_FULL_MS}\nevent: full\ndata: \n\n".encode()
_SILENT = b"event: silent\ndata: \n\n"


@dataclass(slots=True, eq=False)
class _Viewer:
    """Somebody who looks. whole: has had a whole view. None in the queue: the end."""

    protocol: object
    whole: bool = False
    queue: asyncio.Queue[bytes | None] = field(default_factory=lambda: asyncio.Queue(MOST_MISSED))

    def offer(self, message: bytes) -> bool:
        """False if it has not read those before: then it is told the whole when it has."""
        with suppress(asyncio.QueueFull):
            self.queue.put_nowait(message)
            return True
        return False

    def end(self) -> None:
        while not self.queue.empty():
            self.queue.get_nowait()
        self.queue.put_nowait(None)


class Stream:
    """Used by the server's loop, but for `changed`. ask: the governor's answer, or None if there is none in time."""

    def __init__(self, ask: Callable[[], Awaitable[Snapshot | None]]) -> None:
        self._ask = ask
        self._viewers: set[_Viewer] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()
        self._feeder: asyncio.Task[None] | None = None
        self._told_s = 0.0

    def changed(self) -> None:
        """A state changed. For any thread; nothing happens if nobody looks, and nothing is raised."""
        if self._viewers and self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._news.set)

    def holds(self, connection: object) -> bool:
        """True if this connection is somebody who looks."""
        return any(viewer.protocol is connection for viewer in self._viewers)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Tell this client until it goes."""
        response = web.StreamResponse(headers=_HEADERS)
        response.force_close()
        await response.prepare(request)
        if len(self._viewers) >= MOST_VIEWERS:
            await response.write(_FULL)
            return response
        viewer = _Viewer(request.protocol)
        self._join(viewer)
        _bound(request.transport)
        try:
            await response.write(f"retry: {AGAIN_MS}\n\n".encode())
            while (message := await viewer.queue.get()) is not None:
                async with asyncio.timeout(SLOW_S):
                    await response.write(message)
        except (TimeoutError, ConnectionError):
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._viewers.discard(viewer)
        return response

    def end(self) -> None:
        """The server stops."""
        if self._feeder is not None:
            self._feeder.cancel()
        for viewer in self._viewers:
            viewer.end()

    def _join(self, viewer: _Viewer) -> None:
        self._loop = asyncio.get_running_loop()
        self._viewers.add(viewer)
        self._news.set()
        if self._feeder is None or self._feeder.done():
            self._feeder = self._loop.create_task(self._feed())

    async def _feed(self) -> None:
        """Until nobody looks. A mistake in here ends every stream, so that the pages tell of it."""
        try:
            while self._viewers:
                self._news.clear()
                self._tell(await self._ask())
                with suppress(TimeoutError):
                    async with asyncio.timeout(EVERY_S):
                        await self._news.wait()
                        await asyncio.sleep(SETTLE_S)
        finally:
            for viewer in self._viewers:
                viewer.end()

    def _tell(self, snapshot: Snapshot | None) -> None:
        if snapshot is None:
            for viewer in self._viewers:
                viewer.offer(_SILENT)
            return
        now = view(snapshot)
        brief, whole = _message(now, self._told_s), b""
        for viewer in self._viewers:
            if not viewer.whole:
                whole = whole or _message(now, None)
            viewer.whole = viewer.offer(brief if viewer.whole else whole)
        self._told_s = now.at_s


def _message(now: View, since_s: float | None) -> bytes:
    """since_s: with the power after this only; None: with all of it."""
    plots: dict[str, Any] = {
        key: {
            "states": plot.states,
            "power": [point for point in plot.power if since_s is None or point[0] > since_s],
        }
        for key, plot in now.plots.items()
    }
    lists = {
        name: [{"key": entry.key, "fields": entry.fields} for entry in entries] for name, entries in now.lists.items()
    }
    told = {"at": now.at_s, "whole": since_s is None, "edition": edition()}
    told |= {"fields": now.fields, "lists": lists, "plots": plots}
    return f"event: now\ndata: {json.dumps(told, separators=(',', ':'))}\n\n".encode()


def _bound(transport: asyncio.Transport | None) -> None:
    """Little waits in the kernel for a client that does not read, and not for long for one that is gone."""
    own: socket.socket | None = None if transport is None else transport.get_extra_info("socket")
    if own is not None:
        with suppress(OSError):
            own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(SLOW_S * 1000))
