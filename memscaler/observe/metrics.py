"""From a snapshot to the text that Prometheus reads. What is not known is left out: no number is made up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from prometheus_client import generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector

from memscaler.core.model import Public
from memscaler.core.servers import ServerState, Supervised
from memscaler.core.snapshot import GpuReading, GpuSnapshot, Histogram, KernelSnapshot, Snapshot, WatchSnapshot
from memscaler.observe import gpuctl, stages
from memscaler.observe.specs import BY_NAME, HOST, SPECS, Kind, Spec

PLAIN = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

# Counters start at 0 and not at their first event, so that rate() sees that one too.
OPERATIONS = ("park", "wake", "sample", "conflict")
CORRECTIONS = ("added", "removed")

NS_PER_S = 1_000_000_000
HZ_PER_MHZ = 1_000_000

Sample = tuple[str, tuple[str, ...], "float | Histogram | None"]


def render(snapshot: Snapshot, accept: str = "") -> tuple[bytes, str]:
    """The metrics and their content type: OpenMetrics for a client that accepts it, else the plain text format."""
    collector = _Families(snapshot)
    if "application/openmetrics-text" in accept:
        return generate_openmetrics(collector), OPENMETRICS  # type: ignore[no-untyped-call]  # theirs has no types
    return generate_latest(collector), PLAIN


class _Families(Collector):
    """A snapshot as metric families, in the order of the table."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        families = {spec.name: _family(spec) for spec in SPECS}
        host = BY_NAME[HOST]
        own = replace(host, labels=(*host.labels, *(name for name, _ in self.snapshot.labels)))
        for name, labels, value in _samples(self.snapshot):
            if value is not None:
                _add(families[name], own if name == HOST else BY_NAME[name], labels, value)
        return [family for family in families.values() if family.samples]


def _family(spec: Spec) -> Metric:
    match spec.kind:
        case Kind.GAUGE:
            return GaugeMetricFamily(spec.name, spec.help, labels=spec.labels)
        case Kind.COUNTER:
            return CounterMetricFamily(spec.name, spec.help, labels=spec.labels)
        case Kind.INFO:
            return InfoMetricFamily(spec.name.removesuffix("_info"), spec.help, labels=())
        case Kind.HISTOGRAM:
            return HistogramMetricFamily(spec.name, spec.help, labels=spec.labels)


def _add(family: Metric, spec: Spec, labels: tuple[str, ...], value: float | Histogram) -> None:
    if isinstance(value, Histogram):
        bounds = [("+Inf" if math.isinf(le) else repr(le), float(count)) for le, count in value.buckets]
        family.add_metric(labels, bounds, value.sum_s)  # type: ignore[attr-defined]
    elif isinstance(family, InfoMetricFamily):
        family.add_metric((), dict(zip(spec.labels, labels, strict=True)))
    else:
        family.add_metric(labels, float(value))  # type: ignore[attr-defined]  # Metric has none, all its kinds do


# ---- samples --------------------------------------------------------------------------------------------------------


def _samples(snapshot: Snapshot) -> Iterator[Sample]:
    yield "memscaler_up", (), 1
    yield "memscaler_build_info", (snapshot.version,), 1
    yield HOST, (snapshot.hostname, *(value for _, value in snapshot.labels)), 1
    yield "memscaler_start_time_seconds", (), snapshot.started_unix_s
    yield "memscaler_dry_run", (), snapshot.dry_run
    yield "memscaler_guardian_restarts_total", (), snapshot.guardian_restarts
    yield "memscaler_history_write_failures_total", (), snapshot.history_write_failures
    yield "memscaler_ports_waiting", (), len(snapshot.waiting)
    yield "memscaler_paused", (), snapshot.paused is not None
    yield "memscaler_released", (), snapshot.released is not None
    for gpu in snapshot.gpus:
        yield from _of_gpu(gpu, snapshot)
    index = {gpu.identity.uuid: str(gpu.identity.index) for gpu in snapshot.gpus}
    for watch in snapshot.watches:
        yield from _of_watch(watch, index)
    yield from _of_servers(snapshot.supervised)
    yield from stages.samples(snapshot)
    yield from gpuctl.samples(snapshot)
    yield from _of_kernel(snapshot.kernel)


