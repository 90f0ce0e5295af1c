"""Processes as rules and people mean them: what one is called and where it belongs, and which ones a name stands for.

A process is known by its pid and when it started, so that a later one with the same pid is never taken for it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

from memscaler.config.gpuctl import Match
from memscaler.core.errors import UsageError
from memscaler.core.watch import Scope
from memscaler.kernel import scopes
from memscaler.kernel.containers import HERE, SHORT_ID, System, container_of, name_of
from memscaler.kernel.processes import PROC, Processes, parse_cgroups
from memscaler.kernel.sock_diag import SockDiag

_PACKAGE = Path(__file__).resolve().parents[1]
_ENGINE = _PACKAGE / "servers" / "engine.py"  # llama.cpp: a server as any other
_OURS = ("python", "memscaler")  # how our programs are called; reading the arguments of all would take its time
_UNITS = (".service", ".scope")
_TYPES = (*_UNITS, ".slice")
_WILD = frozenset("*?[")
# Of the driver: the one serves the contexts of all its clients, the other keeps the driver loaded.
_DRIVERS = {"nvidia-cuda-mps": "MPS, which all its clients work through", "nvidia-persiste": "belongs to the driver"}
_STAT_BYTES = 4096
_MOST_DIGITS = 10
_SYSTEM_UNIT = re.compile(r"/system\.slice/memscaler[^/]*\.service(?:/.*)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Subject:
    """One process. started: clock ticks since boot. unit, container: "" if it is in none.

    cgroup: its path in version 2, "" if there is none.
    """

    pid: int
    started: int
    name: str = ""
    unit: str = ""
    container: str = ""
    user: str = ""
    cgroup: str = ""


def about(pid: int, processes: Processes, system: System = HERE) -> Subject | None:
    """None if it is not there (any more)."""
    started = started_at(pid, Path(processes.path(pid)).parent)
    if pid not in processes or started is None:
        return None
    return Subject(
        pid,
        started,
        name=processes.comm(pid),
        unit=_unit(pid, processes),
        container=_container(pid, processes, system),
        user=_user(_uid(pid, processes)),
        cgroup=cgroup_of(pid, Path(processes.path(pid)).parent),
    )


def started_at(pid: int, proc: Path = PROC) -> int | None:
    """When it started, clock ticks since boot; None if it is gone. One small read: quick enough for any path."""
    fields = _stat(pid, proc)
    with contextlib.suppress(IndexError, ValueError):
        # A process whose first thread has ended looks like a zombie, and lives as long as another one does.
        if fields[0] not in "ZX" or len(threads_of(pid, proc)) > 1:
            return int(fields[19])
    return None


def is_alive(pid: int, started: int, proc: Path = PROC) -> bool:
    """True if that process is there still, and no zombie."""
    return started_at(pid, proc) == started


def process_of(tid: int, proc: Path = PROC) -> int | None:
    """The process that this thread belongs to (itself, if it is the first); None if there is no such thread (A3)."""
    try:
        status = (proc / str(tid) / "status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    word = status.partition("\nTgid:")[2].partition("\n")[0].strip()
    return int(word) if word.isdecimal() else None


def threads_of(pid: int, proc: Path = PROC) -> tuple[int, ...]:
    """Its threads, () if it is gone (A3)."""
    try:
        return tuple(sorted(int(name) for name in os.listdir(proc / str(pid) / "task")))  # noqa: PTH208 - names only
    except (OSError, ValueError):
        return ()


def cgroup_of(pid: int, proc: Path = PROC) -> str:
    """Its path in cgroup version 2; "" if it is not there, or not below our root."""
    try:
        text = (proc / str(pid) / "cgroup").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
    path = next((line[3:] for line in text.split("\n") if line.startswith("0::/")), "")
    return "" if path.endswith(" (deleted)") or path == "/.." or path.startswith("/../") else path


# ---- which ones a rule means ----------------------------------------------------------------------------------------


def matching(
    matches: Iterable[Match],
    processes: Processes,
    *,
    among: Collection[int] | None = None,
    servers: Collection[int] = (),
    system: System = HERE,
) -> dict[int, Match]:
    """Pid -> the first of `matches` that it fits. among: look at these only; None: at all.

    servers: the listeners of the rule's watches, which with their descendants are what "server" means.
    """
    known = tuple(matches)
    family = frozenset(servers) | processes.descendants(servers)
    found = {}
    for pid in sorted(processes.pids if among is None else set(among) & set(processes.pids)):
        fits = next((each for each in known if _fits(each, pid, processes, family, system)), None)
        if fits is not None:
            found[pid] = fits
    return found


def _fits(match: Match, pid: int, processes: Processes, family: Collection[int], system: System) -> bool:  # noqa: PLR0911  # one line for each kind
    match match.kind:
        case "unit":
            wanted = unit_pattern(match.text)
            return any(
                fnmatchcase(part.removeprefix("_"), wanted)
                for part in processes.cgroup(pid).split("/")
                if part.endswith(_TYPES)
            )
        case "name":
            called = Path((processes.argv(pid) or ("",))[0]).name
            return any(name and fnmatchcase(name, match.text) for name in (processes.comm(pid), called))
        case "exe":
            return fnmatchcase(processes.exe(pid), match.text)
        case "user":
            uid = _uid(pid, processes)
            return uid is not None and (match.text == str(uid) or fnmatchcase(_user(uid), match.text))
        case "container":
            return _fits_container(match.text, pid, processes, system)
        case "cgroup":
            # Of one hierarchy: a process is in the roots of most others, wherever it belongs.
            return fnmatchcase(processes.cgroup(pid), match.text)
        case "server":
            return pid in family


def unit_pattern(text: str) -> str:
    """As systemctl has it: "batch" is batch.service."""
    return text if text.endswith((*_TYPES, "*")) else f"{text}.service"


def _fits_container(text: str, pid: int, processes: Processes, system: System) -> bool:
    for path in processes.cgroups(pid):
        if container := container_of(path):
            is_id = container.has_id and len(text) >= scopes.SHORTEST_ID and container.key.startswith(text)
            return is_id or fnmatchcase(container.key, text) or fnmatchcase(name_of(container, system) or " ", text)
    return False


# ---- which ones are left alone --------------------------------------------------------------------------------------


def untouchable(
    processes: Processes, *, listeners: Collection[int] = (), ours: Collection[int] = ()
) -> Mapping[int, str]:
    """Pid -> why nothing is ever set on it, a few words: "memscaler itself", "serves a watched port".

    listeners: of all watched ports. What they have started serves too, and so does all that is in the same systemd
    service or container: an engine may be a server's parent or sibling. ours: memscaler's processes that are known,
    beside those that can be told by their command line. A rule for "server" takes its own servers out of this.
    """
    found = {1: "it is the first process of this machine"}
    homes = {home for pid in listeners if (home := _home(pid, processes))}
    started = processes.descendants(listeners)
    for pid in processes.pids:
        if pid in ours or _is_ours(pid, processes):
            found[pid] = "it is memscaler itself"
        elif pid in listeners:
            found[pid] = "it serves a watched port"
        elif pid in started:
            found[pid] = "a server of a watched port has started it"
        elif homes and (home := _home(pid, processes)) in homes:
            found[pid] = f"it is in {_spoken(home)}, as a server of a watched port is"
        elif (why := _DRIVERS.get(processes.comm(pid))) and _is_driver_s(pid, processes):
            found[pid] = f"it is {why}" if why.startswith("MPS") else f"it {why}"
    return found


def is_memscaler(argv: tuple[str, ...]) -> bool:
    """By its command line: the program, the module, or a program of this installation's."""
    if not argv:
        return False
    if Path(argv[0]).name == "memscaler":
        return True
    for at, word in enumerate(argv[1:6], 1):
        if word == "-m":
            return argv[at + 1 : at + 2] != () and argv[at + 1].partition(".")[0] == "memscaler"
        if not word.startswith("-"):
            path = Path(word)
            ours = path.suffix == ".py" and _PACKAGE in path.parents and path != _ENGINE
            return ours or path.name == "memscaler"
    return False


