"""Rivals: who changes a clock behind our back is reported, and never fought."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest

from memscaler.cli.client import Client
from tests.governor import connect, eventually, governing, listener, port_of

pytestmark = pytest.mark.usefixtures("quick_settings")
SET, RESET = "nvmlDeviceSetMemoryLockedClocks", "nvmlDeviceResetMemoryLockedClocks"
RIVAL = """
import sys, pynvml
pynvml.nvmlInit()
getattr(pynvml, sys.argv[1])(pynvml.nvmlDeviceGetHandleByIndex(0), *map(int, sys.argv[2:]))
"""


def rival(governor, *call: str) -> None:
    """`nvidia-smi -lmc` by hand, as the driver sees it."""
    environment = {**os.environ, **governor.driver.environment}
    subprocess.run([sys.executable, "-c", RIVAL, *call], env=environment, check=True, timeout=30)


def test_a_clock_changed_behind_our_back(tmp_path, monkeypatch):
    """Reported with what was seen; our own setting is undone once; that GPU is left alone for a while, then parked."""
    monkeypatch.setenv("MEMSCALER_CONFLICT_PAUSE", "3s")
    monkeypatch.setenv("MEMSCALER_SAMPLE_EVERY", "1s")
    with (
        listener() as server,
        governing(tmp_path, "a40,a40", "--port", f"{port_of(server)}:gpu0,gpu1", "--idle-after", "200ms") as governor,
    ):
        board, other = governor.driver.boards
        eventually(lambda: board.memory_clock_mhz == 405 and other.memory_clock_mhz == 405)
        mark = governor.driver.log_mark()
        rival(governor, SET, "7251", "7251")
        (told,) = eventually(lambda: governor.events("gpu.overridden"), within_s=15)
        assert told["what"] == "the memory clock is 7251 MHz, and was set to 405 MHz"
        status = Client(str(tmp_path)).status()["gpus"]
        assert status[0]["conflict"] == told["what"]
        assert [hold["reason"] for hold in status[0]["holds"]] == ["conflict"]
        assert status[1]["conflict"] == ""
        time.sleep(1)
        ours = [call for call in governor.driver.call_log([SET, RESET], after=mark) if call.pid == governor.pid]
        assert [(call.symbol, call.gpu) for call in ours] == [(RESET, 0)], "that is fighting"
        assert other.locks, "the other GPU has nothing to do with it"
        eventually(lambda: board.memory_clock_mhz == 405, within_s=10)
        eventually(lambda: Client(str(tmp_path)).status()["gpus"][0]["conflict"] == "")


def test_a_lock_reset_by_somebody(tmp_path, monkeypatch):
    """`nvidia-smi -rmc` while parked: noticed as well, and a client finds the GPU up."""
    monkeypatch.setenv("MEMSCALER_SAMPLE_EVERY", "1s")
    with (
        listener() as server,
        governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms") as governor,
    ):
        board = governor.driver.boards[0]
        eventually(lambda: board.memory_clock_mhz == 405)
        rival(governor, RESET)
        eventually(lambda: governor.events("gpu.overridden"), within_s=15)
        with connect(server):
            eventually(lambda: not board.is_slow)
        server.accept()[0].close()


def test_a_gpu_that_somebody_keeps_slow(tmp_path, monkeypatch):
    """`nvidia-smi -lmc 405` while its server works: said once, and nothing is done to a setting that is not ours."""
    monkeypatch.setenv("MEMSCALER_SAMPLE_EVERY", "1s")
    with (
        listener() as server,
        governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "1h") as governor,
        connect(server),
    ):
        board = governor.driver.boards[0]
        board.set_utilization(90)
        rival(governor, SET, "405", "405")
        (told,) = eventually(lambda: governor.events("gpu.overridden"), within_s=15)
        assert "its memory clock at 405 MHz" in told["what"]
        time.sleep(3)
        assert len(governor.events("gpu.overridden")) == 1
        assert [call.pid for call in governor.driver.call_log([SET, RESET])] != [governor.pid]
        assert board.memory_lock
        assert governor.stop() == 0
        assert board.memory_lock, "it is not ours to undo"


@pytest.mark.parametrize(
    ("name", "arguments"), [("nvidia-pstated", ()), ("gppmd", ()), ("zeusd", ()), ("lact", ("daemon",))]
)
def test_rivals_that_run_are_named(tmp_path, name, arguments):
    """A program that sets clocks by itself is named in the status, with its pid."""
    program = tmp_path / name
    program.write_text("#!/bin/sh\nread forever\n")
    program.chmod(0o755)
    running = subprocess.Popen([program, *arguments], stdin=subprocess.PIPE)
    try:
        with (
            listener() as server,
            governing(
                tmp_path / "run", "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms"
            ) as governor,
        ):
            named = eventually(lambda: Client(str(governor.runtime_dir)).status()["rivals"])
            assert [(rival["name"], rival["pid"]) for rival in named] == [(name, running.pid)]
    finally:
        running.kill()
        running.wait()


def test_a_server_that_does_not_boost_is_named(tmp_path):
    """CUDA_DISABLE_PERF_BOOST=1 in a watched server's environment: the status says that parking may gain nothing."""
    server = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); time.sleep(60)"
    environment = {**os.environ, "CUDA_DISABLE_PERF_BOOST": "1"}
    running = subprocess.Popen([sys.executable, "-c", server], env=environment, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    try:
        port = int(running.stdout.readline())
        with governing(tmp_path, "a40", "--port", f"{port}:gpu0") as governor:
            governor.driver.boards[0].add_process(running.pid)
            with socket.create_server(("127.0.0.1", 0)):  # somebody listens anew: the machine is looked at
                time.sleep(1)
            (named,) = eventually(lambda: Client(str(tmp_path)).status()["rivals"])
            assert (named["name"], named["pid"]) == ("CUDA_DISABLE_PERF_BOOST=1", running.pid)
            assert governor.stop() == 0
    finally:
        running.kill()
        running.wait()
