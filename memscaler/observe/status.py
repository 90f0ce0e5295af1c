"""The status document: what `memscaler status` prints and GET /v1/status answers. Its keys are a contract."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from memscaler.core.model import SECOND_NS
from memscaler.core.servers import Supervised
from memscaler.core.snapshot import GpuSnapshot, HoldSnapshot, Snapshot, Transition, Ungoverned, WatchSnapshot
from memscaler.observe import gpuctl, stages

SCHEMA = 1


def document(snapshot: Snapshot) -> dict[str, Any]:
    """Everything a person or a program may want to know now; seconds, watts, MHz and joules."""
    names = {gpu.identity.uuid: f"gpu{gpu.identity.index}" for gpu in snapshot.gpus}
    return {
        "schema": SCHEMA,
        "mode": _mode(snapshot),
        "paused": None if snapshot.paused is None else _hold(snapshot.paused),
        "released": None if snapshot.released is None else asdict(snapshot.released),
        "version": snapshot.version,
        "pid": os.getpid(),
        "uptime_s": round(time.time() - snapshot.started_unix_s, 1),
        "hostname": snapshot.hostname,
        "driver_version": snapshot.driver_version,
        "dry_run": snapshot.dry_run,
        "discover": snapshot.discovers,
        "gpus": [_gpu(gpu, snapshot.at_ns) for gpu in snapshot.gpus],
        "watches": [_watch(watch, names) for watch in snapshot.watches],
        "servers": _servers(snapshot.supervised, names),
        "sleep": stages.document(snapshot, names, time.time()),
        "gpuctl": gpuctl.document(snapshot, names, time.time()),
        "waiting": [{"watch": watch, "reason": reason} for watch, reason in snapshot.waiting.items()],
        "ungoverned": [_ungoverned(each) for each in snapshot.ungoverned],
        "transitions": [_transition(each, names) for each in snapshot.transitions],
        "rivals": [],
        "notices": [*snapshot.kernel.notices, *snapshot.supervised.notices],
        "saved_since_unix_s": snapshot.saved_since_unix_s and round(snapshot.saved_since_unix_s),
    }


def _mode(snapshot: Snapshot) -> str:
    if snapshot.released is not None:
        return "released"
    return "governing" if snapshot.paused is None else "paused"


def _ungoverned(ungoverned: Ungoverned) -> dict[str, Any]:
    gpu = ungoverned.identity
    whom = {"gpu": f"gpu{gpu.index}", "uuid": gpu.uuid, "pci_bus_id": gpu.pci_bus_id, "name": gpu.name}
    return {**whom, "reason": ungoverned.reason}


def _transition(transition: Transition, names: Mapping[str, str]) -> dict[str, Any]:
    at_unix_s, gpu = round(transition.at_unix_s, 3), names.get(transition.gpu, transition.gpu)
    moved = {"was": transition.was, "state": transition.state, "reason": transition.reason}
    return {"at_unix_s": at_unix_s, "gpu": gpu, **moved}


def _gpu(gpu: GpuSnapshot, now_ns: int) -> dict[str, Any]:
    reading = gpu.reading
    return {
        "gpu": f"gpu{gpu.identity.index}",
        "uuid": gpu.identity.uuid,
        "pci_bus_id": gpu.identity.pci_bus_id,
        "name": gpu.identity.name,
        "state": gpu.state,
        "since_s": _seconds(now_ns - gpu.since_ns),
        "reason": gpu.reason,
        "remedy": gpu.remedy,
        "lever": gpu.lever,
        "next": gpu.next,
        "next_in_s": _seconds(gpu.next_ns - now_ns) if gpu.next_ns else None,
        "idle_after_s": round(gpu.idle_after_s, 3),
        "idle_why": gpu.idle_why,
        "power_w": reading and reading.power_w,
        "memory_clock_mhz": reading and reading.memory_clock_mhz,
        "graphics_clock_mhz": reading and reading.graphics_clock_mhz,
        "pstate": reading and reading.pstate,
        "utilization_ratio": reading and reading.utilization_ratio,
        "temperature_c": reading and reading.temperature_c,
        "sampled_s": None if reading is None else _seconds(now_ns - reading.at_ns),
        "intent": None if gpu.intent is None else asdict(gpu.intent),
        "holds": [_hold(hold) for hold in gpu.holds],
        "conflict": gpu.conflict,
        "errors": dict(gpu.errors),
        "baseline_w": None if gpu.baseline_w is None else round(gpu.baseline_w, 1),
        "baseline_source": gpu.baseline_source,
        "parked_s": round(gpu.state_s.get("parked", 0.0), 1),
        "energy_saved_today_j": round(gpu.saved_today_j, 1),
        "energy_saved_j": round(gpu.saved_total_j, 1),
    }


def _hold(hold: HoldSnapshot) -> dict[str, Any]:
    left_s = None if hold.left_s is None else round(hold.left_s, 1)
    return {"id": hold.id, "owner": hold.owner, "reason": hold.reason, "expires_in_s": left_s}


def _watch(watch: WatchSnapshot, names: Mapping[str, str]) -> dict[str, Any]:
    return {
        "port": watch.port,
        "scope": watch.scope,
        "gpus": [names.get(uuid, uuid) for uuid in watch.gpus],
        "server": watch.server,
        "quiet": watch.quiet,
        "connections": watch.live,
        "silent": watch.silent,
        "touches": watch.touches,
        "idle_s": round(watch.idle_s, 1),
    }


def _servers(supervised: Supervised, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Those that supervisors keep running.

    supervised: False where the supervisor has ended, and this is what it last said.
    """
    now_unix_s = time.time()
    return [
        {
            "name": server.name,
            "user": supervisor.user,
            "state": server.state.value,
            "since_s": round(max(0.0, now_unix_s - server.since_unix_s), 1),
            "supervised": not supervised.has_ended(supervisor),
            "pid": server.pid,
            "port": server.port,
            "gpus": [names.get(uuid, uuid) for uuid in server.gpus],
            "model": server.model,
            "restarts": server.restarts,
            "reason": server.reason,
            "ended": server.ended,
            "starts_in_s": server.starts_unix_s and round(max(0.0, server.starts_unix_s - now_unix_s), 1),
        }
        for server, supervisor in supervised.servers
    ]


def _seconds(span_ns: int) -> float:
    return round(max(0, span_ns) / SECOND_NS, 1)
