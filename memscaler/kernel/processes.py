"""One look at /proc: who there is, whose child, called how, in which namespace and cgroup, holding which sockets.

`look` reads one small file per process; everything else is read when it is asked for, and once. A process that ends
while it is looked at has no arguments, no namespace and no sockets; it is never an error. What the fields mean:
proc(5), and Documentation/filesystems/proc.rst in the kernel's tree.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")

_KERNEL_THREAD = 0x00200000  # PF_KTHREAD, include/linux/sched.h
_GONE = frozenset("ZX")
_VERSION_2, _SYSTEMD, _OTHER = 0, 1, 2  # hierarchies of cgroups
_STAT_BYTES = 4096
_ENVIRON_BYTES = 1 << 17
_ARGV_BYTES = 65536  # arguments may be megabytes long; what a server is stands at their beginning
_SOCKET = "socket:["
_DELETED = " (deleted)"


@dataclass(frozen=True, slots=True)
class Process:
    """started: clock ticks since boot, which tells a process from a later one of the same pid."""

    pid: int
    parent: int
    group: int
    comm: str
    started: int


class Processes:
    """What /proc showed. Threads of the kernel and zombies are not there. Not to be shared by threads."""

    def __init__(self, proc: Path, table: Mapping[int, Process]) -> None:
        self._proc = str(proc)
        self._table = table
        self._argv: dict[int, tuple[str, ...]] = {}
        self._netns: dict[int, int | None] = {}
        self._cgroups: dict[int, tuple[str, ...]] = {}
        self._places: dict[int, tuple[str, ...]] = {}
        self._sockets: dict[int, frozenset[int]] = {}
        self._children: dict[int, list[int]] | None = None

    @classmethod
    def look(cls, proc: Path = PROC) -> Processes:
        """Raise OSError if there is no /proc."""
        table = {}
        root = os.open(proc, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in os.listdir(root):  # noqa: PTH208 - names only
                if (
                    name.isascii()
                    and name.isdigit()
                    and (process := _process(_read(f"{name}/stat", _STAT_BYTES, root), int(name)))
                ):
                    table[process.pid] = process
        finally:
            os.close(root)
        return cls(proc, table)

    def __contains__(self, pid: int) -> bool:
        return pid in self._table

    @property
    def pids(self) -> Collection[int]:
        return self._table.keys()

    def path(self, pid: int, *parts: str) -> str:
        """Where /proc has this process, for example `path(1, "ns", "net")`."""
        return "/".join((self._proc, str(pid), *parts))

    def parent(self, pid: int) -> int:
        """0: none, or one outside of our pid namespace, or the process is not there."""
        return self._table[pid].parent if pid in self._table else 0

    def group(self, pid: int) -> int:
        """Its process group; 0: one outside of our pid namespace, or the process is not there."""
        return self._table[pid].group if pid in self._table else 0

    def comm(self, pid: int) -> str:
        """The file that was executed, its first 15 bytes, unless the process calls itself otherwise."""
        return self._table[pid].comm if pid in self._table else ""

    def argv(self, pid: int) -> tuple[str, ...]:
        """The command line, or what the process has made of it; its first 64 KiB."""
        if pid not in self._argv:
            self._argv[pid] = _words(_read(self.path(pid, "cmdline"), _ARGV_BYTES))
        return self._argv[pid]

    def variable(self, pid: int, name: str) -> str:
        """Of the environment that it was started with (128 KiB); "" if there is none, or it is not ours to look at."""
        words = _read(self.path(pid, "environ"), _ENVIRON_BYTES).split("\0")
        return next((word.partition("=")[2] for word in words if word.startswith(f"{name}=")), "")

    def exe(self, pid: int) -> str:
        """Path of the executable as the process sees it; "" if it is gone or not ours to look at."""
        try:
            return os.readlink(self.path(pid, "exe")).removesuffix(_DELETED)  # noqa: PTH115 - thousands of them
        except OSError:
            return ""

    def netns(self, pid: int) -> int | None:
        """Inode of its network namespace; None if it is gone or not ours to look at."""
        if pid not in self._netns:
            try:
                self._netns[pid] = os.stat(self.path(pid, "ns", "net")).st_ino  # noqa: PTH116 - thousands of them
            except OSError:
                self._netns[pid] = None
        return self._netns[pid]

    def cgroups(self, pid: int) -> tuple[str, ...]:
        """Its paths in all cgroup hierarchies, each once: that of version 2 first, then that of systemd.

        Beside version 2, Docker's paths are only in the hierarchies of version 1 (runc leaves the root of 2 alone).
        """
        if pid not in self._cgroups:
            self._cgroups[pid] = parse_cgroups(_read(self.path(pid, "cgroup"), _STAT_BYTES))
        return self._cgroups[pid]

    def cgroup(self, pid: int) -> str:
        """Where systemd has put it: its path in version 2, or in systemd's own hierarchy if that one is not used."""
        paths = self.cgroups(pid)
        return next((path for path in paths if path != "/"), "/" if paths else "")

    def places(self, pid: int) -> tuple[str, ...]:
        """Where it is in version 2; if that is the root, or is not there, also in systemd's own hierarchy."""
        if pid not in self._places:
            ways = _ways(_read(self.path(pid, "cgroup"), _STAT_BYTES))
            of_2 = [path for rank, path in ways if rank == _VERSION_2]
            used = any(path != "/" for path in of_2)
            self._places[pid] = tuple(
                dict.fromkeys(of_2 + [path for rank, path in ways if rank == _SYSTEMD and not used])
            )
        return self._places[pid]

    def ancestors(self, pids: Iterable[int]) -> frozenset[int]:
        """Parents, their parents, and so on; without the given ones."""
        given = frozenset(pids)
        found: set[int] = set()
        for pid in given:
            above = self.parent(pid)
            while above in self._table and above not in found:
                found.add(above)
                above = self.parent(above)
        return frozenset(found) - given

    def descendants(self, pids: Iterable[int], without: Collection[int] = ()) -> frozenset[int]:
        """Children, their children, and so on; without the given ones. Those below `without` are left out with it."""
        if self._children is None:
            self._children = {}
            for process in self._table.values():
                self._children.setdefault(process.parent, []).append(process.pid)
        given = frozenset(pids)
        found: set[int] = set()
        edge = list(given)
        while edge:
            for child in self._children.get(edge.pop(), ()):
                if child not in found and child not in without:
                    found.add(child)
                    edge.append(child)
        return frozenset(found) - given

    def sockets(self, pid: int) -> frozenset[int]:
        """Inodes of the sockets that it has open; none if it is gone or not ours to look at.

        This is the dear part: a microsecond for each descriptor. Ask for those that may matter.
        """
        if pid not in self._sockets:
            self._sockets[pid] = frozenset(_sockets(self.path(pid, "fd")))
        return self._sockets[pid]

    def owners(self, inodes: Collection[int], pids: Iterable[int]) -> dict[int, frozenset[int]]:
        """Socket inode -> those of `pids` that have it open. A socket that none of them has is left out."""
        found: dict[int, set[int]] = {}
        for pid in pids:
            for inode in self.sockets(pid).intersection(inodes):
                found.setdefault(inode, set()).add(pid)
        return {inode: frozenset(owners) for inode, owners in found.items()}

    def still_there(self, pid: int) -> bool:
        """True if the pid is that of the same process still."""
        process = _process(_read(self.path(pid, "stat"), _STAT_BYTES), pid)
        return process is not None and pid in self._table and process.started == self._table[pid].started


