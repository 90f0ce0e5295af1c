"""Scopes: which network namespaces "a container", "a unit", "a process" stand for, now.

Nobody is asked: no container engine, no systemd. A container or a unit is where its processes are, and they are in
cgroups that are named for it.

An unprivileged user may make any cgroup below its own. So what is below a user's manager (user@UID.service) gives way
to a container or unit of the system that is called the same, and a user's own files name only that user's containers.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from memscaler.core.errors import MemscalerError
from memscaler.core.watch import HOST, Scope
from memscaler.kernel.containers import HERE, NAME, SHORT_ID, Container, System, container_of, name_of
from memscaler.kernel.processes import Processes

OWN_NETNS = "/proc/self/ns/net"
SHORTEST_ID = 4

_NS_GET_NSTYPE = 0xB703  # include/uapi/linux/nsfs.h
_CLONE_NEWNET = 0x40000000

_UNIT = re.compile(r"[A-Za-z0-9_\\@-][A-Za-z0-9:_.\\@-]{0,254}")
_TYPES = (".service", ".scope", ".slice")
_USERS_MANAGER = re.compile(r"user@\d+\.service")


class State(StrEnum):
    """Why a scope is not resolved. ABSENT is normal: it may appear. The others want a person."""

    ABSENT = "absent"
    DENIED = "denied"
    MALFORMED = "malformed"
    AMBIGUOUS = "ambiguous"


class Unresolved(MemscalerError):
    """A scope that stands for no network namespace now; the message says why."""

    def __init__(self, state: State, message: str) -> None:
        super().__init__(message)
        self.state = state


@dataclass(frozen=True, slots=True)
class Place:
    """A network namespace that a scope stands for.

    path: opens it; may be that of a process, so compare the inode of what was opened. name: for logs and labels.
    pids: the processes of the scope that are in it; none: whoever is in it counts.
    """

    path: str
    inode: int
    name: str
    pids: frozenset[int] = frozenset()


def resolve(scope: Scope, processes: Processes, system: System = HERE) -> tuple[Place, ...]:
    """The namespaces of a scope, that of its first process first. Raise Unresolved."""
    match scope.kind:
        case "":
            return (Place(OWN_NETNS, own_netns(), str(scope)),)
        case "netns":
            return (_netns(scope, system),)
        case "pid":
            return (_pid(scope, processes),)
        case "unit":
            return _places(scope, processes, _in_unit(scope.name, processes))
        case "container":
            return _places(scope, processes, _in_container(scope.name, processes, system))
        case _:
            raise Unresolved(State.MALFORMED, f"{scope} is of no kind that there is")


def own_netns() -> int:
    """The inode of the network namespace that this process is in."""
    return Path(OWN_NETNS).stat().st_ino


def path_of(pid: int, inode: int, processes: Processes) -> str:
    """What opens the network namespace of this process. Ours has a path that does not end with any other process."""
    return OWN_NETNS if inode == own_netns() else processes.path(pid, "ns", "net")


def whereabouts(pid: int, processes: Processes, system: System = HERE) -> Scope:
    """What an operator would call the place of this process."""
    inode = processes.netns(pid)
    if inode == own_netns():
        return HOST
    found = next(filter(None, map(container_of, processes.cgroups(pid))), None)
    if found is not None:
        return Scope("container", name_of(found, system) or found.key[:SHORT_ID])
    for path in _named(system):
        with contextlib.suppress(OSError):
            if path.stat().st_ino == inode and NAME.fullmatch(path.name):
                return Scope("netns", str(path))
    unit = next((part for part in reversed(processes.cgroup(pid).split("/")) if part.endswith(".service")), "")
    if _UNIT.fullmatch(unit) and not _USERS_MANAGER.fullmatch(unit):
        return Scope("unit", unit)
    return Scope("pid", str(pid))


# ---- network namespaces and processes -------------------------------------------------------------------------------


def _named(system: System) -> Iterator[Path]:
    """Namespaces with a name: those of `ip netns`, and Docker's."""
    for folder in ("/run/netns", "/run/docker/netns", "/var/run/docker/netns"):
        with contextlib.suppress(OSError):
            yield from sorted(system.at(folder).iterdir())


def _netns(scope: Scope, system: System) -> Place:
    name = scope.name
    if not name.isprintable() or {"..", "."} & set(name.split("/")) or not name.rsplit("/", 1)[-1]:
        raise Unresolved(State.MALFORMED, f"{name!r} is no name of a network namespace")
    if "/" in name:
        if not name.startswith("/"):
            raise Unresolved(State.MALFORMED, f"{name!r} is no path from / on")
        return Place(name, _opened(name), str(scope))
    path = next((path for path in _named(system) if path.name == name), None)
    if path is None:
        raise Unresolved(State.ABSENT, f"there is no network namespace called {name}")
    return Place(str(path), _opened(str(path)), str(scope))


