"""docs/metrics.md is the table of metrics, written out. MEMSCALER_UPDATE_GOLDEN=1 writes it anew."""

import os
from pathlib import Path

from memscaler.core.model import Public
from memscaler.core.servers import ServerState
from memscaler.core.stages import LADDER, Rung
from memscaler.observe.specs import PORT, SPECS, STAGE_WAKE_BUCKETS_S, WAKE_LATENCY_BUCKETS_S

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
HEAD = """# Metrics

Served on `http://127.0.0.1:9823/metrics` (`--metrics HOST:PORT|off`), in Prometheus's text format or OpenMetrics. Names
and labels are a contract ([why](adr/0003-metric-names-are-a-contract.md)). This page is made from
`memscaler/observe/specs.py`; a test compares them. How to scrape, alerts and a dashboard: [monitoring.md](monitoring.md).

*per GPU*: labels `gpu` (index), `UUID`, `pci_bus_id`, `model_name`, `hostname`. *per port*: labels `port`, `scope`.
States of a GPU: {gpu_states}; of a server: {server_states}.
Stages: {stages}; how a server stands to one, its rung: {rungs}. Metrics of stages and of suspend are only there where a
`[[stage]]` is configured ([sleep.md](sleep.md)); the metrics of `memscaler gateway` are its own ([gateway.md](gateway.md)).
Those of rules for other programs are only there where a `[[gpuctl]]` is configured, or GVM's driver is there, and
`memscaler_gvm_*` only where it is: a process that GVM does not know has none ([gpuctl.md](gpuctl.md)).
"""
TAIL = """
Buckets of `memscaler_reset_latency_seconds`: {buckets} s; of `memscaler_stage_wake_seconds`: {stage_buckets} s.

## Questions it answers

    # watts saved, averaged over a day
    rate(memscaler_gpu_energy_saved_joules_total[1d])

    # kilowatt hours saved since the governor started
    memscaler_gpu_energy_saved_joules_total / 3.6e6

    # share of the time parked
    rate(memscaler_gpu_state_seconds_total{{state="parked"}}[1d])

    # slow wakes: 99th percentile in seconds
    histogram_quantile(0.99, rate(memscaler_reset_latency_seconds_bucket[1d]))

    # a GPU that needs an operator
    memscaler_gpu_state{{state="unmanaged"}} == 1

    # watts that deeper stages spare beyond parking, averaged over a day (less what wakes took)
    deriv(memscaler_gpu_stage_saved_joules[1d])

    # how long clients wait for a server that was stopped: 9 of 10 no longer
    histogram_quantile(0.9, sum by (le) (rate(memscaler_stage_wake_seconds_bucket{{stage="stop-server"}}[7d])))

    # a server that cannot be brought back
    memscaler_stage_rung{{rung="stuck"}} == 1

    # programs that are stopped for somebody now, and for how long
    memscaler_gpuctl_controlled{{knob="compute.freeze"}}
    memscaler_gpuctl_frozen_seconds > 0

    # processes that GVM has moved out of a GPU's memory, in bytes
    sum by (gpu) (memscaler_gvm_swap_bytes)

    # watts of the GPUs behind a server
    memscaler_server_info * on (instance, port) group_right (server) (
      memscaler_port_gpu_info * on (instance, UUID) group_left () memscaler_gpu_power_watts
    )
"""


def row(spec):
    labels = spec.labels
    about = ""
    if labels[:5] == ("gpu", "UUID", "pci_bus_id", "model_name", "hostname"):
        about, labels = "per GPU", labels[5:]
    elif labels[:2] == PORT:
        about, labels = "per port", labels[2:]
    more = ", ".join(f"`{label}`" for label in labels)
    return f"| `{spec.name}` | {spec.kind} | {'; '.join(filter(None, [about, more]))} | {spec.help} |"


def page():
    buckets, stage_buckets = (
        ", ".join(f"{bound:g}" for bound in bounds) for bounds in (WAKE_LATENCY_BUCKETS_S, STAGE_WAKE_BUCKETS_S)
    )
    table = ["| metric | type | labels | meaning |", "|---|---|---|---|", *map(row, SPECS)]
    states = {"gpu_states": ", ".join(Public), "server_states": ", ".join(ServerState)}
    states |= {"stages": ", ".join(LADDER[1:-1]), "rungs": ", ".join(Rung)}
    return (
        HEAD.format(**states)
        + "\n"
        + "\n".join(table)
        + "\n"
        + TAIL.format(buckets=buckets, stage_buckets=stage_buckets)
    )


def test_the_page_is_current():
    """What the page says is what is served."""
    if os.environ.get("MEMSCALER_UPDATE_GOLDEN"):
        PAGE.write_text(page(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page(), "MEMSCALER_UPDATE_GOLDEN=1 pytest tests/demo writes it anew"
