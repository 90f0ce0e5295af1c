"""A snapshot with everything in it, and one with as little as there can be."""

import math

import pytest

from memscaler.core.gpuctl import NO_LIMIT, Controlled, Gpuctl, GvmAt, GvmReading, Knob, Means, RuleState
from memscaler.core.servers import ServerReport, ServerState, Supervised, SupervisorReport
from memscaler.core.snapshot import (
    GpuReading,
    GpuSnapshot,
    Histogram,
    Identity,
    KernelSnapshot,
    Snapshot,
    StageWakes,
    WatchSnapshot,
)
from memscaler.core.stages import MachineSleep, Rung, Sleep, SleepingServer, Spent, Stage, StageTotals
from memscaler.observe.histogram import Latencies
from memscaler.observe.specs import STAGE_WAKE_BUCKETS_S

A40 = Identity(0, "GPU-8F3a1c52-0000-4000-8000-000000000001", "00000000:3B:00.0", "NVIDIA A40")
P40 = Identity(1, "GPU-11111111-0000-4000-8000-000000000002", "00000000:AF:00.0", 'Tesla "P40"\\')
SERVER = ServerReport("chat", ServerState.READY, 1_700_000_100.0, 4711, 8080, (A40.uuid,), restarts=2)
WITHOUT_PORT = ServerReport("balancer", ServerState.FAILED, 1_700_000_200.0, reason="it ended five times in a minute")
NOW_NS = 1_000_000_000_000
ASLEEP = SleepingServer(
    "chat",
    8080,
    gpus=(A40.uuid,),
    stage=Stage.STOP_SERVER,
    rung=Rung.DOWN,
    since_unix_s=1_700_000_200.0,
    next=Stage.SUSPEND,
    next_unix_s=1_700_007_200.0,
    totals={
        Stage.SERVER_SLEEP: StageTotals(3, 3, 0, 900.0, (0.4, 0.6, 0.5)),
        Stage.STOP_SERVER: StageTotals(2, 1, 1, 4000.5, (12.0,)),
    },
)
STUCK = SleepingServer(
    'port "8081"',
    8081,
    "netns:blue",
    stage=Stage.CHECKPOINT,
    rung=Rung.STUCK,
    since_unix_s=1_700_000_300.0,
    why_not="held by alice: her benchmark",
    note="cuda-checkpoint of alice says: failed",
)
MACHINE = MachineSleep(
    wanted=True, why_not=("alice is logged in",), alarm_unix_s=1_700_040_000.0, suspends=4, failed=1, asleep_s=7200.5
)

LATER_S = 4_000_000_000.0  # of a clock that was set back since: nothing is younger than nothing
FROZEN = Controlled(
    "batch-waits", 4711, "train of alice", Knob.COMPUTE_FREEZE, Means.SIGNAL, 1, 0, A40.uuid, "batch.service",
    since_unix_s=LATER_S,
)  # fmt: skip
GPUCTL = Gpuctl(
    4713,
    gvm=True,
    rules=(
        RuleState(
            "batch-waits", "busy", holds=True, since_unix_s=1_700_003_000.0, for_=("8080",), why_not="bob is in the way",
            applied=4, released=2, failed=1, seconds=1200.5, first_s=(0.0021, 0.0018, 0.004),
        ),
        RuleState("nights", "quiet"),
    ),
    controlled=(
        FROZEN,
        Controlled("batch-waits", 4711, "train of alice", Knob.CPU_NICE, Means.NICE, 10, 0, since_unix_s=LATER_S),
        Controlled("batch-waits", 4712, "train of bob", Knob.COMPUTE_FREEZE, Means.CGROUP, 1, problem="bob's: refused"),
        Controlled(
            "batch-waits", 4714, "web", Knob.MEMORY_LIMIT, Means.GVM, 6 << 30, NO_LIMIT, A40.uuid, "", "web", LATER_S
        ),
    ),
    first=(A40.uuid,),
    readings=(
        GvmReading(4714, 4714, 0, A40.uuid, "web", 5 << 30, 6 << 30, 1 << 20, 2, 0, 500, 480, 20),
        GvmReading(4714, 4720, 0, A40.uuid, "web", 1 << 30, 1 << 30, 0, 8, 1, 10, 10, 0),
        GvmReading(4715, 4715, 8, "", "unknown board", 4096, NO_LIMIT, compute_priority=8),
        GvmReading(4716, 4716, 16, "GPU-of-nobody", "bare"),
    ),
    read_unix_s=1_700_003_590.0,
    notes={"readings": "cut"},
    gvm_at=GvmAt("/sys/kernel/debug", "/proc"),
)  # fmt: skip


