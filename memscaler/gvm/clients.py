"""Who of those whom a rule stops is a client of its watch himself: his own connection would keep him stopped for ever.

Slow, off the path of a wake: sockets of processes against the kernel's list, in the network namespaces of both. A
connection counts if both of its ends are seen on this machine, as they are; what an address translation or a proxy has
in between is not seen.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from memscaler.child.link import ServerSeen
from memscaler.gvm.processes import started_at
from memscaler.kernel.processes import PROC, Processes
from memscaler.kernel.sock_diag import Row, SockDiag

SPARED_S = 60.0  # after his last connection was seen: who asks again and again is not stopped in between
_MOST_NAMESPACES = 16

_End = tuple[bytes, int, bytes, int]


class Clients:
    """Remembers them for a while. Used by one thread."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int, int], float] = {}  # watch, pid, when it started -> when it was one

    def of(self, server: ServerSeen, pids: Collection[int], processes: Processes) -> frozenset[int]:
        """Those of these processes that are clients of it, or were just now."""
        now_s = time.monotonic()
        self._seen = {key: at_s for key, at_s in self._seen.items() if now_s < at_s + SPARED_S}
        if not pids:
            return frozenset()
        started = {pid: started_at(pid, _proc(processes)) or 0 for pid in pids}
        for pid in connected(server, pids, processes):
            self._seen[server.key, pid, started[pid]] = now_s
        return frozenset(pid for pid in pids if (server.key, pid, started[pid]) in self._seen)


def connected(server: ServerSeen, pids: Collection[int], processes: Processes) -> frozenset[int]:
    """Those that hold a connection to it open, now."""
    with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
        home = os.stat(PROC / "thread-self/ns/net").st_ino  # noqa: PTH116  # as the others are looked at
        theirs = [inode for pid in server.pids if (inode := processes.netns(pid)) is not None]
        if not theirs and server.scope:
            return frozenset()
        there = theirs[0] if theirs else home
        namespaces: dict[int, list[int]] = {}
        for pid in sorted(pids):
            if (inode := processes.netns(pid)) is not None:
                namespaces.setdefault(inode, []).append(pid)
        at = _open(there, home, server.pids, processes, opened)
        served = {_other(row) for row in at.connections(server.port)} if at else set()
        found: set[int] = set()
        for inode, those in sorted(namespaces.items())[:_MOST_NAMESPACES] if served else ():
            diag = at if inode == there else _open(inode, home, those, processes, opened)
            rows = diag.clients(server.port) if diag else []
            sockets = {row.inode for row in rows if row.inode and _one(row) in served}
            for owners in processes.owners(sockets, those).values() if sockets else ():
                found |= owners
        return frozenset(found)
    return frozenset()


def _open(
    inode: int, home: int, pids: Collection[int], processes: Processes, opened: contextlib.ExitStack
) -> SockDiag | None:
    """Of this namespace; None if it cannot be had."""
    for path in (None,) if inode == home else _paths(inode, pids, processes):
        with contextlib.suppress(OSError):
            diag = SockDiag(path, inode=inode)
            opened.callback(diag.close)
            return diag
    return None


def _paths(inode: int, pids: Collection[int], processes: Processes) -> Iterator[str]:
    return (processes.path(pid, "ns", "net") for pid in pids if processes.netns(pid) == inode)


def _proc(processes: Processes) -> Path:
    return Path(processes.path(1)).parent


def _one(row: Row) -> _End:
    return row.local, row.local_port, row.peer, row.peer_port


def _other(row: Row) -> _End:
    """As the other end has it."""
    return row.peer, row.peer_port, row.local, row.local_port
