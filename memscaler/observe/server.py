"""/metrics and the status page, in a thread and an event loop of its own: a slow reader never delays the governor.

The governor hands over a snapshot when it is asked (`fresh`), so a scrape sees this moment and not the last sample.
If it does not answer in time, the scrape fails (503): Prometheus shows `up 0`, which is true, and never stale numbers.

What listens on a loopback address is for this machine only. A web page that a browser of this machine shows could read
it all the same, if the page's own name leads to 127.0.0.1 (DNS rebinding). So there the Host must be one of our names.
No route changes anything.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import socket
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

from aiohttp import web

from memscaler.core.errors import MemscalerError
from memscaler.core.servers import Supervised
from memscaler.core.snapshot import Snapshot
from memscaler.observe.metrics import render
from memscaler.observe.pages import files, page
from memscaler.observe.stream import Stream
from memscaler.observe.view import unknown, view

FRESH_TIMEOUT_S = 5.0
PAGE_TIMEOUT_S = 1.0  # then the page comes without figures, and follows when there are some
STOP_TIMEOUT_S = 2.0
MOST_CONNECTIONS = 16
HOSTS = Path("/etc/hosts")

Fresh = Callable[[], "Future[Snapshot]"]
_PORT = re.compile(r":[0-9]{1,5}\Z")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class MetricsServer:
    """Serves the metrics and the page until stopped. `fresh` is called in the server's thread and must not block.

    supervised: what the supervisors of servers say; called in that thread, too, for each who asks. None: as in `fresh`.
    Raise MemscalerError if the address cannot be had.
    """

    def __init__(self, host: str, port: int, fresh: Fresh, supervised: Callable[[], Supervised] | None = None) -> None:
        self._fresh, self._supervised = fresh, supervised
        self._socket = _listen(host, port)
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._stream = Stream(self._ask)
        self.changed = self._stream.changed
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        for library in ("asyncio", "aiohttp"):
            logging.getLogger(library).addHandler(logging.NullHandler())  # else they write to stderr by themselves

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
        protocol = partial(_protocol, runner, self._stream)
        server = await self._loop.create_server(protocol, sock=self._socket, backlog=MOST_CONNECTIONS)
        await self._stopped.wait()
        server.close()
        self._stream.end()
        await runner.cleanup()

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[_only_our_names] if _is_loopback(self.address[0]) else [])
        app.on_response_prepare.append(_harden)
        app.add_routes([web.get("/", self._page), web.get("/metrics", self._metrics)])
        app.add_routes([web.get("/events", self._events, allow_head=False)])
        app.add_routes([web.get(f"/{name}", partial(_file, name)) for name in files() if name != "index.html"])
        return app

    async def _ask(self, within_s: float | None = None) -> Snapshot | None:
        """What the governor knows, None if it does not answer in time."""
        future = asyncio.wrap_future(self._fresh())
        # not wait_for: that would cancel a future which the governor is about to fulfil
        await asyncio.wait({future}, timeout=FRESH_TIMEOUT_S if within_s is None else within_s)
        if not future.done() or future.cancelled():
            return None
        snapshot = future.result()
        return replace(snapshot, supervised=self._supervised()) if self._supervised else snapshot

    async def _page(self, _request: web.Request) -> web.Response:
        snapshot = await self._ask(PAGE_TIMEOUT_S)
        text = page(unknown() if snapshot is None else view(snapshot))
        return web.Response(text=text, content_type="text/html", headers={"Cache-Control": "no-store"})

    async def _events(self, request: web.Request) -> web.StreamResponse:
        # a page from elsewhere could not read them, but it could take the place of one of ours
        if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            raise web.HTTPForbidden(text="for the status page only\n")
        return await self._stream.serve(request)

    async def _metrics(self, request: web.Request) -> web.Response:
        snapshot = await self._ask()
        if snapshot is None:
            raise web.HTTPServiceUnavailable(text="the governor does not answer\n")
        body, content_type = render(snapshot, request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})


async def _file(name: str, request: web.Request) -> web.Response:
    """One of the page's files; a browser that has it asks each time whether it is the same still."""
    file = files()[name]
    headers = {"Cache-Control": "no-cache", "ETag": f'"{file.etag}"'}
    if any(tag.value == file.etag for tag in request.if_none_match or ()):
        return web.Response(status=304, headers=headers)
    return web.Response(body=file.body, headers={**headers, "Content-Type": file.content_type})


async def _harden(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)


def _protocol(runner: web.AppRunner, stream: Stream) -> asyncio.BaseProtocol:
    """A new connection; the oldest one goes if there are too many, but for those of open pages, which are few.

    Whoever can reach the port can open any number and say nothing, and the descriptors are the governor's. A scrape is
    over in milliseconds. No timers: a parked governor sleeps.
    """
    server = cast("web.Server", runner.server)
    excess = len(server.connections) + 1 - MOST_CONNECTIONS
    others = [connection for connection in server.connections if not stream.holds(connection)]
    for oldest in others[: max(0, excess)]:
        oldest.force_close()
    return server()


@web.middleware
async def _only_our_names(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """403 for a Host that anybody can have made lead here."""
    hosts = request.headers.getall("Host", [""])
    if len(hosts) != 1 or not _is_ours(hosts[0]):
        raise web.HTTPForbidden(text="the Host of this request is no name of this machine\n")
    return await handler(request)


def _is_ours(host: str) -> bool:
    """An address, localhost or this machine's name; with a port or without."""
    name = host.rpartition(":")[0] if _PORT.search(host) else host
    name = name.lower().removesuffix(".")
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    return _is_address(name) or name == "localhost" or name in _own_names()


def _own_names() -> set[str]:
    """The host name and its aliases in /etc/hosts. DNS would take its time, and is what is not trusted here."""
    own = socket.gethostname().lower()
    names = {own}
    with suppress(OSError, UnicodeDecodeError):
        for line in HOSTS.read_text(encoding="utf-8").lower().splitlines():
            words = line.partition("#")[0].split()[1:]
            if own in words:
                names.update(words)
    return names


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    address = ipaddress.ip_address(host.partition("%")[0])
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


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
