"""`--simulate` outside of the governor: attach to its boards if it left some, else make new ones."""

from __future__ import annotations

from pathlib import Path


def simulate(boards: tuple[str, ...], runtime_dir: Path) -> dict[str, str]:
    """Put the simulated driver in the real one's place, before anything opens the driver.

    Returns the environment with which child processes find it, too. Raise UsageError for other boards than those of a
    running governor: making these would take its own away.
    """
    if not boards:
        return {}
    from memscaler.core.errors import DaemonRunning, UsageError
    from memscaler.daemon.lock import refuse_beside_daemon
    from memscaler.simulator import boards_of, check_boards, start

    there = boards_of(runtime_dir)
    if there and there != check_boards(boards):
        try:
            refuse_beside_daemon(runtime_dir)
        except DaemonRunning as error:
            hint = f"--simulate {','.join(there)}, or another --runtime-dir"
            raise UsageError(
                f"a memscaler with other simulated boards runs there (pid {error.pid})", hint=hint
            ) from error
    return start(boards, runtime_dir)
