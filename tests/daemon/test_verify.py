"""What `verify` makes of a GPU, from what the driver says, the governor means and the journal knows; and what it costs."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from memscaler.cli.client import Client
from memscaler.core.model import Phase
from memscaler.core.snapshot import GpuReading, GpuSnapshot, Histogram, HoldSnapshot, Identity, Intent
from memscaler.daemon.answers import APART_NS
from memscaler.daemon.verify import LEFT, Known, judge
from tests.cli.commands import memscaler
from tests.governor import connect, eventually, governing, listener, port_of

RESET = "nvmlDeviceResetMemoryLockedClocks"
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


@pytest.mark.parametrize("phase", [Phase.WAKING, Phase.UNMANAGED])
@pytest.mark.parametrize("remedy", ["", "reboot"])
def test_a_wake_in_vain(phase, remedy):
    """Between two attempts or during one, it works with its clocks down: a drift, by our doing and nobody else's."""
    gpu = replace(GPU, state="unmanaged", intent=None, remedy=remedy, reading=replace(DOWN, utilization_ratio=1.0))
    found = judge(gpu, Known(phase, (405, 7251), False, "still down", 1), ASKED_NS)
    assert (found.verdict, found.detail) == ("drift", "not at full speed yet: still down")
    assert found.remedy == (remedy or LEFT)
    assert found.seen == "memory clock 405 MHz"


@pytest.mark.parametrize("reading", [None, replace(DOWN, at_ns=ASKED_NS - 1)])
def test_a_wake_that_hangs(reading):
    """Then nothing can be read either, and what was read before does not count; the reason and the remedy are told."""
    gpu = replace(GPU, state="unmanaged", intent=None, remedy="reboot", reading=reading)
    found = judge(gpu, Known(Phase.WAKING, (405, 7251), True, "the driver does not return", 1), ASKED_NS)
    assert (found.verdict, found.remedy, found.seen) == ("unknown", "reboot", "")
    assert found.detail == "the GPU does not answer: the driver does not return"


def test_awake_again_after_a_wake_in_vain():
    """It is not trusted any more, and that is all."""
    gpu = replace(GPU, state="unmanaged", intent=None, reading=UP)
    assert judge(gpu, Known(Phase.UNMANAGED, (405, 7251), False, "still down", 3), ASKED_NS).verdict == "ok"


def test_a_wake_that_fails(tmp_path):
    """A client is served at 405 MHz because the driver ignores the wake: `verify` says so, with what to do."""
    with (
        listener() as server,
        governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms") as governor,
    ):
        board = governor.driver.boards[0]
        eventually(lambda: Client(str(tmp_path)).verify()["ok"] and board.is_slow)
        board.inject(RESET, ignore=True)
        board.set_utilization(100)
        with connect(server):
            eventually(lambda: governor.events("gpu.alarmed"))
            result = memscaler(tmp_path, "verify")
            assert result.returncode == 1
            first, second, *_ = result.stdout.splitlines()
            assert first.startswith("gpu0  DRIFT  unmanaged: not at full speed yet: undone, but still down: memory clo")
            assert second.startswith("      do: does another program set its clocks? ")
            board.clear_faults()
            eventually(lambda: not board.is_slow)
            eventually(lambda: Client(str(tmp_path)).verify()["ok"], within_s=20)
        server.accept()[0].close()


def test_many_who_ask_at_once(tmp_path):
    """They share readings, of which there are few; and each gets some that are younger than its question."""
    with (
        listener() as server,
        governing(
            tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", env={"MEMSCALER_SAMPLE_EVERY": "1h"}
        ) as governor,
        connect(server),
    ):
        board, client, answers, ended = governor.driver.boards[0], Client(str(tmp_path)), [], threading.Event()

        def ask() -> None:
            while not ended.is_set():
                answers.append(client.verify()["gpus"][0]["verdict"])

        eventually(lambda: client.status()["gpus"][0]["state"] == "awake")
        time.sleep(3)  # the samples that follow a change of state
        governor.driver.log_everything()
        mark, began_ns = governor.driver.log_mark(), time.monotonic_ns()
        askers = [threading.Thread(target=ask) for _ in range(6)]
        for asker in askers:
            asker.start()
        for percent in (10, 20, 30, 40):
            board.set_utilization(percent)
            assert client.verify()["gpus"][0]["utilization_ratio"] == percent / 100
        ended.set()
        for asker in askers:
            asker.join()
        reads = len(governor.driver.call_log("nvmlDeviceGetPerformanceState", after=mark))
        most = (time.monotonic_ns() - began_ns) // APART_NS + 2
        print(f"{len(answers)} answers, {reads} readings, at most {most}")
        assert 4 <= reads <= most
        assert len(answers) > 2 * reads
        assert set(answers) == {"ok"}