def _of_gpu(gpu: GpuSnapshot, snapshot: Snapshot) -> Iterator[Sample]:
    who = gpu.identity
    key = (str(who.index), who.uuid, who.pci_bus_id, who.name, snapshot.hostname)
    plain = who.uuid.removeprefix("GPU-").lower()
    yield "memscaler_gpu_info", (*key, plain, who.uuid, snapshot.driver_version, gpu.lever), 1
    yield "memscaler_gpu_holds", key, len(gpu.holds)
    yield "memscaler_gpu_conflict", key, bool(gpu.conflict)
    for state in Public:
        yield "memscaler_gpu_state", (*key, state), gpu.state == state
        yield "memscaler_gpu_state_seconds_total", (*key, state), gpu.state_s.get(state, 0)
        yield "memscaler_gpu_transitions_total", (*key, state), gpu.transitions.get(state, 0)
        if gpu.energy_j is not None:
            yield "memscaler_gpu_state_energy_joules_total", (*key, state), gpu.state_energy_j.get(state, 0)
    yield "memscaler_gpu_energy_joules_total", (*key, gpu.energy_source), gpu.energy_j
    yield "memscaler_gpu_energy_saved_joules_total", key, gpu.energy_saved_j
    yield "memscaler_gpu_energy_baseline_watts", key, gpu.baseline_w
    yield "memscaler_gpu_idle_after_seconds", key, gpu.idle_after_s
    yield "memscaler_reset_latency_seconds", key, gpu.wake_latency
    for op, count in _preset(gpu.errors, OPERATIONS):
        yield "memscaler_errors_total", (*key, op), count
    yield from _of_reading(gpu.reading, key, snapshot.at_ns)


def _of_reading(reading: GpuReading | None, key: tuple[str, ...], now_ns: int) -> Iterator[Sample]:
    yield "memscaler_gpu_last_collect_success", key, reading is not None
    if reading is None:
        return
    yield "memscaler_gpu_sample_age_seconds", key, max(0, now_ns - reading.at_ns) / NS_PER_S
    yield "memscaler_gpu_power_watts", key, reading.power_w
    yield "memscaler_gpu_mem_clock_hertz", key, _hertz(reading.memory_clock_mhz)
    yield "memscaler_gpu_graphics_clock_hertz", key, _hertz(reading.graphics_clock_mhz)
    yield "memscaler_gpu_pstate", key, reading.pstate
    yield "memscaler_gpu_utilization_ratio", key, reading.utilization_ratio
    yield "memscaler_gpu_temperature_celsius", key, reading.temperature_c


def _of_watch(watch: WatchSnapshot, index: Mapping[str, str]) -> Iterator[Sample]:
    key = (str(watch.port), watch.scope)
    yield "memscaler_port_connections", key, watch.live
    yield "memscaler_port_accepts_total", key, watch.accepts
    yield "memscaler_port_closes_total", key, watch.closes
    yield "memscaler_port_ignored_total", key, watch.ignored
    yield "memscaler_port_silent_connections", key, watch.silent
    yield "memscaler_port_touches_total", key, watch.touches
    yield "memscaler_port_idle_seconds", key, watch.idle_s
    yield "memscaler_port_info", (*key, watch.server, watch.quiet), 1
    for uuid in watch.gpus:
        yield "memscaler_port_gpu_info", (*key, index.get(uuid, ""), uuid), 1
    yield "memscaler_doorbell_rings_total", key, watch.rings
    yield "memscaler_connections_overflow_total", key, watch.overflows
    for kind, count in _preset(watch.corrections, CORRECTIONS):
        yield "memscaler_reconcile_corrections_total", (*key, kind), count


def _of_servers(supervised: Supervised) -> Iterator[Sample]:
    """Of a supervisor that has ended nobody knows how its servers are."""
    for server, supervisor in supervised.servers:
        if supervised.has_ended(supervisor):
            continue
        yield "memscaler_server_info", (server.name, str(server.port or ""), supervisor.user), 1
        for state in ServerState:
            yield "memscaler_server_state", (server.name, state), server.state == state
        yield "memscaler_server_restarts_total", (server.name,), server.restarts


def _of_kernel(kernel: KernelSnapshot) -> Iterator[Sample]:
    yield "memscaler_reconciles_total", (), kernel.reconciles
    yield "memscaler_listeners_changed_total", (), kernel.listeners_changed
    for hook, attached in sorted(kernel.hooks.items()):
        yield "memscaler_bpf_hook_attached", (hook,), attached
    for hook, count in _preset(kernel.recursion_misses, tuple(kernel.hooks)):
        yield "memscaler_bpf_recursion_misses_total", (hook,), count


def _preset(counts: Mapping[str, int], keys: tuple[str, ...]) -> list[tuple[str, int]]:
    return sorted({**dict.fromkeys(keys, 0), **counts}.items())


def _hertz(clock_mhz: int | None) -> int | None:
    return None if clock_mhz is None else clock_mhz * HZ_PER_MHZ
