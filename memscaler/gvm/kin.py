"""Who belongs to a server beside what it has started: by its service or container, and by who has started it.

A launcher may listen in one child and compute in another (vLLM with several API servers, a Python program with
workers). Outside of services and containers nothing but the process group tells such a child from a job that somebody
has started beside the server: a terminal gives each command line a group of its own, so do supervisors and Jupyter to
each of theirs, and children of a launcher stay in its group unless they are given another one.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from pathlib import Path

from memscaler.kernel.containers import SHORT_ID, container_of
from memscaler.kernel.processes import Processes

UNITS = (".service", ".scope")
LAUNCHED = "it has started a server of a watched port"
WITH_IT = "it belongs to a server of a watched port: one program has started both"
# Whoever writes a script, or types, may start a server and a job by it; told by the executable.
_SHELLS = frozenset(
    {"ash", "bash", "busybox", "csh", "dash", "fish", "ksh", "mksh", "nu", "sh", "tcsh", "xonsh", "zsh"}
)


def launched_with(listeners: Collection[int], processes: Processes) -> Mapping[int, str]:
    """Pid -> why: their launchers, and what these have started in the same process group, with all below that."""
    found: dict[int, str] = {}
    for listener in listeners:
        group = processes.group(listener)
        above = _launchers(listener, group, processes) if group else ()
        if not above or above[0] in found:
            continue
        found |= dict.fromkeys(above, LAUNCHED)
        others = processes.descendants(above) - {listener}
        mates = {pid for pid in others if processes.group(pid) == group} - found.keys()
        found |= dict.fromkeys(mates | processes.descendants(mates), WITH_IT)
    return found


def _launchers(pid: int, group: int, processes: Processes) -> tuple[int, ...]:
    """Its parent, that one's parent and so on, the nearest first, as long as they are of one group and no shell."""
    above: list[int] = []
    parent = processes.parent(pid)
    while parent > 1 and parent in processes and parent not in above and processes.group(parent) == group:
        if Path(processes.exe(parent)).name in _SHELLS:
            break
        above.append(parent)
        parent = processes.parent(parent)
    return tuple(above)


# ---- by service or container -----------------------------------------------------------------------------------------


def home(pid: int, processes: Processes) -> str:
    """Its container's or service's cgroup, by path: anybody may give the name to his own. "" for a session's."""
    for path in processes.cgroups(pid):
        if container := container_of(path):
            return next(above for above in _above(path) if container_of(above) == container)
    units = [above for above in _above(processes.cgroup(pid)) if above.endswith(UNITS)]
    return units[-1] if units and units[-1].endswith(".service") else ""


def _above(path: str) -> list[str]:
    """The path's own beginnings, the shortest first."""
    return list(itertools.accumulate(path.split("/"), lambda before, part: f"{before}/{part}"))


def spoken(home_: str) -> str:
    """For people."""
    if container := container_of(home_):
        return f"container {container.key[:SHORT_ID] if container.has_id else container.key}"
    return home_.rpartition("/")[2]