def _is_ours(pid: int, processes: Processes) -> bool:
    """Whether it calls itself memscaler, and may be believed.

    Anybody may write that into his command line. It counts from root's processes and our own user's, outside of
    containers other than ours, and from units of the system that are called so.
    """
    if not processes.comm(pid).startswith(_OURS) or not is_memscaler(processes.argv(pid)):
        return False
    if _SYSTEM_UNIT.fullmatch(processes.cgroup(pid)):
        return True
    theirs = {container_of(path) for path in processes.cgroups(pid)} - {None}
    return _uid(pid, processes) in (0, os.geteuid()) and theirs <= _our_containers()


def _is_driver_s(pid: int, processes: Processes) -> bool:
    """Whether what is called as a program of the driver's is one: root's file has that name, not the process alone."""
    try:
        owner = os.stat(processes.path(pid, "exe")).st_uid  # noqa: PTH116 - as the other looks at /proc
    except OSError:  # gone, or not ours to look at
        return _uid(pid, processes) == 0
    return owner == 0 and Path(processes.exe(pid)).name.startswith(processes.comm(pid))


@lru_cache(maxsize=1)
def _our_containers() -> frozenset[object]:
    try:
        text = (PROC / "self/cgroup").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    return frozenset(container_of(path) for path in parse_cgroups(text))


def _home(pid: int, processes: Processes) -> str:
    """Its container's or service's cgroup, by path: anybody may give the name to his own. "" for a session's."""
    for path in processes.cgroups(pid):
        if container := container_of(path):
            return next(above for above in _above(path) if container_of(above) == container)
    units = [above for above in _above(processes.cgroup(pid)) if above.endswith(_UNITS)]
    return units[-1] if units and units[-1].endswith(".service") else ""


def _above(path: str) -> list[str]:
    """The path's own beginnings, the shortest first."""
    return list(itertools.accumulate(path.split("/"), lambda before, part: f"{before}/{part}"))


