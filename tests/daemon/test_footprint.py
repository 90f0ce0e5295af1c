"""The daemon sleeps when it has nothing to do and stays small: counted, never timed. bench/ has the figures."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.processes import resident_mb, usage
from bench.throughput import open_and_close
from tests.daemon.waking import wake_ups
from tests.governor import Governor, connect, eventually, governing, listener, port_of

pytestmark = pytest.mark.usefixtures("quick_settings")
RESIDENT_MB = 60


@contextlib.contextmanager
def governed(folder: Path, boards: str, idle_after: str) -> Iterator[tuple[Governor, socket.socket]]:
    """A governor with metrics whose boards all belong to one port, and that port's listener."""
    gpus = ",".join(f"gpu{index}" for index in range(len(boards.split(","))))
    with listener() as server:
        arguments = ["--port", f"{port_of(server)}:{gpus}", "--idle-after", idle_after, "--metrics", "127.0.0.1:0"]
        with governing(folder, boards, *arguments) as governor:
            yield governor, server


def test_resident_memory(tmp_path):
    """Scrapes and parks leave the daemon below its promise."""
    with governed(tmp_path, "a40,p40", "100ms") as (governor, server):
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
    with governed(tmp_path, "a40,p40", "100ms") as (governor, _):
        eventually(lambda: all(board.locks for board in governor.driver.boards))

        def wait() -> None:
            before = usage(governor.guardian_pid)
            time.sleep(10)
            assert usage(governor.guardian_pid).since(before).switches == 0

        assert wake_ups(governor, wait) < 40
        assert all(board.locks for board in governor.driver.boards)


def test_connections_to_an_awake_gpu_do_not_wake_the_daemon(tmp_path):
    """5000 connections on a watched port whose GPU a held-open one keeps awake: the kernel counts them alone."""
    with contextlib.ExitStack() as kept:
        governor, server = kept.enter_context(governed(tmp_path, "a40", "60s"))
        kept.enter_context(connect(server))
        kept.enter_context(server.accept()[0])
        assert wake_ups(governor, lambda: open_and_close(server, 5000)) < 20
        accepts = rf'^memscaler_port_accepts_total{{port="{port_of(server)}",.*}} (\S+)$'
        assert re.findall(accepts, governor.metrics(), re.MULTILINE) == ["5001.0"]
