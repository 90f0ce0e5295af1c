"""What is set on the applications of GPUs while somebody is connected, and what the process that does it says.

That process is the arbiter, a child of the governor. The governor believes nothing in its reports, it only shows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Knob(StrEnum):
    """What can be set on a process. The first three are GVM's files, the others the kernel's."""

    MEMORY_LIMIT = "memory.limit"  # bytes of managed device memory; NO_LIMIT: none
    COMPUTE_PRIORITY = "compute.priority"  # 0..15, lower is higher
    COMPUTE_FREEZE = "compute.freeze"  # 1: its work stays off the GPU, or (without GVM) the process stands still
    CPU_NICE = "cpu.nice"  # -20..19 of all its threads, lower is higher: setpriority(2)
    CPU_WEIGHT = "cpu.weight"  # 1..10000 of its cgroup, higher is higher: cgroup v2


class Means(StrEnum):
    """By what a knob is turned."""

    GVM = "gvm"  # GVM's driver
    CGROUP = "cgroup"  # cgroup v2: cgroup.freeze, cpu.weight
    SIGNAL = "signal"  # SIGSTOP, SIGCONT
    NICE = "nice"  # setpriority(2)


NO_LIMIT = 2**64 - 1  # what GVM prints for "none", and what takes a limit away


@dataclass(frozen=True, slots=True)
class Ability:
    """What can be had here of one thing about a process: a row of the capability table.

    what: a knob ("memory.limit") or a reading ("memory.current", "memory.swap.current", "kernels", "processes").
    means: by what it is set, the best first; () if it cannot be set. source: who tells it: "GVM", "NVML", "the kernel",
    "" if nobody. why_not: why it cannot be set (of a reading: told), a sentence. note: what to know where it can.
    lacks: the part of why_not that says what is wrong with GVM here: the same of all rows, so who shows several says it
    once.
    """

    what: str
    means: tuple[Means, ...] = ()
    source: str = ""
    why_not: str = ""
    note: str = ""
    lacks: str = ""


@dataclass(frozen=True, slots=True)
class GvmReading:
    """One process on one GPU, as GVM tells. None: it does not tell that.

    pid: of its process (thread group); tid: how GVM calls it. number: of the GPU's directory; uuid: "" if nobody knows.
    memory_limit_bytes: NO_LIMIT is none. Kernels are CUDA's, counted by GVM's layer in the process; all None or 0
    without it.
    """

    pid: int
    tid: int
    number: int
    uuid: str = ""
    name: str = ""
    memory_current_bytes: int | None = None
    memory_limit_bytes: int | None = None
    swap_bytes: int | None = None
    compute_priority: int | None = None
    compute_freeze: int | None = None
    kernels_submitted: int | None = None
    kernels_ended: int | None = None
    kernels_pending: int | None = None


@dataclass(frozen=True, slots=True)
class Controlled:
    """One knob of one process that a rule has turned, or wants turned. Times are seconds of the wall clock.

    unit, container: "" if it is in none. uuid: the GPU, "" for what is not per GPU. value, was: of the knob; was None:
    nobody knows. problem: why it is not as wanted, a sentence.
    """

    rule: str
    pid: int
    name: str
    knob: Knob
    means: Means
    value: int
    was: int | None = None
    uuid: str = ""
    unit: str = ""
    container: str = ""
    since_unix_s: float = 0.0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class RuleState:
    """One [[gpuctl]] rule. when: "busy" or "quiet". holds: it is in force now; since_unix_s: since when, else 0.

    for_: the ports that have put it into force. why_not: what keeps it from doing what it wants, a sentence. waits: and
    that is as it should be, its time will come. applied, released, failed: since the governor started, by process;
    seconds: how long it was in force. first_s: the last times from a client's coming to the last knob turned, seconds.
    """

    name: str
    when: str
    holds: bool = False
    since_unix_s: float = 0.0
    for_: tuple[str, ...] = ()
    why_not: str = ""
    waits: bool = False
    applied: int = 0
    released: int = 0
    failed: int = 0
    seconds: float = 0.0
    first_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class GvmAt:
    """Where GVM's driver is looked for: [gvm] of the configuration, as whoever asks the governor needs it."""

    root: str
    proc_root: str
    gpu_map: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Gpuctl:
    """All that the arbiter tells. pid: its process, None while it does not run. problem: of itself, a sentence.

    gvm: GVM's driver is there; gvm_why_not: else why not. first: UUIDs of GPUs for which something is to be done before
    their clocks are touched. readings: as of read_unix_s. gvm_at: the governor's word, not the arbiter's.
    """

    pid: int | None = None
    problem: str = ""
    gvm: bool = False
    gvm_why_not: str = ""
    rules: tuple[RuleState, ...] = ()
    controlled: tuple[Controlled, ...] = ()
    first: tuple[str, ...] = ()
    readings: tuple[GvmReading, ...] = ()
    read_unix_s: float = 0.0
    notes: Mapping[str, str] = field(default_factory=dict)
    gvm_at: GvmAt | None = None
