"""The control socket: what may be asked of the running daemon, in a thread and an event loop of its own.

Who may ask for what, and how the socket is made: callers.py. Nothing here waits for the governor but the one who asked.
Times are bounded (request 5 s, answer 10 s, reading it 5 s; the answer of who waits for a server to come back 20 min),
and so are sizes (http1.py) and numbers: 16 connections, and 64 tied holds. A tied hold lasts as long as its connection.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path

import structlog

from memscaler.daemon import callers, http1
from memscaler.daemon.callers import SCHEMA, Caller, Callers, Rank
from memscaler.daemon.http1 import Refused
from memscaler.daemon.requests import (
    FOR_READERS,
    PATIENT,
    READS,
    ROUTES,
    Asked,
    Document,
    HoldWanted,
    Peer,
    Request,
    TiedEnded,
    parse,
)

GROUP = "memscaler"
REQUEST_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 10.0
PATIENT_TIMEOUT_S = 1200.0
SEND_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 2.0
FAREWELL_S = 0.2
MOST_CONNECTIONS = 16
MOST_TIED = 64
BACKLOG = 128  # most clients do not wait for a place in it (unix(7), EAGAIN)

log = structlog.get_logger()


class ControlServer:
    """Answers on a Unix socket until stopped. `ask` is called with Asked and TiedEnded.

    It is called in the server's thread, or in the one that fulfils an answer too late, and must not block. The socket's
    directory is locked by this daemon, so a socket that lies there is of one that is gone, and is replaced.
    Raise MemscalerError if there cannot be a socket.
    """

    def __init__(self, path: Path, ask: Callable[[object], None]) -> None:
        self._path = path
        self._ask = ask
        self._socket = callers.bind(path, GROUP)
        self._is_there = True
        self._callers = Callers(GROUP, MOST_CONNECTIONS)
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        logging.getLogger("asyncio").addHandler(logging.NullHandler())  # else it writes to stderr by itself

    def start(self) -> None:
        """Serve from now on; before, connections are refused."""
        self._socket.listen(BACKLOG)
        self._thread.start()

    def stop(self) -> None:
        """Close the connections, which ends tied holds, and remove the socket. Waits 2 s at most."""
        if self._thread.is_alive():
            with suppress(RuntimeError):  # the loop has ended by itself
                self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join(STOP_TIMEOUT_S)
        if self._is_there:  # not a second time: another daemon's may be there by then
            self._is_there = False
            with suppress(OSError):
                self._path.unlink()
        self._socket.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_unix_server(
            self._connected, sock=self._socket, limit=http1.HEAD_BYTES, backlog=BACKLOG
        )
        await self._stopped.wait()
        server.close()
        await self._callers.dismiss(FAREWELL_S)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._callers.serve(reader, writer, self._converse)

    # ---- requests -------------------------------------------------------------------------------------------------

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client: Caller) -> None:
        """One request and its answer. Raise OSError or EOFError if the client does not take part."""
        with ExitStack() as stack:
            try:
                request = await callers.in_time(self._read(reader, client.rank), REQUEST_TIMEOUT_S)
                answer = self._post(request, client.peer)
                client.tied = isinstance(request, HoldWanted) and request.tied
                if client.tied:
                    stack.callback(answer.add_done_callback, self._let_go)
                patience_s = PATIENT_TIMEOUT_S if isinstance(request, PATIENT) else ANSWER_TIMEOUT_S
                document = {"schema": SCHEMA, **await _answered(answer, patience_s)}
                text = http1.open_answer(document) if client.tied else http1.answer(HTTPStatus.OK, document)
            except (ConnectionError, EOFError):
                raise
            except Exception as error:  # noqa: BLE001  # whatever it is, the client learns no more than that
                client.tied = False
                text = callers.refusal(error)
            await callers.send(writer, text, SEND_TIMEOUT_S)
            while client.tied and await reader.read(http1.HEAD_BYTES):
                pass

    async def _read(self, reader: asyncio.StreamReader, rank: Rank) -> Request:
        head = await http1.read_head(reader)
        kind = self._callers.routed(head, rank, ROUTES, READS, FOR_READERS)
        request = parse(kind, await http1.read_body(reader, head))
        tied = isinstance(request, HoldWanted) and request.tied
        if tied and self._callers.tied >= MOST_TIED:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, f"there are {MOST_TIED} tied holds already")
        return request

    def _post(self, request: Request, peer: Peer) -> Future[Document]:
        if not isinstance(request, READS):
            log.info("control.asked", what=_what(request), user=peer.name, pid=peer.pid, **asdict(request))
        answer: Future[Document] = Future()
        self._ask(Asked(request, peer, answer))
        return answer

    def _let_go(self, answer: Future[Document]) -> None:
        """The connection of a tied hold is over, and the hold is known: perhaps only now."""
        if not answer.cancelled() and answer.exception() is None:
            self._ask(TiedEnded(str(answer.result()["id"])))


async def _answered(answer: Future[Document], patience_s: float) -> Document:
    """What the loop answers. Raise what it raises, Refused if it says nothing in time."""
    # not wait_for: that would cancel a future which the loop is about to fulfil
    await asyncio.wait({asyncio.wrap_future(answer)}, timeout=patience_s)
    if not answer.done() or answer.cancelled():
        hint = "it may still do what was asked; see `memscaler status` and the log"
        raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "the governor does not answer", hint=hint)
    return answer.result()


def _what(request: Request) -> str:
    return next(route.rpartition("/")[2] for route, kind in ROUTES.items() if isinstance(request, kind))
