"""Who asks through a Unix socket: what the control sockets of the governor and of the supervisor have in common.

Who asks is what the kernel says about the other end (SO_PEERCRED, SO_PEERGROUPS), as of the moment it connected:

    uid 0 and the process's own   everything
    members of the group          what changes nothing, and what only undoes what we did
    others                        nothing; the file's mode keeps them out as well

Each connection has one request and one answer (http1.py). Their number is bounded, and readers make room for those who
may change things.
"""

from __future__ import annotations

import asyncio
import errno
import grp
import os
import pwd
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import structlog

from memscaler.core.errors import ConfigError, Failed, MemscalerError, PermissionMissing, UsageError
from memscaler.daemon import http1
from memscaler.daemon.http1 import Head, Refused
from memscaler.daemon.requests import Peer

SCHEMA = 1
SO_PEERGROUPS = 59  # asm-generic/socket.h, Linux 4.13; Python has no name for it
MOST_GROUPS = 256  # what Python's getsockopt can take; who has more wants memscaler as primary group
NOT_FOR_GROUP_AND_OTHERS = 0o117
LONGEST_PATH = 107  # of a Unix socket, unix(7)

log = structlog.get_logger()

Wanted = TypeVar("Wanted")


class Rank(IntEnum):
    """What somebody may ask for; each includes those before it."""

    NOTHING = 0
    READ = 1
    CHANGE = 2


@dataclass(slots=True, eq=False)
class Caller:
    """A connection, by whom, and what serves it. tied: it stays open because of what was asked for."""

    peer: Peer
    rank: Rank
    task: asyncio.Task[Any]
    tied: bool = False


Converse = Callable[[asyncio.StreamReader, asyncio.StreamWriter, Caller], Awaitable[None]]


class Callers:
    """Those who are connected. group: whose members may look, if there is one. most: connections, beside tied ones.

    Belongs to one event loop.
    """

    def __init__(self, group: str, most: int) -> None:
        self._group = group
        self._readers = _gid_of(group)
        self._most = most
        self._there: dict[Caller, None] = {}  # the oldest first

    @property
    def tied(self) -> int:
        """How many stay."""
        return sum(caller.tied for caller in self._there)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, converse: Converse) -> None:
        """One connection to its end."""
        writer.transport.set_write_buffer_limits(high=0)  # drain() waits until all is with the client
        try:
            caller = self._admit(writer)
            self._there[caller] = None
            try:
                await converse(reader, writer, caller)
            finally:
                self._there.pop(caller, None)
        except Refused as error:
            writer.write(refusal(error))
        except (ConnectionError, EOFError, TimeoutError):
            writer.transport.abort()  # the client has gone, or does not read
        finally:
            writer.close()

    async def dismiss(self, farewell_s: float) -> None:
        """End all connections, those that are answered after this time."""
        answered = [caller.task for caller in self._there if not caller.tied]
        if answered:  # what was asked last may have ended us
            await asyncio.wait(answered, timeout=farewell_s)
        tasks = [caller.task for caller in self._there]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def routed(
        self,
        head: Head,
        rank: Rank,
        routes: Mapping[str, Wanted],
        reads: tuple[Wanted, ...],
        for_readers: tuple[Wanted, ...] = (),
    ) -> Wanted:
        """What is wanted there. for_readers: changes that readers may ask for, too.

        Raise PermissionMissing or Refused: who may not ask is told before the body is read.
        """
        if rank < Rank.READ:
            hint = f"sudo usermod -aG {self._group} USER, then log in anew"
            raise PermissionMissing(f"only root and members of group {self._group} may ask", hint=hint)
        wanted = routes.get(head.path)
        if wanted is None:
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such route", hint=f"known: {', '.join(routes)}")
        method = "GET" if wanted in reads else "POST"
        if head.method != method:
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"{head.path} wants {method}")
        if wanted not in (*reads, *for_readers) and rank < Rank.CHANGE:
            raise PermissionMissing("only root may change anything", hint="sudo memscaler ...")
        return wanted

    def _admit(self, writer: asyncio.StreamWriter) -> Caller:
        """A caller, for whom one of lower rank makes room if need be. Raise Refused if nobody can."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # for the type checkers: we run in one
        peer, rank = self._who(writer.get_extra_info("socket"))
        busy = [caller for caller in self._there if not caller.tied]
        if len(busy) >= self._most:
            least = min(busy, key=lambda caller: caller.rank)  # of these the oldest
            if least.rank >= rank:
                raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections", hint="try again in a moment")
            least.task.cancel()
            del self._there[least]
        return Caller(peer, rank, task)

    def _who(self, connection: socket.socket) -> tuple[Peer, Rank]:
        """Names are looked up for those who may change something only: that of others may come from the network."""
        size = struct.calcsize("iII")
        pid, uid, gid = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        if uid in (0, os.geteuid()):
            return Peer(pid, uid, gid, _name(uid)), Rank.CHANGE
        reads = self._readers is not None and self._readers in {gid, *_groups(connection)}
        return Peer(pid, uid, gid, str(uid)), Rank.READ if reads else Rank.NOTHING


# ---- requests and answers ------------------------------------------------------------------------------------------


async def in_time(read: Coroutine[Any, Any, Wanted], timeout_s: float) -> Wanted:
    """The request, if it is all there in time. Raise Refused."""
    try:
        async with asyncio.timeout(timeout_s):
            return await read
    except TimeoutError as error:
        sentence = f"the request did not arrive within {timeout_s:g} s"
        raise Refused(HTTPStatus.REQUEST_TIMEOUT, sentence) from error


async def send(writer: asyncio.StreamWriter, text: bytes, timeout_s: float) -> None:
    """Raise TimeoutError if the client does not read."""
    writer.write(text)
    async with asyncio.timeout(timeout_s):
        await writer.drain()


def refusal(error: Exception) -> bytes:
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
    known = error.document if isinstance(error, Failed) else {}
    return http1.answer(status, {**known, "schema": SCHEMA, "error": str(error), "hint": error.hint})


# ---- users ---------------------------------------------------------------------------------------------------------


def _gid_of(group: str) -> int | None:
    """None: there is no such group."""
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


def bind(path: Path, group: str) -> socket.socket:
    """A socket that nobody can connect to before it listens, open for this user and the group, if there is one.

    Its directory is locked by whoever calls this, so a socket that lies there is of one that is gone, and is replaced.
    Raise MemscalerError if there cannot be one.
    """
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
        _give_to_group(path, group)
    except OSError as error:
        bound.close()
        raise MemscalerError(f"cannot make the control socket {path}: {error.strerror}") from error
    return bound


def _remove_stale(path: Path) -> None:
    """A socket of a process that is gone, or a symbolic link, which is not followed; nothing else."""
    with suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not (stat.S_ISSOCK(mode) or stat.S_ISLNK(mode)):
            raise FileExistsError(errno.EEXIST, "something else is there")
        path.unlink()


def _give_to_group(path: Path, group: str) -> None:
    gid = _gid_of(group)
    try:
        if gid is not None:
            os.chown(path, -1, gid, follow_symlinks=False)
    except PermissionError:
        # A unit without CAP_CHOWN may do it only if the group is one of its own.
        log.warning("control.group_failed", group=group, hint=f"SupplementaryGroups={group} in the unit; root may ask")