def _histogram(latencies: Latencies, *each_s: float) -> Histogram:
    for latency_s in each_s:
        latencies.add(latency_s)
    return latencies.freeze()


STAGE_WAKES = _histogram(Latencies(STAGE_WAKE_BUCKETS_S), 12.0, 700.0)


def _full() -> GpuSnapshot:
    return GpuSnapshot(
        identity=A40,
        state="parked",
        since_ns=NOW_NS - 5_000_000_000,
        reason="",
        lever="memory-clock",
        next_ns=0,
        next="",
        state_s={"awake": 10.5, "cooling": 60.0, "parked": 5.0},
        state_energy_j={"awake": 1500.0, "cooling": 4800.0, "parked": 90.0},
        transitions={"cooling": 2, "parked": 1, "awake": 1},
        energy_j=6390.0,
        energy_source="counter",
        energy_saved_j=310.0,
        baseline_w=80.0,
        reading=GpuReading(NOW_NS - 250_000_000, 18.25, 123456.0, 405, 210, 8, 0.0, 31),
        wake_latency=_histogram(Latencies(), 40e-6, 50e-6, 90e-6, 0.0004, 0.02, 11.0),
        errors={"wake": 1},
        stages={
            Stage.SERVER_SLEEP: Spent(900.0, 890.0, 13350.0, 890.0, 2560.0, 4.5, 110.0, 3),
            Stage.STOP_SERVER: Spent(4000.0, 0.0, 0.0, entries=1),
        },
    )


def _bare() -> GpuSnapshot:
    return GpuSnapshot(
        identity=P40,
        state="unmanaged",
        since_ns=0,
        reason="no lever",
        lever="",
        next_ns=0,
        next="",
        state_s={},
        state_energy_j={},
        transitions={},
        energy_j=None,
        energy_source="integrated",
        energy_saved_j=0.0,
        baseline_w=None,
        reading=None,
        wake_latency=Histogram(((math.inf, 0),), 0.0),
    )


@pytest.fixture
def snapshot() -> Snapshot:
    """One GPU about which everything is known, one about which nothing is, two ports."""
    return Snapshot(
        at_ns=NOW_NS,
        started_unix_s=1_700_000_000.25,
        version="0.1.0",
        driver_version="570.86.15",
        hostname="box",
        dry_run=False,
        gpus=(_full(), _bare()),
        watches=(
            WatchSnapshot(
                8080, "", (A40.uuid, P40.uuid), 0, 17, 17, 2, 65.5, 1, 0, {"added": 1}, 0, 5, "llama.cpp", "no-traffic"
            ),
            WatchSnapshot(8081, "netns:blue", (), 3, 3, 0, 0, 0.0, 0, 4, {}, silent=2, quiet="no-connections"),
        ),
        kernel=KernelSnapshot({"tracepoint": True, "sockops": False}, {"tracepoint": 3}, 9, (), 5),
        guardian_restarts=1,
        history_write_failures=2,
        waiting={"8082": "nobody listens there yet"},
        labels=(("role", 'ch"at'), ("site", "berlin")),
        supervised=Supervised((SupervisorReport("alice", 99, 1.0, (SERVER, WITHOUT_PORT)),)),
        sleep=Sleep(4712, (ASLEEP, STUCK), MACHINE),
        stage_wakes=(StageWakes(8080, "", "chat", Stage.STOP_SERVER, STAGE_WAKES),),
        gpuctl=GPUCTL,
    )


@pytest.fixture
def empty() -> Snapshot:
    """Nothing is known yet."""
    return Snapshot(0, 0.0, "0", "", "", True, (), (), KernelSnapshot({}, {}, 0))
