"""What `verify` makes of a GPU, from what the driver says, the governor means and the journal knows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memscaler.core.model import Phase
from memscaler.core.snapshot import GpuReading, GpuSnapshot, Histogram, HoldSnapshot, Identity, Intent
from memscaler.daemon.verify import Known, judge

ASKED_NS = 1000
DOWN = GpuReading(ASKED_NS, memory_clock_mhz=405, graphics_clock_mhz=210, pstate=8, utilization_ratio=0.0)
UP = replace(DOWN, memory_clock_mhz=7251, graphics_clock_mhz=1740, pstate=0)
MEMORY, GRAPHICS, PSTATE = Intent("memory-clock", 405), Intent("graphics-clock", 210), Intent("pstate", 8)
CONFLICT = (HoldSnapshot("", "memscaler", "conflict", 60.0),)
HELD = (HoldSnapshot("5eed", "root", "conflict", 60.0),)  # an operator's own words
GPU = GpuSnapshot(
    identity=Identity(0, "GPU-a", "00000000:3B:00.0", "NVIDIA A40"),
    state="parked",
    since_ns=0,
    reason="quiet",
    lever="memory-clock",
    next_ns=0,
    next="",
    state_s={},
    state_energy_j={},
    transitions={},
    energy_j=None,
    energy_source="",
    energy_saved_j=0.0,
    baseline_w=None,
    reading=DOWN,
    wake_latency=Histogram((), 0.0),
    intent=MEMORY,
)


@pytest.mark.parametrize(
    ("gpu", "phase", "journaled", "verdict"),
    [
        (GPU, Phase.PARKED, True, "ok"),
        (replace(GPU, intent=GRAPHICS), Phase.PARKED, True, "ok"),
        (replace(GPU, intent=PSTATE), Phase.PARKED, True, "ok"),
        (replace(GPU, reading=replace(DOWN, memory_clock_mhz=408)), Phase.PARKED, True, "ok"),  # some kHz off
        (replace(GPU, reading=UP), Phase.PARKED, True, "drift"),
        (replace(GPU, reading=UP, intent=GRAPHICS), Phase.PARKED, True, "drift"),
        (replace(GPU, reading=UP, intent=PSTATE), Phase.PARKED, True, "drift"),
        (GPU, Phase.PARKED, False, "drift"),
        (replace(GPU, reading=None), Phase.PARKED, True, "unknown"),
        (replace(GPU, reading=replace(DOWN, at_ns=ASKED_NS - 1)), Phase.PARKED, True, "unknown"),
        (replace(GPU, reading=replace(DOWN, memory_clock_mhz=None)), Phase.PARKED, True, "unknown"),
        (replace(GPU, reading=UP, intent=None), Phase.PARKED, True, "changing"),  # the park settles
        (replace(GPU, state="cooling", intent=None), Phase.PARKING, True, "changing"),
        (replace(GPU, state="awake", intent=None), Phase.WAKING, True, "changing"),
        (replace(GPU, state="awake", intent=None, reading=UP), Phase.AWAKE, False, "ok"),
        (replace(GPU, state="awake", intent=None), Phase.AWAKE, False, "ok"),  # it idles
        (
            replace(GPU, state="awake", intent=None, reading=replace(DOWN, utilization_ratio=0.9)),
            Phase.AWAKE,
            False,
            "drift",
        ),
        (replace(GPU, state="awake", intent=None, reading=UP), Phase.AWAKE, True, "drift"),
        (replace(GPU, state="unmanaged", intent=None, remedy="reboot"), Phase.UNMANAGED, True, "drift"),
        (replace(GPU, state="held", intent=None, reading=UP, holds=CONFLICT), Phase.COOLING, False, "drift"),
        (replace(GPU, state="held", intent=None, reading=UP, holds=HELD), Phase.COOLING, False, "ok"),
    ],
)
def test_a_verdict(gpu, phase, journaled, verdict):
    """For each case; what is no pass says what was found, and a drift or a silence what to do."""
    found = judge(gpu, Known(phase, (405, 7251), journaled), ASKED_NS)
    assert found.verdict == verdict
    assert found.detail
    assert bool(found.remedy) == (verdict in ("drift", "unknown"))
    assert gpu.remedy in found.remedy
