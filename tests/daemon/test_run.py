"""The whole governor, from real connections to the simulated driver's call log."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.governor import connect, eventually, governing, listener, port_of

pytestmark = pytest.mark.usefixtures("quick_settings")
SET, RESET = "nvmlDeviceSetMemoryLockedClocks", "nvmlDeviceResetMemoryLockedClocks"


def value(text: str, name: str, **labels: str) -> float:
    """One sample of a scrape."""
    for line in text.splitlines():
        match = re.fullmatch(rf"{name}(?:{{(.*)}})? (\S+)", line)
        if match and all(f'{key}="{word}"' in (match[1] or "") for key, word in labels.items()):
            return float(match[2])
    raise AssertionError(f"no {name} {labels}")


def test_parks_when_quiet_and_wakes_on_connection(tmp_path):
    """A quiet GPU parks, a connection wakes it, and it parks again after the connection has gone."""
    with (
        listener() as server,
        governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "300ms") as governor,
    ):
        board = governor.driver.boards[0]
        eventually(lambda: board.memory_clock_mhz == 405)
        client = connect(server)
        served = server.accept()[0]
        eventually(lambda: board.memory_lock is None, within_s=1)
        time.sleep(0.8)
        assert board.memory_lock is None
        client.close()
        served.close()
        eventually(lambda: board.memory_clock_mhz == 405)


def test_connection_older_than_the_start_keeps_the_gpu_awake(tmp_path):
    """What was open before the governor started counts; its end lets the GPU park."""
    with listener() as server:
        client = connect(server)
        served = server.accept()[0]
        with governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms") as governor:
            time.sleep(1)
            assert not governor.driver.call_log([SET])
            client.close()
            served.close()
            eventually(lambda: governor.driver.boards[0].memory_lock)


def test_half_closed_client_still_waiting_is_live(tmp_path):
    """A client that has said everything and waits for its answer keeps the GPU awake."""
    with (
        listener() as server,
        governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms") as governor,
    ):
        client = connect(server)
        served = server.accept()[0]
        client.shutdown(1)
        time.sleep(1)
        assert governor.driver.boards[0].memory_lock is None
        served.close()
        client.close()
        eventually(lambda: governor.driver.boards[0].memory_lock)


def test_gpus_are_independent_and_shared_gpu_waits_for_all(tmp_path):
    """gpu0 serves both ports and parks only when both are quiet; gpu1 goes by its own port."""
    with listener() as one, listener() as two:
        ports = ["--port", f"{port_of(one)}:gpu0", "--port", f"{port_of(two)}:gpu0,gpu1"]
        with governing(tmp_path, "a40,p40", *ports, "--idle-after", "300ms") as governor:
            first, second = governor.driver.boards
            eventually(lambda: first.locks and second.locks)
            with connect(one):
                served = one.accept()[0]
                eventually(lambda: not first.locks, within_s=1)
                time.sleep(0.7)
                assert second.forced_pstate == 8
                assert not first.locks
            served.close()
            eventually(lambda: first.locks)
            with connect(two):
                eventually(lambda: not first.locks and not second.locks, within_s=1)
            two.accept()[0].close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_every_gpu_is_awake_before_the_end(tmp_path, number):
    """A signal wakes every GPU before the process ends, within a second, also if it comes twice."""
    with (
        listener() as server,
        governing(
            tmp_path, "a40,p40,a100", "--port", f"{port_of(server)}:gpu0,gpu1,gpu2", "--idle-after", "200ms"
        ) as governor,
    ):
        boards = governor.driver.boards
        eventually(lambda: all(board.locks for board in boards))
        started = time.monotonic()
        governor.process.send_signal(number)
        governor.process.send_signal(number)
        assert governor.process.wait(5) == 0
        took_s = time.monotonic() - started
        assert not any(board.locks for board in boards)
        assert took_s < 3  # the promise is one second on an idle machine; bench/ measures it
    assert not list((tmp_path / "journal").glob("GPU-*"))


def test_second_daemon_names_the_first(tmp_path):
    """One daemon per machine: the second ends at once with the first one's pid."""
    with listener() as server, governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0") as governor:
        second = subprocess.run(
            [
                sys.executable,
                "-m",
                "memscaler",
                "run",
                "--simulate",
                "a40",
                "--port",
                "1:gpu0",
                "--runtime-dir",
                str(tmp_path),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert second.returncode == 1
        assert f"pid {governor.pid}" in second.stderr
        assert "Traceback" not in second.stderr


def test_dry_run_touches_nothing(tmp_path):
    """--dry-run sees real connections and says what it would do, without one setter call."""
    with (
        listener() as server,
        governing(
            tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms", "--dry-run"
        ) as governor,
    ):
        eventually(lambda: governor.events("lever.pretended"))
        with connect(server):
            eventually(lambda: any("undo" in event["detail"] for event in governor.events("lever.pretended")))
        assert not governor.driver.call_log([SET, RESET])
        assert governor.stop() == 0


def test_metrics_tell_what_happened(tmp_path):
    """Connections, states, latency, watts and saved joules are in the scrape, and promtool has nothing to say."""
    with (
        listener() as server,
        governing(
            tmp_path,
            "a40,p40",
            "--port",
            f"{port_of(server)}:gpu0,gpu1",
            "--idle-after",
            "2s",
            "--metrics",
            "127.0.0.1:0",
        ) as governor,
    ):
        boards = governor.driver.boards
        eventually(lambda: all(board.locks for board in boards))
        time.sleep(3.5)
        parked = governor.metrics()
        port = str(port_of(server))
        assert value(parked, "memscaler_gpu_state", gpu="0", state="parked") == 1
        assert value(parked, "memscaler_gpu_power_watts", gpu="0") < 60  # A one-second average
        assert value(parked, "memscaler_gpu_energy_baseline_watts", gpu="0") == pytest.approx(80, rel=0.05)
        assert value(parked, "memscaler_gpu_energy_saved_joules_total", gpu="0") > 60
        assert value(parked, "memscaler_gpu_energy_saved_joules_total", gpu="1") > 40
        assert value(parked, "memscaler_port_connections", port=port) == 0
        with connect(server):
            eventually(lambda: not any(board.locks for board in boards), within_s=1)
            time.sleep(0.2)
            awake = governor.metrics()
        server.accept()[0].close()
        assert value(awake, "memscaler_gpu_state", gpu="0", state="awake") == 1
        assert value(awake, "memscaler_port_connections", port=port) == 1
        assert value(awake, "memscaler_port_accepts_total", port=port) == 1
        assert value(awake, "memscaler_reset_latency_seconds_count", gpu="1") == 1
        assert value(awake, "memscaler_bpf_hook_attached", hook="sockops") == 1
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=awake, capture_output=True, text=True, check=False
        )
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_port_alone_finds_the_gpu_of_its_listener(tmp_path):
    """`--port 8080` asks the driver which GPU the listening process uses."""
    with listener() as server, governing(tmp_path, "a40,p40", "--port", "1:gpu0") as governor:
        governor.driver.boards[1].add_process(os.getpid())
        governor.stop()
        with governing(tmp_path, "a40,p40", "--port", str(port_of(server)), "--idle-after", "200ms") as found:
            eventually(lambda: found.driver.boards[1].locks)
            assert not found.driver.boards[0].locks


def test_generation_that_outlives_its_connection_keeps_the_gpu_awake(tmp_path):
    """A busy GPU is not parked although nobody is connected; it parks when the work is done."""
    with listener() as server, governing(tmp_path, "a40", "--port", "1:gpu0") as governor:
        governor.driver.boards[0].set_utilization(80)
        governor.stop()
        with governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms") as busy:
            eventually(lambda: busy.events("gpu.park_skipped"))
            assert not busy.driver.call_log([SET])
            busy.driver.boards[0].set_utilization(0)
            eventually(lambda: busy.driver.boards[0].locks)


def test_runs_in_an_environment_without_bcc(tmp_path):
    """The daemon's own Python cannot import bcc; the loader runs under the distribution's and is gone afterwards."""
    assert subprocess.run([sys.executable, "-c", "import bcc"], capture_output=True, check=False).returncode != 0
    with listener() as server, governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0") as governor:
        assert governor.events("kernel.attached")[0]["python"] == "/usr/bin/python3"
        children = Path(f"/proc/{governor.pid}/task/{governor.pid}/children").read_text().split()
        assert children == [str(governor.guardian_pid)]
        assert "libbcc" not in Path(f"/proc/{governor.pid}/maps").read_text()