def start_time(pid: int) -> int | None:
    """When it started, in clock ticks since boot; None if there is no such process."""
    process = _process(_read(f"{PROC}/{pid}/stat", _STAT_BYTES), pid)
    return None if process is None else process.started


def parse_cgroups(text: str) -> tuple[str, ...]:
    """The paths in /proc/PID/cgroup, whose lines are NUMBER:CONTROLLERS:PATH: cgroups(7)."""
    return tuple(dict.fromkeys(path for _, path in sorted(_ways(text), key=lambda each: each[0])))


def _ways(text: str) -> list[tuple[int, str]]:
    """(which hierarchy, path), in the order of the lines."""
    ranked: list[tuple[int, str]] = []
    for line in text.split("\n"):
        number, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon and path.startswith("/"):
            rank = _VERSION_2 if number == "0" else _SYSTEMD if controllers == "name=systemd" else _OTHER
            ranked.append((rank, path.removesuffix(_DELETED)))
    return ranked


def _read(path: str, size: int, directory: int | None = None) -> str:
    """The beginning of a file of /proc, "" if it cannot be had."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return ""
    try:
        return os.read(file, size).decode("utf-8", "replace")
    except OSError:  # it ended between the two calls: ESRCH
        return ""
    finally:
        os.close(file)


def _process(stat: str, pid: int) -> Process | None:
    """None for one that is gone, and for a thread of the kernel."""
    head, _, tail = stat.rpartition(")")  # the name may hold blanks and brackets: the fields start after the last one
    fields = tail.split()
    try:
        if fields[0] in _GONE or int(fields[6]) & _KERNEL_THREAD:
            return None
        return Process(pid, int(fields[1]), int(fields[2]), head.partition("(")[2], int(fields[19]))
    except (IndexError, ValueError):
        return None


def _words(cmdline: str) -> tuple[str, ...]:
    """A process that has renamed itself may have left its title in one piece, with a tail of zeros."""
    trimmed = cmdline.rstrip("\0")
    return tuple(trimmed.split("\0")) if trimmed else ()


def _sockets(folder: str) -> Iterable[int]:
    with contextlib.suppress(OSError):
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in os.listdir(directory):  # noqa: PTH208 - an open directory
                with contextlib.suppress(OSError, ValueError):  # ValueError: no socket's name after all
                    target = os.readlink(name, dir_fd=directory)
                    if target.startswith(_SOCKET):
                        yield int(target[len(_SOCKET) : -1])
        finally:
            os.close(directory)
