"""Descriptions of what is set on the applications of GPUs: [[gpuctl]] tables, and [gvm]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from memscaler.core.gpuctl import Knob

When = Literal["busy", "quiet"]
How = Literal["auto", "gvm", "cgroup", "signal"]
Kind = Literal["unit", "name", "exe", "user", "container", "cgroup", "server"]


@dataclass(frozen=True, slots=True)
class Match:
    """Which processes.

    text: of a unit ("batch.service", "*.scope"), a command's name, a path, a user's name or number, a container's name
    or id, a cgroup's path, with shell wildcards; "" of a server: the listeners of the watch itself.
    """

    kind: Kind
    text: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.text}" if self.text else self.kind


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuctlRule:
    """What is set on which processes, and when; checked.

    when: "busy": while a watch has a live connection, or had one less than release_after_s ago; "quiet": while all GPUs
    of a watch are parked. watches: ports as text ("8080") or names of described servers; (): all. processes: those of
    them that are on a GPU of the watch. memory_limit_bytes, compute_priority: None leaves it alone; they need GVM.
    cpu_nice: -20..19; cpu_weight: 1..10000. how: by what to freeze; "auto": GVM, else the cgroup if all processes in it
    are matched, else SIGSTOP. at_most_s: so long at a time, 0 has no end; then it lets go until the watch was quiet.
    look_every_s: how often to look for new processes while the rule is in force.
    """

    name: str
    when: When = "busy"
    watches: tuple[str, ...] = ()
    processes: tuple[Match, ...] = ()
    freeze: bool = False
    memory_limit_bytes: int | None = None
    compute_priority: int | None = None
    cpu_nice: int | None = None
    cpu_weight: int | None = None
    how: How = "auto"
    release_after_s: float = 5.0
    at_most_s: float = 0.0
    look_every_s: float = 2.0
    origin: str = field(default="", compare=False)

    def values(self) -> dict[Knob, int]:
        """What it sets, by knob."""
        given = {
            Knob.COMPUTE_FREEZE: 1 if self.freeze else None,
            Knob.MEMORY_LIMIT: self.memory_limit_bytes,
            Knob.COMPUTE_PRIORITY: self.compute_priority,
            Knob.CPU_NICE: self.cpu_nice,
            Knob.CPU_WEIGHT: self.cpu_weight,
        }
        return {knob: value for knob, value in given.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gvm:
    """Where GVM's driver is.

    root: of debugfs. proc: where /proc is. gpu_map: UUIDs by number of its directory, for GPUs that the driver's own
    table does not name.
    """

    root: Path = Path("/sys/kernel/debug")
    proc: Path = Path("/proc")
    gpu_map: Mapping[int, str] = field(default_factory=dict)
