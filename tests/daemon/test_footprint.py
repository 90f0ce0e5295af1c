"""The daemon sleeps when it has nothing to do and stays small: counted, never timed. bench/ has the figures."""

from __future__ import annotations

import time

import pytest

from bench.processes import resident_mb, usage
from bench.throughput import open_and_close
from tests.governor import connect, eventually, governing, listener, port_of

pytestmark = pytest.mark.usefixtures("quick_settings")
RESIDENT_MB = 60


def test_resident_memory(tmp_path):
    """Scrapes and parks leave the daemon below its promise."""
    with listener() as server, governing(tmp_path, "a40,p40", "--port", f"{port_of(server)}:gpu0,gpu1", "--idle-after", "100ms", "--metrics", "127.0.0.1:0") as governor:
        boards = governor.driver.boards
        for _ in range(20):
            eventually(lambda: all(board.locks for board in boards))
            governor.metrics()
            with connect(server):
                eventually(lambda: not any(board.locks for board in boards), within_s=5)
            server.accept()[0].close()
        assert resident_mb(governor.pid) <= RESIDENT_MB
        assert resident_mb(governor.guardian_pid) <= RESIDENT_MB


def test_parked_daemon_sleeps(tmp_path):
    """No polling: over 10 s with its GPUs parked, all threads together wake up a few times (samples), not steadily."""
    with listener() as server, governing(tmp_path, "a40,p40", "--port", f"{port_of(server)}:gpu0,gpu1", "--idle-after", "100ms") as governor:
        eventually(lambda: all(board.locks for board in governor.driver.boards))
        time.sleep(3)  # clocks are read back, and sampled once more
        before = usage(governor.pid), usage(governor.guardian_pid)
        time.sleep(10)
        daemon, guardian = usage(governor.pid).since(before[0]), usage(governor.guardian_pid).since(before[1])
        assert daemon.switches < 40
        assert guardian.switches == 0
        assert all(board.locks for board in governor.driver.boards)


def test_connections_to_an_awake_gpu_do_not_wake_the_daemon(tmp_path):
    """5000 connections on a watched port whose GPU a held-open one keeps awake: the kernel counts them alone."""
    with listener() as server, governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "60s", "--metrics", "127.0.0.1:0") as governor:
        with connect(server), server.accept()[0]:
            time.sleep(3)
            before = usage(governor.pid)
            open_and_close(server, 5000)
            spent = usage(governor.pid).since(before)
            assert spent.switches < 20
            port = f'port="{port_of(server)}"'
            accepts = [line for line in governor.metrics().splitlines() if line.startswith("memscaler_port_accepts_total") and port in line]
            assert float(accepts[0].split()[-1]) == 5001
