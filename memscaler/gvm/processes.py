"""Processes as rules mean them: what one is called and where it belongs, who is meant, and who never is.

A process is known by its pid and when it started, so that a later one with the same pid is never taken for it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

from memscaler.config.gpuctl import Match
from memscaler.gvm import kin
from memscaler.kernel import scopes
from memscaler.kernel.containers import HERE, SHORT_ID, System, container_of, name_of
from memscaler.kernel.processes import PROC, Processes, parse_cgroups

_PACKAGE = Path(__file__).resolve().parents[1]
_ENGINE = _PACKAGE / "servers" / "engine.py"  # llama.cpp: a server as any other
_OURS = ("python", "memscaler")  # how our programs are called; reading the arguments of all would take its time
TYPES = (*kin.UNITS, ".slice")
# Of the driver: the one serves the contexts of all its clients, the other keeps the driver loaded.
_DRIVERS = {"nvidia-cuda-mps": "MPS, which all its clients work through", "nvidia-persiste": "belongs to the driver"}
_STAT_BYTES = 4096
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


def parent_of(pid: int, proc: Path = PROC) -> int:
    """Its parent; 0 if that is not to be seen from here, or the process is gone. One small read."""
    with contextlib.suppress(IndexError, ValueError):
        return int(_stat(pid, proc)[1])
    return 0


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
                if part.endswith(TYPES)
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
            return any(_is_below(path, match.text) for path in processes.places(pid))
        case "server":
            return pid in family


def _is_below(path: str, pattern: str) -> bool:
    """Who is in the root is in "/", and not below it as "/*" says."""
    return fnmatchcase(path, pattern) and (path != "/" or pattern == "/" or not pattern.startswith("/"))


def unit_pattern(text: str) -> str:
    """As systemctl has it: "batch" is batch.service."""
    return text if text.endswith((*TYPES, "*")) else f"{text}.service"


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

    listeners: of all watched ports. What they have started serves too, and so does who belongs to them (kin.py): an
    engine may be a server's parent or sibling. ours: memscaler's processes that are known,
    beside those that can be told by their command line. A rule for "server" takes its own servers out of this.
    """
    found = {1: "it is the first process of this machine"}
    homes = {home for pid in listeners if (home := kin.home(pid, processes))}
    started, launched = processes.descendants(listeners), kin.launched_with(listeners, processes)
    for pid in processes.pids:
        if pid in ours or _is_ours(pid, processes):
            found[pid] = "it is memscaler itself"
        elif pid in listeners:
            found[pid] = "it serves a watched port"
        elif pid in started:
            found[pid] = "a server of a watched port has started it"
        elif pid in launched:
            found[pid] = launched[pid]
        elif homes and (home := kin.home(pid, processes)) in homes:
            found[pid] = f"it is in {kin.spoken(home)}, as a server of a watched port is"
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
    parts = [part for part in processes.cgroup(pid).split("/") if part.endswith(kin.UNITS) and not container_of(part)]
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
