"""The control socket: who may ask the running daemon for what, in a thread and an event loop of its own.

Who asks is what the kernel says about the other end (SO_PEERCRED, SO_PEERGROUPS), as of the moment it connected:

    uid 0 and the daemon's own    everything
    members of group memscaler    what changes nothing
    others                        nothing; the file's mode keeps them out as well

Nothing here waits for the governor but the one who asked. Times are bounded (request 5 s, answer 10 s, reading it 5 s),
and so are sizes (http1.py) and numbers: 16 connections, of which readers make room for those who may change things, and
64 tied holds. A tied hold lasts as long as its connection.
"""

from __future__ import annotations

import asyncio
import errno
import grp
import logging
import os
import pwd
import socket
import stat
import struct
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from enum import IntEnum
from http import HTTPStatus
from pathlib import Path
from typing import Any

import structlog

from memscaler.core.errors import ConfigError, MemscalerError, PermissionMissing, UsageError
from memscaler.daemon import http1
from memscaler.daemon.http1 import Refused
from memscaler.daemon.requests import (
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
SCHEMA = 1
REQUEST_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 10.0
SEND_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 2.0
FAREWELL_S = 0.2
MOST_CONNECTIONS = 16
MOST_TIED = 64
BACKLOG = 128  # most clients do not wait for a place in it (unix(7), EAGAIN)
SO_PEERGROUPS = 59  # asm-generic/socket.h, Linux 4.13; Python has no name for it
MOST_GROUPS = 256  # what Python's getsockopt can take; who has more wants memscaler as primary group
NOT_FOR_GROUP_AND_OTHERS = 0o117
LONGEST_PATH = 107  # of a Unix socket, unix(7)

log = structlog.get_logger()


class Rank(IntEnum):
    """What somebody may ask for; each includes those before it."""

    NOTHING = 0
    READ = 1
    CHANGE = 2


@dataclass(slots=True, eq=False)
class _Client:
    """A connection, by whom, and what serves it. tied: it stays open because of its hold."""

    peer: Peer
    rank: Rank
    task: asyncio.Task[Any]
    tied: bool = False


class ControlServer:
    """Answers on a Unix socket until stopped. `ask` is called with Asked and TiedEnded.

    It is called in the server's thread, or in the one that fulfils an answer too late, and must not block. The socket's
    directory is locked by this daemon, so a socket that lies there is of one that is gone, and is replaced.
    Raise MemscalerError if there cannot be a socket.
    """

    def __init__(self, path: Path, ask: Callable[[object], None]) -> None:
        self._path = path
        self._ask = ask
        self._readers = _gid_of(GROUP)
        self._socket = _bind(path, self._readers)
        self._is_there = True
        self._clients: dict[_Client, None] = {}  # the oldest first
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
        answered = [client.task for client in self._clients if not client.tied]
        if answered:  # what was asked last may have ended us
            await asyncio.wait(answered, timeout=FAREWELL_S)
        tasks = [client.task for client in self._clients]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- connections ----------------------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(high=0)  # drain() waits until all is with the client
        try:
            with ExitStack() as stack:
                client = self._admit(writer)
                self._clients[client] = None
                stack.callback(self._clients.pop, client, None)
                await self._converse(reader, writer, client)
        except Refused as error:
            writer.write(_refusal(error))
        except (ConnectionError, EOFError, TimeoutError):
            writer.transport.abort()  # the client has gone, or does not read
        finally:
            writer.close()

    def _admit(self, writer: asyncio.StreamWriter) -> _Client:
        """A client, for whom one of lower rank makes room if need be. Raise Refused if nobody can."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # for the type checkers: we run in one
        peer, rank = self._who(writer.get_extra_info("socket"))
        busy = [client for client in self._clients if not client.tied]
        if len(busy) >= MOST_CONNECTIONS:
            least = min(busy, key=lambda client: client.rank)  # of these the oldest
            if least.rank >= rank:
                raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections", hint="try again in a moment")
            least.task.cancel()
            del self._clients[least]
        return _Client(peer, rank, task)

    def _who(self, connection: socket.socket) -> tuple[Peer, Rank]:
        """Names are looked up for those who may change something only: that of others may come from the network."""
        size = struct.calcsize("iII")
        pid, uid, gid = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        if uid in (0, os.geteuid()):
            return Peer(pid, uid, gid, _name(uid)), Rank.CHANGE
        reads = self._readers is not None and self._readers in {gid, *_groups(connection)}
        return Peer(pid, uid, gid, str(uid)), Rank.READ if reads else Rank.NOTHING

    # ---- requests -------------------------------------------------------------------------------------------------

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client: _Client) -> None:
        """One request and its answer. Raise OSError or EOFError if the client does not take part."""
        with ExitStack() as stack:
            try:
                request = await _in_time(self._read(reader, client.rank))
                answer = self._post(request, client.peer)
                client.tied = isinstance(request, HoldWanted) and request.tied
                if client.tied:
                    stack.callback(answer.add_done_callback, self._let_go)
                document = {"schema": SCHEMA, **await _answered(answer)}
                text = http1.open_answer(document) if client.tied else http1.answer(HTTPStatus.OK, document)
            except (ConnectionError, EOFError):
                raise
            except Exception as error:  # noqa: BLE001  # whatever it is, the client learns no more than that
                client.tied = False
                text = _refusal(error)
            await _send(writer, text)
            while client.tied and await reader.read(http1.HEAD_BYTES):
                pass

    async def _read(self, reader: asyncio.StreamReader, rank: Rank) -> Request:
        """Whoever may not ask is told so before the body is read."""
        head = await http1.read_head(reader)
        if rank < Rank.READ:
            hint = f"sudo usermod -aG {GROUP} USER, then log in anew"
            raise PermissionMissing(f"only root and members of group {GROUP} may ask", hint=hint)
        kind = ROUTES.get(head.path)
        if kind is None:
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such route", hint=f"known: {', '.join(ROUTES)}")
        method = "GET" if kind in READS else "POST"
        if head.method != method:
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"{head.path} wants {method}")
        if kind not in READS and rank < Rank.CHANGE:
            raise PermissionMissing("only root may change anything", hint="sudo memscaler ...")
        request = parse(kind, await http1.read_body(reader, head))
        tied = isinstance(request, HoldWanted) and request.tied
        if tied and sum(client.tied for client in self._clients) >= MOST_TIED:
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


async def _in_time(read: Coroutine[Any, Any, Request]) -> Request:
    """The request, if it is all there in time."""
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            return await read
    except TimeoutError as error:
        sentence = f"the request did not arrive within {REQUEST_TIMEOUT_S:g} s"
        raise Refused(HTTPStatus.REQUEST_TIMEOUT, sentence) from error


async def _answered(answer: Future[Document]) -> Document:
    """What the loop answers. Raise what it raises, Refused if it says nothing in time."""
    # not wait_for: that would cancel a future which the loop is about to fulfil
    await asyncio.wait({asyncio.wrap_future(answer)}, timeout=ANSWER_TIMEOUT_S)
    if not answer.done() or answer.cancelled():
        hint = "it may still do what was asked; see `memscaler status` and the log"
        raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "the governor does not answer", hint=hint)
    return answer.result()


async def _send(writer: asyncio.StreamWriter, answer: bytes) -> None:
    """Raise TimeoutError if the client does not read."""
    writer.write(answer)
    async with asyncio.timeout(SEND_TIMEOUT_S):
        await writer.drain()


def _refusal(error: Exception) -> bytes:
    """An answer that says what is wrong and what to do; a mistake of ours goes to the log."""
    match error:
        case Refused():
            status = error.status
        case UsageError():
            status = HTTPStatus.BAD_REQUEST
        case PermissionMissing():
            status = HTTPStatus.FORBIDDEN
        case ConfigError():
            status = HTTPStatus.UNPROCESSABLE_ENTITY
        case MemscalerError():
            status = HTTPStatus.CONFLICT
        case _:
            log.error("request.failed", exc_info=error)
            error = Refused(HTTPStatus.INTERNAL_SERVER_ERROR, "memscaler made a mistake", hint="its log has more")
            status = error.status
    return http1.answer(status, {"schema": SCHEMA, "error": str(error), "hint": error.hint})


def _what(request: Request) -> str:
    return next(route.rpartition("/")[2] for route, kind in ROUTES.items() if isinstance(request, kind))


# ---- users ---------------------------------------------------------------------------------------------------------


def _gid_of(group: str) -> int | None:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        return None


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _groups(connection: socket.socket) -> tuple[int, ...]:
    """The supplementary groups of the other end when it connected; none if they are more than we can take."""
    size = struct.calcsize("I")
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, MOST_GROUPS * size)
    except OSError:
        return ()
    return struct.unpack(f"{len(raw) // size}I", raw)


# ---- the socket ----------------------------------------------------------------------------------------------------


def _bind(path: Path, readers: int | None) -> socket.socket:
    """A socket that nobody can connect to before it listens, open for this user and the readers."""
    if len(os.fsencode(path)) > LONGEST_PATH:
        hint = f"choose a shorter --runtime-dir: {LONGEST_PATH} bytes are the most"
        raise MemscalerError(f"{path} is too long for a socket", hint=hint)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        mask = os.umask(NOT_FOR_GROUP_AND_OTHERS)
        try:
            bound.bind(str(path))
        finally:
            os.umask(mask)
        if readers is not None:
            _give_to_group(path, readers)
    except OSError as error:
        bound.close()
        raise MemscalerError(f"cannot make the control socket {path}: {error.strerror}") from error
    return bound


def _remove_stale(path: Path) -> None:
    """A socket of a daemon that is gone, or a symbolic link, which is not followed; nothing else."""
    with suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not (stat.S_ISSOCK(mode) or stat.S_ISLNK(mode)):
            raise FileExistsError(errno.EEXIST, "something else is there")
        path.unlink()


def _give_to_group(path: Path, gid: int) -> None:
    try:
        os.chown(path, -1, gid, follow_symlinks=False)
    except PermissionError:
        # A unit without CAP_CHOWN may do it only if the group is one of its own.
        log.warning("control.group_failed", group=GROUP, hint=f"SupplementaryGroups={GROUP} in the unit; root may ask")
