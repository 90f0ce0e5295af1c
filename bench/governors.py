"""A governor as the benches want it: the real `memscaler run`, quick to park, with simulated boards."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.governor import Governor, connect, eventually, governing, port_of

SETTINGS = 'min_dwell = "0s"\n'


@contextlib.contextmanager
def governor_on(
    server: socket.socket, boards: str, *arguments: str, idle_after: str = "100ms", by_connections: bool = True
) -> Iterator[Governor]:
    """Watches the server's port for all boards; parks `idle_after` the last connection, as often as that comes.

    by_connections: False for the product's default options, where open and silent connections do not count.
    """
    with tempfile.TemporaryDirectory(prefix="memscaler-bench-") as folder:
        config = Path(folder) / "config.toml"
        config.write_text(SETTINGS)
        gpus = ",".join(f"gpu{index}" for index in range(len(boards.split(","))))
        told = ["--port", f"{port_of(server)}:{gpus}", "--idle-after", idle_after, "--config", str(config)]
        with governing(Path(folder) / "run", boards, *told, *arguments, by_connections=by_connections) as governor:
            yield governor


def wait_parked(governor: Governor) -> None:
    """Until every board is."""
    eventually(lambda: all(board.locks for board in governor.driver.boards), within_s=20, what="every board parked")


def wait_awake(governor: Governor, within_s: float = 5) -> None:
    """Until no board is held down."""
    eventually(lambda: not any(board.locks for board in governor.driver.boards), within_s=within_s, what="all awake")


def park_and_wake(governor: Governor, server: socket.socket) -> None:
    """One of each."""
    wait_parked(governor)
    with connect(server):
        wait_awake(governor)
    server.accept()[0].close()
