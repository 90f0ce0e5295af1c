"""The metrics are a contract: a golden file, Prometheus's own linter, and parsers that are not ours."""

import dataclasses
import os
import subprocess
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from memscaler.core.model import Public
from memscaler.core.snapshot import GpuReading
from memscaler.observe.histogram import Latencies
from memscaler.observe.metrics import render
from memscaler.observe.specs import HOST, SPECS, WAKE_LATENCY_BUCKETS_S, Kind

GOLDEN = Path(__file__).with_name("golden.metrics")


def series(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_text(text)
        for sample in family.samples
    }


def test_golden(snapshot):
    """Names, labels, order, help and numbers are as promised; MEMSCALER_UPDATE_GOLDEN=1 writes them anew."""
    body, content_type = render(snapshot)
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    if os.environ.get("MEMSCALER_UPDATE_GOLDEN"):
        GOLDEN.write_bytes(body)
    assert body.decode() == GOLDEN.read_text()


def test_promtool(snapshot, empty):
    """Prometheus's own linter has no complaints."""
    for each in (snapshot, empty):
        result = subprocess.run(
            ["promtool", "check", "metrics"], input=render(each)[0], capture_output=True, check=False
        )
        assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_openmetrics(snapshot):
    """A client that asks for OpenMetrics gets it, valid, with the same numbers."""
    body, content_type = render(snapshot, "application/openmetrics-text; version=1.0.0,text/plain;q=0.5")
    assert content_type.startswith("application/openmetrics-text")
    families = {family.name: family for family in parse_openmetrics(body.decode())}
    assert families["memscaler_gpu_transitions"].type == "counter"
    assert families["memscaler_gpu"].type == "info"
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert samples == series(render(snapshot)[0].decode())


def test_every_metric_of_the_table_is_there(snapshot):
    """The full snapshot has a sample of each metric, with exactly the labels of the table."""
    seen: dict[str, set[str]] = {}
    for name, labels in series(render(snapshot)[0].decode()):
        if not name.endswith(("_bucket", "_sum", "_count")):
            seen.setdefault(name, set()).add(",".join(sorted(key for key, _ in labels)))
    expected = {spec.name: {",".join(sorted(spec.labels))} for spec in SPECS if spec.kind is not Kind.HISTOGRAM}
    expected[HOST] = {"hostname,role,site"}
    assert seen == expected


def test_what_is_not_known_is_left_out(snapshot):
    """A GPU that cannot be read has no power, clock or energy series, rather than made-up ones."""
    names = {name for name, labels in series(render(snapshot)[0].decode()) if ("gpu", "1") in labels}
    assert "memscaler_gpu_state" in names
    assert "memscaler_gpu_transitions_total" in names
    for missing in ("power_watts", "mem_clock_hertz", "pstate", "energy_joules_total", "energy_baseline_watts"):
        assert f"memscaler_gpu_{missing}" not in names


def test_partial_readings(snapshot):
    """A card that tells its power only has its power only."""
    gpu = dataclasses.replace(snapshot.gpus[0], reading=GpuReading(snapshot.at_ns, power_w=9.0))
    text = render(dataclasses.replace(snapshot, gpus=(gpu,)))[0].decode()
    assert "memscaler_gpu_power_watts{" in text
    assert "memscaler_gpu_pstate{" not in text
    assert "memscaler_gpu_temperature_celsius{" not in text


def test_exactly_one_state_is_1(snapshot):
    """The states of a GPU add up to one, whatever it is."""
    for state in Public:
        gpu = dataclasses.replace(snapshot.gpus[0], state=state.value)
        found = series(render(dataclasses.replace(snapshot, gpus=(gpu,)))[0].decode())
        ones = [labels for (name, labels), value in found.items() if name == "memscaler_gpu_state" and value == 1]
        assert [dict(labels)["state"] for labels in ones] == [state]


def test_counters_start_at_zero(snapshot):
    """Counters are there before their first event, so that a rate sees it."""
    found = series(render(snapshot)[0].decode())
    bare = [value for (name, labels), value in found.items() if name.endswith("_total") and ("gpu", "1") in labels]
    assert len(bare) >= len(Public) * 2 + 3
    assert set(bare) == {0}


@pytest.mark.parametrize(
    ("latency_s", "bound_s"), [(0, 50e-6), (50e-6, 50e-6), (51e-6, 100e-6), (10, 10), (11, float("inf"))]
)
def test_latencies_fall_into_their_bucket(latency_s, bound_s):
    """A bound belongs to its own bucket, and counts are cumulative."""
    latencies = Latencies()
    latencies.add(latency_s)
    frozen = latencies.freeze()
    assert frozen.buckets == tuple((bound, int(bound >= bound_s)) for bound in (*WAKE_LATENCY_BUCKETS_S, float("inf")))
    assert frozen.sum_s == latency_s
