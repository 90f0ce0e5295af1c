"""Who listens on a port, as far as this user may see."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection

from memscaler.kernel.processes import Processes, start_time
from memscaler.kernel.sock_diag import SockDiag

ANY = frozenset({bytes(16), bytes(10) + b"\xff\xff" + bytes(4)})


def taken_by(port: int, host: str = "") -> str:
    """For example "nginx (pid 12)"; "" if nobody listens there. host: the address that is wanted, "" is any."""
    inodes = _listening(port, host)
    if not inodes:
        return ""  # or it cannot be asked: then the server finds out by itself
    processes = Processes.look()
    owners = {pid for pids in processes.owners(inodes, processes.pids).values() for pid in pids}
    return _named(processes, owners) or "a process of another user"


def stranger(port: int, host: str, ours: Callable[[], Collection[int]], before: int) -> str:
    """Who listens there and was there `before` (clock ticks since boot), for example "nginx (pid 12)".

    "" if one of ours does, or nobody that this user may see: a container's port is its engine's.
    """
    inodes = _listening(port, host)
    if not inodes:
        return ""
    processes = Processes.look()
    if processes.owners(inodes, ours()):
        return ""
    owners = {pid for pids in processes.owners(inodes, processes.pids).values() for pid in pids}
    if not owners or any((start_time(pid) or before) >= before for pid in owners):
        return ""
    return _named(processes, owners)


def _listening(port: int, host: str) -> set[int]:
    """Inodes of the sockets; none if that cannot be asked."""
    try:
        diag = SockDiag()
    except OSError:
        return set()
    try:
        return {row.inode for row in diag.listeners(port) if _clash(row.local, _address(host))}
    except OSError:
        return set()
    finally:
        diag.close()


def _named(processes: Processes, pids: Collection[int]) -> str:
    return ", ".join([f"{processes.comm(pid)} (pid {pid})" for pid in sorted(pids)][:3])


def _clash(one: bytes, other: bytes | None) -> bool:
    return other is None or one == other or one in ANY or other in ANY


def _address(host: str) -> bytes | None:
    """16 bytes, IPv4 as ::ffff:a.b.c.d; None for what is not an address, which could be any."""
    for family, prefix in ((socket.AF_INET, bytes(10) + b"\xff\xff"), (socket.AF_INET6, b"")):
        try:
            return prefix + socket.inet_pton(family, host)
        except OSError:
            continue
    return None
