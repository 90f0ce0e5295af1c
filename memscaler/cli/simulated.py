"""`--simulate` outside of the governor: attach to its boards if it left some, else make new ones."""

from __future__ import annotations

from pathlib import Path


def simulate(boards: tuple[str, ...], runtime_dir: Path) -> dict[str, str]:
    """Put the simulated driver in the real one's place, before anything opens the driver.

    Returns the environment with which child processes find it, too.
    """
    if not boards:
        return {}
    from memscaler.simulator import start

    return start(boards, runtime_dir)
