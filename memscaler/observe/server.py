"""GET /metrics, in a thread and an event loop of its own: a slow scraper never delays the governor.

The governor hands over a snapshot when it is asked (`fresh`), so a scrape sees this moment and not the last sample.
If it does not answer in time, the scrape fails (503): Prometheus shows `up 0`, which is true, and never stale numbers.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import cast

from aiohttp import web

from memscaler.core.errors import MemscalerError
from memscaler.core.snapshot import Snapshot
from memscaler.observe.metrics import render

FRESH_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 2.0
MOST_CONNECTIONS = 16

Fresh = Callable[[], "Future[Snapshot]"]

_INDEX = """<!doctype html><title>memscaler</title>
<h1>memscaler</h1><p><a href="/metrics">Metrics</a> for Prometheus.</p>
"""


class MetricsServer:
    """Serves the metrics until stopped. `fresh` is called in the server's thread and must not block.

    Raise MemscalerError if the address cannot be had.
    """

    def __init__(self, host: str, port: int, fresh: Fresh) -> None:
        self._fresh = fresh
        self._socket = _listen(host, port)
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        logging.getLogger("asyncio").addHandler(logging.NullHandler())  # else it writes to stderr by itself

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that are listened on; the port is the real one if 0 was asked for."""
        host, port = self._socket.getsockname()[:2]
        return host, port

    def start(self) -> None:
        """Serve from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Close the connections and the port. Waits 2 s at most."""
        if self._thread.is_alive():
            with suppress(RuntimeError):  # the loop has ended by itself
                self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join(STOP_TIMEOUT_S)
        self._socket.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        runner = web.AppRunner(self._app(), access_log=None, handle_signals=False, shutdown_timeout=0.5)
        await runner.setup()
        server = await self._loop.create_server(partial(_protocol, runner), sock=self._socket, backlog=MOST_CONNECTIONS)
        await self._stopped.wait()
        server.close()
        await runner.cleanup()

    def _app(self) -> web.Application:
        app = web.Application()
        app.add_routes([web.get("/", self._index), web.get("/metrics", self._metrics)])
        return app

    async def _index(self, _request: web.Request) -> web.Response:
        return web.Response(text=_INDEX, content_type="text/html")

    async def _metrics(self, request: web.Request) -> web.Response:
        future = asyncio.wrap_future(self._fresh())
        # not wait_for: that would cancel a future which the governor is about to fulfil
        await asyncio.wait({future}, timeout=FRESH_TIMEOUT_S)
        if not future.done() or future.cancelled():
            raise web.HTTPServiceUnavailable(text="the governor does not answer\n")
        body, content_type = render(future.result(), request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})


def _protocol(runner: web.AppRunner) -> asyncio.BaseProtocol:
    """A scraper's connection; the oldest one goes if there are too many.

    Whoever can reach the port can open any number and say nothing, and the descriptors are the governor's. A scrape is
    over in milliseconds. No timers: a parked governor sleeps.
    """
    server = cast("web.Server", runner.server)
    for oldest in server.connections[: 1 - MOST_CONNECTIONS]:
        oldest.force_close()
    return server()


def _listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Raise MemscalerError with what to do."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=MOST_CONNECTIONS)
    except OSError as err:
        raise MemscalerError(
            f"metrics cannot listen on {host}:{port}: {err.strerror}",
            hint="is another memscaler running? else choose another address with --metrics HOST:PORT, or --metrics off",
        ) from err
