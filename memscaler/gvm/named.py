"""Which processes a person means who names a pid, a port, a unit, a container or a cgroup."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from memscaler.config.gpuctl import Match
from memscaler.config.gpuctl_keys import a_cgroup
from memscaler.core.errors import PermissionMissing, UsageError
from memscaler.core.watch import Scope
from memscaler.gvm.processes import TYPES, matching, process_of, unit_pattern
from memscaler.kernel import scopes
from memscaler.kernel.containers import HERE, System
from memscaler.kernel.processes import Processes
from memscaler.kernel.sock_diag import SockDiag

_WILD = frozenset("*?[")
_MOST_DIGITS = 10
_ON_GPUS = "`memscaler gpuctl ls` lists the processes on the GPUs"
_OTHER_NAMESPACE = "it may be in another pid namespace (see docs/gpuctl.md, Rights), or in the kernel"


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
        case "cgroup" if name:
            return _cgroup(name, processes, system)
        case "" if name.endswith(TYPES):
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


def _is_listened_on(port: int) -> bool:
    """Whoever it is: also by one whom we may not look at."""
    diag = SockDiag()
    try:
        return any(row.inode for row in diag.listeners(port))
    finally:
        diag.close()


def _numbered(kind: str, number: int, processes: Processes) -> frozenset[int]:
    pid = process_of(number, Path(processes.path(number)).parent) if kind != "port" else None
    pid = pid if pid is not None and pid in processes else None
    may_be_port = kind != "pid" and 0 < number < 1 << 16
    serving = listeners([number], processes).get(number, frozenset()) if may_be_port else ()
    if pid is not None and serving:
        raise UsageError(f"{number} is a process and a port", hint=f"write pid:{number} or port:{number}")
    if pid is not None:
        return frozenset({pid})
    if serving:
        return frozenset(serving) | processes.descendants(serving)
    if may_be_port and _is_listened_on(number):
        if os.geteuid():
            raise PermissionMissing(f"who listens on port {number} can be seen by root only", hint="run as root")
        raise UsageError(f"who listens on port {number} cannot be seen from here", hint=_OTHER_NAMESPACE)
    what = {"pid": "there is no process", "port": "nobody listens on port"}
    raise UsageError(f"{what.get(kind, 'there is no process or port')} {number}", hint=_ON_GPUS)


def _scope(kind: str, name: str, processes: Processes, system: System) -> frozenset[int]:
    if _WILD & set(name):
        return _matched(Match("unit" if kind == "unit" else "container", name), processes, system)
    places = scopes.resolve(Scope(kind, name), processes, system)
    return frozenset(pid for place in places for pid in place.pids)


def _matched(match: Match, processes: Processes, system: System) -> frozenset[int]:
    if found := matching([match], processes, system=system):
        return frozenset(found)
    raise UsageError(f"no process is in {match.kind} {match.text}")


def _cgroup(text: str, processes: Processes, system: System) -> frozenset[int]:
    try:
        path = a_cgroup(text)
    except ValueError as error:
        raise UsageError(str(error)) from error
    try:
        return _matched(Match("cgroup", path), processes, system)
    except UsageError as error:
        if matching([Match("cgroup", below := f"{path.rstrip('/')}/*")], processes, system=system):
            raise UsageError(str(error), hint=f"there are processes below it: cgroup:{below}") from error
        raise


def _unit_or_container(name: str, processes: Processes, system: System) -> frozenset[int]:
    for kind in ("unit", "container"):
        try:
            return _scope(kind, name, processes, system)
        except (scopes.Unresolved, UsageError) as error:
            if getattr(error, "state", None) is scopes.State.AMBIGUOUS:
                raise
    raise UsageError(f"there is no unit {unit_pattern(name)} and no container {name} with a process")
