"""The deeper stages as samples of metrics and as a part of the status document; nothing where none is configured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from memscaler.core.snapshot import GpuSnapshot, Histogram, Snapshot
from memscaler.core.stages import MachineSleep, Rung, Sleep, SleepingServer, Stage, StageTotals, standing
from memscaler.core.summary import rank

HOST_SCOPE = "host"  # as the watches have it
OF_SERVERS = (Stage.SERVER_SLEEP, Stage.CHECKPOINT, Stage.STOP_SERVER)

Sample = tuple[str, tuple[str, ...], "float | Histogram | None"]


def is_told(sleep: Sleep) -> bool:
    """Whether there is anything to show: stages are configured, or something sleeps."""
    return sleep != Sleep()


# ---- metrics --------------------------------------------------------------------------------------------------------


def samples(snapshot: Snapshot) -> Iterator[Sample]:
    """All metrics of the deeper stages."""
    sleep = snapshot.sleep
    if not is_told(sleep):
        return
    yield "memscaler_sleeper_up", (), sleep.pid is not None
    for server in sleep.servers:
        yield from _of_server(server)
    for each in snapshot.stage_wakes:
        if each.stage is Stage.SUSPEND:
            yield "memscaler_suspend_wake_seconds", (), each.wakes
            continue
        key = (each.server, str(each.port), each.scope or HOST_SCOPE, str(each.stage))
        yield "memscaler_stage_wake_seconds", key, each.wakes
    for gpu in snapshot.gpus:
        yield from _of_gpu(gpu, snapshot.hostname)
    yield from _of_machine(sleep.machine)


def _of_server(server: SleepingServer) -> Iterator[Sample]:
    key = (server.name, str(server.port), server.scope or HOST_SCOPE)
    for rung in Rung:
        yield "memscaler_stage_rung", (*key, str(rung)), server.rung is rung
    for stage in OF_SERVERS:
        totals = server.totals.get(stage, StageTotals())
        yield "memscaler_stage", (*key, str(stage)), server.stage is stage
        yield "memscaler_stage_seconds_total", (*key, str(stage)), totals.seconds
        yield "memscaler_stage_entered_total", (*key, str(stage)), totals.entered
        yield "memscaler_stage_failures_total", (*key, str(stage)), totals.failed


def _of_gpu(gpu: GpuSnapshot, hostname: str) -> Iterator[Sample]:
    who = gpu.identity
    key = (str(who.index), who.uuid, who.pci_bus_id, who.name, hostname)
    for stage in OF_SERVERS:
        spent = gpu.stages.get(stage)
        if spent is None:
            continue
        yield "memscaler_gpu_stage_seconds_total", (*key, str(stage)), spent.seconds
        if spent.known_s:
            yield "memscaler_gpu_stage_energy_joules_total", (*key, str(stage)), spent.energy_j
        if spent.compared_s:
            yield "memscaler_gpu_stage_saved_joules", (*key, str(stage)), spent.saved_j


def _of_machine(machine: MachineSleep) -> Iterator[Sample]:
    for rung in Rung:
        yield "memscaler_suspend_rung", (str(rung),), machine.rung is rung
    yield "memscaler_suspend_wanted", (), machine.wanted
    yield "memscaler_suspend_blockers", (), len(machine.why_not) if machine.wanted else 0
    yield "memscaler_suspend_never", (), bool(machine.never)
    yield "memscaler_suspend_alarm_timestamp_seconds", (), machine.alarm_unix_s
    yield "memscaler_suspend_entered_total", (), machine.suspends
    yield "memscaler_suspend_failures_total", (), machine.failed
    yield "memscaler_suspend_asleep_seconds_total", (), machine.asleep_s


# ---- the status document --------------------------------------------------------------------------------------------


def document(snapshot: Snapshot, names: Mapping[str, str], now_unix_s: float) -> dict[str, Any] | None:
    """None where no stage is configured. names: of GPUs, by UUID."""
    sleep = snapshot.sleep
    if not is_told(sleep):
        return None
    return {
        "pid": sleep.pid,
        "problem": sleep.problem,
        "servers": [_server(each, names, now_unix_s) for each in sleep.servers],
        "machine": _machine(sleep.machine, now_unix_s),
        "gpus": [entry for gpu in snapshot.gpus for entry in _gpu(gpu)],
    }


def _server(server: SleepingServer, names: Mapping[str, str], now_unix_s: float) -> dict[str, Any]:
    return {
        "name": server.name,
        "port": server.port,
        "scope": server.scope,
        "gpus": [names.get(uuid, uuid) for uuid in server.gpus],
        "stage": server.stage and str(server.stage),
        "rung": str(server.rung),
        "standing": standing(server),
        "since_s": _ago(server.since_unix_s, now_unix_s),
        "asleep_by": server.asleep_by,
        "next": server.next and str(server.next),
        "next_in_s": _until(server.next_unix_s, now_unix_s),
        "why_not": server.why_not,
        "missing": server.missing,
        "note": server.note,
        "stages": [_totals(stage, server.totals[stage]) for stage in OF_SERVERS if stage in server.totals],
    }


def _totals(stage: Stage, totals: StageTotals) -> dict[str, Any]:
    counted = {"entered": totals.entered, "left": totals.left, "failed": totals.failed}
    return {"stage": str(stage), **counted, "seconds": round(totals.seconds, 1), "wake": _wake(totals.wakes_s)}


def _wake(wakes_s: Sequence[float]) -> dict[str, float] | None:
    """Of the last times, of which a few are kept."""
    took_s = sorted(wakes_s)
    return {"count": len(took_s), "median_s": rank(took_s, 0.5), "worst_s": took_s[-1]} if took_s else None


def _machine(machine: MachineSleep, now_unix_s: float) -> dict[str, Any]:
    return {
        "wanted": machine.wanted,
        "rung": str(machine.rung),
        "since_s": _ago(machine.since_unix_s, now_unix_s),
        "next_in_s": _until(machine.next_unix_s, now_unix_s),
        "why_not": list(machine.why_not),
        "never": machine.never,
        "never_for_s": _until(machine.never_until_unix_s, now_unix_s),
        "alarm_in_s": _until(machine.alarm_unix_s, now_unix_s),
        "last": machine.last,
        "suspends": machine.suspends,
        "failed": machine.failed,
        "asleep_s": round(machine.asleep_s, 1),
        "wake": _wake(machine.wakes_s),
    }


def _gpu(gpu: GpuSnapshot) -> Sequence[dict[str, Any]]:
    """What each stage of it took and spared."""
    found = []
    for stage in OF_SERVERS:
        spent = gpu.stages.get(stage)
        if spent is not None:
            figures = {key: round(value, 1) for key, value in asdict(spent).items()}
            watts = None if spent.watts is None else round(spent.watts, 1)
            found.append({"gpu": f"gpu{gpu.identity.index}", "stage": str(stage), "power_w": watts, **figures})
    return found


def _ago(unix_s: float, now_unix_s: float) -> float | None:
    return round(max(0.0, now_unix_s - unix_s), 1) if unix_s else None


def _until(unix_s: float | None, now_unix_s: float) -> float | None:
    return None if unix_s is None else round(max(0.0, unix_s - now_unix_s), 1)
