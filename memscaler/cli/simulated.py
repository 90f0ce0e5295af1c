"""`--simulate` outside of the governor: attach to its boards if it left some, else make new ones."""

from __future__ import annotations

from pathlib import Path


def simulate(boards: tuple[str, ...], runtime_dir: Path) -> None:
    """Put the simulated driver in the real one's place, before anything opens the driver."""
    if boards:
        from memscaler.simulator import start

        start(boards, runtime_dir)
