"""From SIGTERM to the end of the process, with three boards parked by three different levers."""

from __future__ import annotations

import signal
import time

from bench.figures import Figure, spread
from bench.governors import governor_on, wait_parked
from tests.governor import listener

BOARDS = "a40,p40,a100"
LIMIT_MS = 1000.0


def stop_ms() -> tuple[float, int, int]:
    """(milliseconds, boards left parked, exit status)."""
    with listener() as server, governor_on(server, BOARDS) as governor:
        wait_parked(governor)
        started = time.monotonic()
        status = governor.stop(signal.SIGTERM)
        took_ms = (time.monotonic() - started) * 1000
        return took_ms, sum(bool(board.locks) for board in governor.driver.boards), status


def bench(*, quick: bool) -> list[Figure]:
    """Median and maximum, and that nothing stayed parked."""
    stops = [stop_ms() for _ in range(5 if quick else 20)]
    return [
        *spread("SIGTERM -> exit, 3 boards parked", [ms for ms, _, _ in stops], "ms", (LIMIT_MS, LIMIT_MS)),
        Figure("boards left parked", sum(left for _, left, _ in stops), limit=0),
        Figure("exits with another status than 0", sum(status != 0 for _, _, status in stops), limit=0),
    ]