def _spoken(home: str) -> str:
    if container := container_of(home):
        return f"container {container.key[:SHORT_ID] if container.has_id else container.key}"
    return home.rpartition("/")[2]


# ---- which ones a person means --------------------------------------------------------------------------------------


def resolve(text: str, processes: Processes, *, system: System = HERE) -> frozenset[int]:
    """The processes that PID, UNIT, container or PORT means.

    "4242", "8080", "batch.service", "pid:8080", "port:8080", "unit:...", "container:...", "cgroup:/...". A thread's
    number means its process, a port who listens there and what he has started. Raise UsageError or Unresolved if there
    is none, or both.
    """
    kind, colon, name = text.partition(":")
    if not colon:
        kind, name = "", text
    match kind if name.isprintable() else "what no terminal shows":
        case "pid" | "port" | "" if name.isascii() and name.isdecimal() and len(name) <= _MOST_DIGITS:
            return _numbered(kind, int(name), processes)
        case "unit" | "container" if name:
            return _scope(kind, name, processes, system)
        case "cgroup" if name.startswith(("/", "*")):
            return _matched(Match("cgroup", name), processes, system)
        case "" if name.endswith(_TYPES):
            return _scope("unit", name, processes, system)
        case "" if name:
            return _unit_or_container(name, processes, system)
    raise UsageError(f"{text!r} means no process", hint="write a pid, a port, a unit, container:NAME or cgroup:/PATH")


def listeners(ports: Collection[int], processes: Processes) -> dict[int, frozenset[int]]:
    """Port -> processes that listen on it in our network namespace. Nobody: it is not in there. Raise OSError."""
    diag = SockDiag()
    try:
        inodes = {port: {row.inode for row in diag.listeners(port)} - {0} for port in ports}
    finally:
        diag.close()
    wanted = {inode for each in inodes.values() for inode in each}
    owners = processes.owners(wanted, processes.pids) if wanted else {}
    found = {port: frozenset(pid for inode in each for pid in owners.get(inode, ())) for port, each in inodes.items()}
    return {port: pids for port, pids in found.items() if pids}


def _numbered(kind: str, number: int, processes: Processes) -> frozenset[int]:
    pid = process_of(number, Path(processes.path(number)).parent) if kind != "port" else None
    pid = pid if pid is not None and pid in processes else None
    serving = listeners([number], processes).get(number, frozenset()) if kind != "pid" and 0 < number < 1 << 16 else ()
    if pid is not None and serving:
        raise UsageError(f"{number} is a process and a port", hint=f"write pid:{number} or port:{number}")
    if pid is not None:
        return frozenset({pid})
    if serving:
        return frozenset(serving) | processes.descendants(serving)
    what = {"pid": "there is no process", "port": "nobody that can be seen listens on port"}
    raise UsageError(f"{what.get(kind, 'there is no process or port')} {number}")


def _scope(kind: str, name: str, processes: Processes, system: System) -> frozenset[int]:
    if _WILD & set(name):
        return _matched(Match("unit" if kind == "unit" else "container", name), processes, system)
    places = scopes.resolve(Scope(kind, name), processes, system)
    return frozenset(pid for place in places for pid in place.pids)


def _matched(match: Match, processes: Processes, system: System) -> frozenset[int]:
    if found := matching([match], processes, system=system):
        return frozenset(found)
    raise UsageError(f"no process is in {match.kind} {match.text}")


def _unit_or_container(name: str, processes: Processes, system: System) -> frozenset[int]:
    for kind in ("unit", "container"):
        try:
            return _scope(kind, name, processes, system)
        except (scopes.Unresolved, UsageError) as error:
            if getattr(error, "state", None) is scopes.State.AMBIGUOUS:
                raise
    raise UsageError(f"there is no unit {unit_pattern(name)} and no container {name} with a process")


# ---- one process ----------------------------------------------------------------------------------------------------


def _stat(pid: int, proc: Path) -> list[str]:
    """The fields from the state on, proc(5); [] if it is gone."""
    try:
        fd = os.open(f"{proc}/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        return os.read(fd, _STAT_BYTES).decode("ascii", "replace").rpartition(")")[2].split()
    except OSError:
        return []
    finally:
        os.close(fd)


def _unit(pid: int, processes: Processes) -> str:
    """The innermost service or scope, unless that is a container's."""
    parts = [part for part in processes.cgroup(pid).split("/") if part.endswith(_UNITS) and not container_of(part)]
    return parts[-1] if parts else ""


def _container(pid: int, processes: Processes, system: System) -> str:
    for path in processes.cgroups(pid):
        if container := container_of(path):
            short = container.key[:SHORT_ID] if container.has_id else container.key
            return name_of(container, system) or short
    return ""


def _uid(pid: int, processes: Processes) -> int | None:
    try:
        return os.stat(processes.path(pid)).st_uid  # noqa: PTH116 - thousands of them
    except OSError:
        return None


@lru_cache(maxsize=256)
def _user(uid: int | None) -> str:
    if uid is None:
        return ""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
