"""What is kept of each GPU for telling, and how it becomes a snapshot, with what the kernel side says of itself.

Nothing here changes anything; record.py keeps the accounts.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from memscaler.core import energy
from memscaler.core.model import FOR_EVER_NS, SECOND_NS, GpuState, Phase, Public
from memscaler.core.public import public_state
from memscaler.core.snapshot import (
    GpuReading,
    GpuSnapshot,
    HoldSnapshot,
    Identity,
    Intent,
    KernelSnapshot,
    Ungoverned,
    WatchSnapshot,
)
from memscaler.core.watch import Quiet
from memscaler.kernel.counters import NO_WATCH
from memscaler.kernel.ledger import Ledger
from memscaler.kernel.watch import Watch
from memscaler.observe.histogram import Latencies

MOST_STATES = 300  # of one GPU, that are told: other GPUs' changes push none of them out
MOST_READINGS = 600  # of power, that are told: ten minutes at one a second, which is the most that anybody can ask for
MOST_SKIPS = 8
# What comes by itself when its time has come.
NEXT = {Phase.COOLING: "parked", Phase.UNMANAGED: "trusted again", Phase.WAKING: "woken again"}


@dataclass(frozen=True, slots=True)
class About:
    """What others know of a GPU. lever: that the next park uses; intent: what is set now; idle_*: as in GpuSnapshot."""

    lever: str
    holds: tuple[HoldSnapshot, ...]
    intent: Intent | None
    idle_after_s: float = 0.0
    idle_why: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What does not change while the daemon runs."""

    version: str
    driver_version: str
    hostname: str
    dry_run: bool
    labels: tuple[tuple[str, str], ...]
    gpus_of_slot: Callable[[int], tuple[str, ...]]
    server_of_slot: Callable[[int], str]
    waiting: Callable[[], Mapping[str, str]]
    ungoverned: Callable[[], tuple[Ungoverned, ...]]
    discovers: Callable[[], bool]


@dataclass(slots=True)
class Known:
    """What is known of one GPU; kept by the recorder (record.py)."""

    identity: Identity
    public: Public | None
    since_ns: int
    account: energy.Account
    reason: str = ""
    remedy: str = ""
    conflict: str = ""
    transitions: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    latencies: Latencies = field(default_factory=Latencies)
    reading: GpuReading | None = None
    sampled_ns: int = 0
    power: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=MOST_READINGS))
    states: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=MOST_STATES))
    quiet_ns: int = 0  # since when it was quiet when it was last seen to cool
    asked: tuple[int, str, int] = (0, "", 0)  # of the last wake: seq, reason, kernel time of the ring
    failed: tuple[str, str] = ("", "")  # operation and reason of the last failure that was logged
    skips: deque[str] = field(
        default_factory=lambda: deque(maxlen=MOST_SKIPS)
    )  # why parks were, as logged since the last


def gpu_snapshot(mine: Known, gpu: GpuState, now_ns: int, about: About, saved_j: tuple[float, float]) -> GpuSnapshot:
    """saved_j: today and in total."""
    public = public_state(gpu)
    account = energy.observe_state(mine.account, public, now_ns)  # up to this moment
    today_j, total_j = saved_j
    comes = gpu.phase in NEXT and 0 < gpu.due_ns < FOR_EVER_NS  # a hold may have no end
    return GpuSnapshot(
        identity=mine.identity,
        state=str(public),
        since_ns=mine.since_ns,
        reason=mine.reason,
        lever=about.lever,
        next_ns=gpu.due_ns if comes else 0,
        next=NEXT[gpu.phase] if comes else "",
        state_s=account.state_s,
        state_energy_j=account.state_energy_j,
        transitions=dict(mine.transitions),
        energy_j=account.energy_j,
        energy_source=account.source,
        energy_saved_j=account.saved_j,
        baseline_w=account.baseline_w,
        baseline_source=account.baseline_source,
        reading=mine.reading,
        wake_latency=mine.latencies.freeze(),
        errors=dict(mine.errors),
        remedy=mine.remedy if gpu.distrust else "",
        holds=about.holds,
        conflict=mine.conflict,
        intent=about.intent,
        idle_after_s=about.idle_after_s,
        idle_why=about.idle_why,
        power=tuple(mine.power),
        states=tuple(mine.states),
        saved_today_j=today_j,
        saved_total_j=total_j,
    )


def watch_snapshot(watch: Watch, ledger: Ledger, now_ns: int, facts: Facts, started_ns: int) -> WatchSnapshot:
    """started_ns: when the daemon did."""
    slot, reading = ledger.counters.read(watch.slot), ledger.reading(watch)
    open_now = ledger.open_connections(watch)
    since_ns = max(reading.last_activity_ns, reading.last_touch_ns, started_ns)
    return WatchSnapshot(
        port=watch.port,
        scope=watch.scope,
        gpus=facts.gpus_of_slot(watch.slot),
        live=open_now,
        silent=max(0, open_now - reading.live),
        touches=slot.touches + (watch.traffic.touches if watch.traffic else 0),
        server=facts.server_of_slot(watch.slot),
        quiet=str(Quiet.NO_TRAFFIC if watch.traffic else Quiet.NO_CONNECTIONS),
        accepts=slot.opened + watch.added,
        closes=slot.closed,
        ignored=slot.ignored,
        idle_s=0.0 if reading.live else max(0, now_ns - since_ns) / SECOND_NS,
        rings=slot.rings,
        overflows=slot.overflow,
        corrections={"added": watch.added, "removed": watch.healed},
    )


def kernel_snapshot(ledger: Ledger) -> KernelSnapshot:
    """Which hooks are attached, and what they have missed."""
    attached = ledger.attachment
    hooks = {hook: hook in attached.fds for hook in ("tracepoint", "sockops")} | {"data": ledger.data_hook.attached}
    changed = ledger.counters.read(NO_WATCH).opened
    return KernelSnapshot(hooks, attached.recursion_misses(), ledger.reconciles, attached.notices, changed)
