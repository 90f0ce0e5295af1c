"""What the daemon knows, at one instant, as frozen data: the only thing that metrics, status and log are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from memscaler.core.gpuctl import Gpuctl
from memscaler.core.servers import Supervised
from memscaler.core.stages import Sleep, Spent, Stage


@dataclass(frozen=True, slots=True)
class Identity:
    """Which GPU this is. index: NVML index; pci_bus_id: "00000000:3B:00.0" as NVML writes it."""

    index: int
    uuid: str
    pci_bus_id: str
    name: str


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One sample of a GPU. None: this card does not tell, or the call failed; never a made-up number."""

    at_ns: int
    power_w: float | None = None
    energy_j: float | None = None
    memory_clock_mhz: int | None = None
    graphics_clock_mhz: int | None = None
    pstate: int | None = None
    utilization_ratio: float | None = None
    temperature_c: int | None = None


@dataclass(frozen=True, slots=True)
class Histogram:
    """Cumulative counts per upper bound in seconds (the last is +Inf), and the sum of all values."""

    buckets: tuple[tuple[float, int], ...]
    sum_s: float


@dataclass(frozen=True, slots=True)
class HoldSnapshot:
    """What keeps a GPU awake. id: of the lease, "" if it is none; left_s: None if no end is known."""

    id: str
    owner: str
    reason: str
    left_s: float | None


@dataclass(frozen=True, slots=True)
class Intent:
    """What memscaler has set on a parked GPU. target: MHz for the levers that lock clocks, else the pstate."""

    lever: str
    target: int


@dataclass(frozen=True, slots=True)
class StageWakes:
    """How long leaving a stage took a server, since the start."""

    port: int
    scope: str
    server: str
    stage: Stage
    wakes: Histogram


@dataclass(frozen=True, slots=True)
class Transition:
    """A GPU changed its state. at_unix_s: seconds since 1970; gpu: its UUID; was, state: public states."""

    at_unix_s: float
    gpu: str
    was: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class Ungoverned:
    """A GPU of this machine that is left alone, and why."""

    identity: Identity
    reason: str


@dataclass(frozen=True, slots=True)
class Released:
    """The driver is let go of, until an operator resumes. owner: who asked; since_unix_s: seconds since 1970."""

    owner: str
    reason: str
    since_unix_s: float


@dataclass(frozen=True, slots=True)
class GpuSnapshot:
    """One GPU now. `state_s` sums the seconds per public state; `energy_source` is "counter" or "integrated".

    remedy: what an operator can do about an `unmanaged` GPU, "" if nothing is known. next_ns: when its state may change
    by itself (CLOCK_MONOTONIC), 0: only if something happens; next: to what, in words ("parked", "trusted again").
    conflict: what another program did to its clocks. intent: None while nothing is set. energy_saved_j: since the
    start; saved_today_j: on this local day, saved_total_j: over restarts. power: the last readings, as
    (CLOCK_MONOTONIC in ns, watts), the latest one last. states: the last ones, as (CLOCK_MONOTONIC in ns, state), too.
    baseline_source: whence baseline_w is, as in core/energy.py; "" without one. idle_after_s: the idle time in force;
    idle_why: the reason of one that was learned, in words. stages: the deeper ones that it was in since the start.
    """

    identity: Identity
    state: str
    since_ns: int
    reason: str
    lever: str
    next_ns: int
    next: str
    state_s: Mapping[str, float]
    state_energy_j: Mapping[str, float]
    transitions: Mapping[str, int]
    energy_j: float | None
    energy_source: str
    energy_saved_j: float
    baseline_w: float | None
    reading: GpuReading | None
    wake_latency: Histogram
    errors: Mapping[str, int] = field(default_factory=dict)
    remedy: str = ""
    holds: tuple[HoldSnapshot, ...] = ()
    conflict: str = ""
    intent: Intent | None = None
    saved_today_j: float = 0.0
    saved_total_j: float = 0.0
    power: tuple[tuple[int, float], ...] = ()
    states: tuple[tuple[int, str], ...] = ()
    baseline_source: str = ""
    idle_after_s: float = 0.0
    idle_why: str = ""
    stages: Mapping[Stage, Spent] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WatchSnapshot:
    """One watched port now. gpus: UUIDs. live: open connections, silent: those of them on which nothing is said.

    idle_s: time since the last activity, 0 while there is work. server: what was recognised there. quiet: when it
    counts as quiet, in the words of the configuration.
    """

    port: int
    scope: str
    gpus: tuple[str, ...]
    live: int
    accepts: int
    closes: int
    ignored: int
    idle_s: float
    rings: int
    overflows: int
    corrections: Mapping[str, int]
    silent: int = 0
    touches: int = 0
    server: str = ""
    quiet: str = ""


@dataclass(frozen=True, slots=True)
class KernelSnapshot:
    """The kernel side now. hooks: hook -> attached; recursion_misses: hook -> events that the kernel skipped.

    listeners_changed: listening sockets of the whole machine that came or went since the start.
    """

    hooks: Mapping[str, bool]
    recursion_misses: Mapping[str, int]
    reconciles: int
    notices: tuple[str, ...] = ()
    listeners_changed: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything, at `at_ns` (CLOCK_MONOTONIC)."""

    at_ns: int
    started_unix_s: float
    version: str
    driver_version: str
    hostname: str
    dry_run: bool
    gpus: tuple[GpuSnapshot, ...]
    watches: tuple[WatchSnapshot, ...]
    kernel: KernelSnapshot
    guardian_restarts: int = 0
    history_write_failures: int = 0
    waiting: Mapping[str, str] = field(default_factory=dict)
    """The operator's watches that are not there now, and why."""
    released: Released | None = None
    """While the driver is let go of, so that it can be upgraded: nothing is governed."""
    paused: HoldSnapshot | None = None
    """What keeps every GPU awake."""
    ungoverned: tuple[Ungoverned, ...] = ()
    transitions: tuple[Transition, ...] = ()
    """The last changes of states, the latest one last."""
    saved_since_unix_s: float | None = None
    """Since when `saved_total_j` is counted; None: nobody counts."""
    labels: tuple[tuple[str, str], ...] = ()
    """What the operator calls this machine: (name, value)."""
    discovers: bool = False
    """Servers are found and watched although nobody has named them."""
    supervised: Supervised = field(default_factory=Supervised)
    """What the supervisors of servers say; who asks for the snapshot looks."""
    sleep: Sleep = field(default_factory=Sleep)
    """What the sleeper said last about the deeper stages; empty where none is configured."""
    stage_wakes: tuple[StageWakes, ...] = ()
    gpuctl: Gpuctl = field(default_factory=Gpuctl)
    """What the arbiter said last about the applications of GPUs; empty where it has nothing to do."""
