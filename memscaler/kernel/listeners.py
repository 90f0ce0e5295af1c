"""Which processes listen on a port: sock_diag gives the socket's inode, /proc the process that owns it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from memscaler.kernel.sock_diag import SockDiag

PROC = Path("/proc")


def processes_on(diag: SockDiag, port: int) -> frozenset[int]:
    """Pids of those that listen on this port, and of their descendants (a server's workers hold the GPU)."""
    inodes = {f"socket:[{row.inode}]" for row in diag.listeners(port) if row.inode}
    owners = {pid for pid in _pids() if inodes & _links(pid)} if inodes else set()
    return frozenset(owners | _descendants(owners))


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())


def _links(pid: int) -> set[str]:
    """What the descriptors of a process point to; empty if it is gone or not ours to look at."""
    links = set()
    with contextlib.suppress(OSError):
        for entry in os.scandir(PROC / str(pid) / "fd"):
            with contextlib.suppress(OSError):
                links.add(str(Path(entry.path).readlink()))
    return links


def _descendants(pids: set[int]) -> set[int]:
    parents = {}
    for pid in _pids():
        with contextlib.suppress(OSError, ValueError, IndexError):
            # the command's name may hold blanks and brackets: the fields start after the last bracket
            parents[pid] = int((PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    found: set[int] = set()
    edge = set(pids)
    while edge:
        edge = {pid for pid, parent in parents.items() if parent in edge} - found - pids
        found |= edge
    return found
