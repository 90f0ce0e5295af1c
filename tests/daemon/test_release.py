"""Letting go of the driver for its upgrade, and going on."""

from __future__ import annotations

from pathlib import Path

import pytest

from memscaler.cli.client import Client
from memscaler.core.errors import MemscalerError
from tests.governor import alive, connect, eventually, governing, listener, port_of

pytestmark = pytest.mark.usefixtures("quick_settings")


def test_release_and_resume(tmp_path):
    """Every GPU is woken, nothing of the driver is open, holds are kept; resuming governs in the same process."""
    with listener() as server:
        arguments = ["--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms", "--metrics", "127.0.0.1:0"]
        with governing(tmp_path, "a40", *arguments) as governor:
            board = governor.driver.boards[0]
            operator = Client(str(tmp_path))
            eventually(lambda: board.locks)
            guardian = governor.guardian_pid
            operator.change("release", reason="driver 590")
            assert not board.locks
            assert not sessions(governor.pid)
            eventually(lambda: not alive(guardian))
            assert operator.status()["mode"] == "released"
            assert "memscaler_released 1" in governor.metrics()
            with pytest.raises(MemscalerError, match="released"):
                operator.change("park")
            with connect(server):
                server.accept()[0].close()
            operator.change("resume")
            eventually(lambda: len(governor.events("memscaler.started")) == 2)
            eventually(lambda: board.locks)
            assert operator.status()["mode"] == "governing"
            assert "memscaler_released 0" in governor.metrics()
            assert governor.stop() == 0
            assert not board.locks


def sessions(pid: int) -> list[str]:
    """Descriptors of the simulated driver's state: as /dev/nvidia* with the real one."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:
            continue
        if target.endswith("/simulator/state"):
            found.append(target)
    return found


def test_released_outlives_a_restart(tmp_path):
    """A package that restarts the service in the middle of a driver's upgrade must not open the driver."""
    with listener() as server:
        arguments = ["--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms"]
        with governing(tmp_path, "a40", *arguments) as governor:
            Client(str(tmp_path)).change("release")
            assert governor.stop() == 0
            board = governor.driver.boards[0]
        started_again = governing_released(tmp_path, *arguments)
        try:
            eventually(lambda: started_again.events("driver.released"), within_s=30)
            assert Client(str(tmp_path)).status()["mode"] == "released"
            Client(str(tmp_path)).change("resume")
            eventually(lambda: board.locks)
        finally:
            assert started_again.stop() == 0
        assert not board.locks


def governing_released(tmp_path, *arguments):
    from tests.governor import Governor

    return Governor(tmp_path, "a40", *arguments)


def test_a_signal_ends_what_is_released(tmp_path):
    """SIGTERM ends it with 0."""
    with (
        listener() as server,
        governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0", "--idle-after", "200ms") as governor,
    ):
        Client(str(tmp_path)).change("release")
        assert governor.stop() == 0
