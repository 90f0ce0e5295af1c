"""The supervisor's control socket, in its own event loop.

Who may ask for what, and how the socket is made: memscaler/daemon/callers.py, as for the governor. An answer never
waits for a server: what takes long is told to those who follow.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path
from typing import Any

import structlog

from memscaler.daemon import callers, http1
from memscaler.daemon.callers import SCHEMA, Caller, Callers, Rank
from memscaler.daemon.http1 import Refused
from memscaler.servers.requests import READS, ROUTES, Follow, List, Request, parse, split

GROUP = "memscaler"
REQUEST_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 10.0
SEND_TIMEOUT_S = 5.0
FAREWELL_S = 0.2
LOOK_EVERY_S = 0.1  # for those who follow, while there are any
SIGN_OF_LIFE_S = 5.0  # they hear something that often
MOST_CONNECTIONS = 16
MOST_FOLLOWERS = 32
BACKLOG = 128

Document = dict[str, Any]
Answer = Callable[[Request], Awaitable[Document]]

log = structlog.get_logger()


class ControlServer:
    """Answers on a Unix socket between start and stop. `answer` raises MemscalerError for what cannot be.

    Raise MemscalerError if there cannot be a socket. The directory is locked by this supervisor.
    """

    def __init__(self, path: Path, answer: Answer) -> None:
        self._path = path
        self._answer = answer
        self._socket = callers.bind(path, GROUP)
        self._callers = Callers(GROUP, MOST_CONNECTIONS)
        self._server: asyncio.Server | None = None
        logging.getLogger("asyncio").addHandler(logging.NullHandler())  # else it writes to stderr by itself

    async def start(self) -> None:
        """Serve from now on; before, connections are refused."""
        self._socket.listen(BACKLOG)
        self._server = await asyncio.start_unix_server(
            self._connected, sock=self._socket, limit=http1.HEAD_BYTES, backlog=BACKLOG
        )

    async def stop(self) -> None:
        """Close the connections and remove the socket."""
        with suppress(OSError):
            self._path.unlink()
        if self._server is not None:
            self._server.close()
        self._socket.close()
        await self._callers.dismiss(FAREWELL_S)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._callers.serve(reader, writer, self._converse)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: Caller) -> None:
        """One request and its answer. Raise OSError or EOFError if the client does not take part."""
        try:
            request = await callers.in_time(self._read(reader, caller.rank), REQUEST_TIMEOUT_S)
            if not isinstance(request, READS):
                what = type(request).__name__.lower()
                log.info("control.asked", what=what, user=caller.peer.name, pid=caller.peer.pid, **asdict(request))
            caller.tied = isinstance(request, Follow)
            document = await self._said(List() if caller.tied else request)
            text = http1.open_answer(document) if caller.tied else http1.answer(HTTPStatus.OK, document)
        except (ConnectionError, EOFError):
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, the client learns no more than that
            caller.tied = False
            text = callers.refusal(error)
        await callers.send(writer, text, SEND_TIMEOUT_S)
        if caller.tied:
            await self._tell(reader, writer)

    async def _read(self, reader: asyncio.StreamReader, rank: Rank) -> Request:
        head = await http1.read_head(reader)
        route, name = split(head.path)
        kind = self._callers.routed(http1.Head(head.method, route, head.length), rank, ROUTES, READS)
        if kind is Follow and self._callers.tied >= MOST_FOLLOWERS:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, f"{MOST_FOLLOWERS} follow already")
        return parse(kind, await http1.read_body(reader, head), name)

    async def _said(self, request: Request) -> Document:
        """Raise what it raises, Refused if it takes too long; then it goes on all the same, as when the client goes."""
        task = asyncio.ensure_future(self._answer(request))
        await asyncio.wait({task}, timeout=ANSWER_TIMEOUT_S)
        if not task.done():
            task.add_done_callback(_forget)
            hint = "it may still do what was asked; see `memscaler servers list` and the log"
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "the supervisor does not answer", hint=hint)
        return {"schema": SCHEMA, **task.result()}

    async def _tell(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A line at every change, until the client goes or we do. Raise TimeoutError if it does not read."""
        gone = asyncio.ensure_future(_until_gone(reader))
        clock = asyncio.get_running_loop().time
        told, told_at_s = Document(), clock()
        try:
            while not gone.done():
                now = await self._said(List())
                if now != told or clock() - told_at_s > SIGN_OF_LIFE_S:
                    await callers.send(writer, http1.line(now), SEND_TIMEOUT_S)
                    told, told_at_s = now, clock()
                await asyncio.wait({gone}, timeout=LOOK_EVERY_S)
        except Refused as error:
            log.warning("control.follow_failed", err=str(error))
        finally:
            gone.cancel()


async def _until_gone(reader: asyncio.StreamReader) -> None:
    with suppress(ConnectionError):
        while await reader.read(http1.HEAD_BYTES):
            pass


def _forget(task: asyncio.Future[Document]) -> None:
    """Nobody waits for it any more."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("control.answer_failed", err=str(error))