def _opened(path: str) -> int:
    """The inode of a network namespace."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESRCH):
            raise Unresolved(State.ABSENT, f"there is no network namespace at {path}") from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise Unresolved(State.DENIED, f"{path} may not be looked at: run as root") from error
        raise Unresolved(State.MALFORMED, f"{path} is no network namespace ({error.strerror})") from error
    try:
        kind = fcntl.ioctl(file, _NS_GET_NSTYPE)
    except OSError:
        # `ip netns add` makes the file first; it is a namespace when that is mounted on it
        empty = stat.S_ISREG(os.fstat(file).st_mode) and os.fstat(file).st_size == 0
        raise Unresolved(State.ABSENT if empty else State.MALFORMED, f"{path} is no network namespace") from None
    else:
        if kind != _CLONE_NEWNET:
            raise Unresolved(State.MALFORMED, f"{path} is a namespace of another kind")
        return os.fstat(file).st_ino
    finally:
        os.close(file)


def _pid(scope: Scope, processes: Processes) -> Place:
    if not re.fullmatch("[1-9][0-9]{0,9}", scope.name):
        raise Unresolved(State.MALFORMED, f"{scope.name!r} is no process id")
    pid = int(scope.name)
    if pid not in processes:
        raise Unresolved(State.ABSENT, f"there is no process {pid}")
    inode = _opened(processes.path(pid, "ns", "net"))
    pids = frozenset({pid}) | processes.descendants([pid])
    return Place(path_of(pid, inode, processes), inode, str(scope), pids)


# ---- cgroups --------------------------------------------------------------------------------------------------------


def _places(scope: Scope, processes: Processes, pids: Collection[int]) -> tuple[Place, ...]:
    """The namespaces of these processes: that of the one which the others come from first."""
    by_inode: dict[int, list[int]] = {}
    for pid in sorted(pids, key=lambda pid: (processes.parent(pid) in pids, pid)):
        inode = processes.netns(pid)
        if inode is not None:
            by_inode.setdefault(inode, []).append(pid)
    if not by_inode:
        denied = any(Path(processes.path(pid)).exists() for pid in pids)
        state = State.DENIED if denied else State.ABSENT
        raise Unresolved(state, f"{scope} {'may not be looked at: run as root' if denied else 'has just ended'}")
    return tuple(
        Place(path_of(group[0], inode, processes), inode, str(scope), frozenset(group))
        for inode, group in by_inode.items()
    )


def _in_unit(name: str, processes: Processes) -> frozenset[int]:
    full = name if name.endswith(_TYPES) else name + ".service"
    if not _UNIT.fullmatch(full):
        raise Unresolved(State.MALFORMED, f"{name!r} is no name of a systemd unit")
    # "_" goes before a unit that is called like a file of the kernel's: cg_escape() in systemd's cgroup-util.c
    wanted = {full, "_" + full}
    found: dict[str, set[int]] = {}
    for pid in processes.pids:
        parts = processes.cgroup(pid).split("/")
        depth = next((at for at, part in enumerate(parts) if part in wanted), None)
        if depth is not None:
            found.setdefault("/".join(parts[: depth + 1]), set()).add(pid)
    paths = _of_the_best(found)
    if not paths:
        raise Unresolved(State.ABSENT, f"unit {full} is not running")
    if len(paths) > 1:
        raise Unresolved(State.AMBIGUOUS, f"unit {full} runs more than once: {', '.join(sorted(paths))}")
    return frozenset(found[paths[0]])


def _of_the_best(paths: Iterable[str]) -> list[str]:
    """Those of the system's manager; else those of a user's; else those of a manager inside of a container."""
    ranked: dict[int, list[str]] = {}
    for path in paths:
        above = path.split("/")[1:-1]
        ranked.setdefault(0 if all(part.endswith(".slice") for part in above) else 1 + _nested(above), []).append(path)
    return ranked[min(ranked)] if ranked else []


def _nested(parts: Iterable[str]) -> bool:
    return not any(_USERS_MANAGER.fullmatch(part) for part in parts)


def _in_container(name: str, processes: Processes, system: System) -> frozenset[int]:
    if not NAME.fullmatch(name):
        raise Unresolved(State.MALFORMED, f"{name!r} is no name or id of a container")
    running: dict[Container, set[int]] = {}
    for pid in processes.pids:
        for path in processes.cgroups(pid):
            container = container_of(path)
            if container is not None:
                running.setdefault(container, set()).add(pid)
                break
    named = {each: name_of(each, system) for each in running}
    means: tuple[Callable[[Container], bool], ...] = (
        lambda each: each.key == name,
        lambda each: named[each] == name,
        lambda each: each.has_id and len(name) >= SHORTEST_ID and each.key.startswith(name),
    )
    for matches in means:
        found = [each for each in running if matches(each)]
        found = [each for each in found if each.uid is None] or found
        if len({each.key for each in found}) > 1:
            listed = ", ".join(sorted(_spoken(each, named) for each in found))
            raise Unresolved(State.AMBIGUOUS, f"{name!r} means several containers: {listed}")
        if found:
            return frozenset(pid for each in found for pid in running[each])
    listed = ", ".join(sorted({_spoken(each, named) for each in running})[:10])
    raise Unresolved(State.ABSENT, f"no container {name} is running" + f" (running: {listed})" * bool(listed))


def _spoken(container: Container, named: Mapping[Container, str]) -> str:
    name = named.get(container, "")
    short = container.key[:SHORT_ID] if container.has_id else container.key
    return f"{name} ({short})" if name and name != container.key else short
