"""`--simulate` outside of the governor: attach to its boards if it left some, else make new ones."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memscaler.config.schema import Settings

OWN = "memscaler"  # a user's folder, beside that of a supervisor


def at_home(settings: Settings, own: Path | None = None) -> Settings:
    """With a runtime directory of the user's own, where the usual one is root's and does not have these boards."""
    if not settings.simulate or settings.origins.get("runtime_dir", "default") != "default":
        return settings
    if _may_write(settings.runtime_dir):
        return settings
    from memscaler.servers.places import by_hand
    from memscaler.simulator import boards_of, check_boards

    if boards_of(settings.runtime_dir) == check_boards(settings.simulate):
        return settings  # those of a governor, which everybody may use
    return dataclasses.replace(settings, runtime_dir=own or by_hand(os.environ, os.geteuid(), OWN))


def simulate(boards: tuple[str, ...], runtime_dir: Path) -> dict[str, str]:
    """Put the simulated driver in the real one's place, before anything opens the driver.

    Returns the environment with which child processes find it, too. Raise UsageError for other boards than those of a
    running governor: making these would take its own away. Raise PermissionMissing where there can be none.
    """
    if not boards:
        return {}
    from memscaler.core.errors import DaemonRunning, PermissionMissing, UsageError
    from memscaler.daemon.lock import refuse_beside_daemon
    from memscaler.simulator import boards_of, check_boards, start

    there = boards_of(runtime_dir)
    if there != check_boards(boards):
        try:
            if there:
                refuse_beside_daemon(runtime_dir)
        except DaemonRunning as error:
            hint = f"--simulate {','.join(there)}, or another --runtime-dir"
            raise UsageError(
                f"a memscaler with other simulated boards runs there (pid {error.pid})", hint=hint
            ) from error
        if not _may_write(runtime_dir):
            hint = "name a --runtime-dir that is yours"
            raise PermissionMissing(f"simulated boards cannot be kept in {runtime_dir}", hint=hint)
    return start(boards, runtime_dir)


def _may_write(runtime_dir: Path) -> bool:
    """Where the boards are, or whatever of it is there."""
    from memscaler.simulator.loading import STATE

    place = (runtime_dir / STATE).parent
    there = next(each for each in (place, *place.parents) if os.path.exists(each))  # noqa: PTH110  # no errors
    return os.access(there, os.W_OK | os.X_OK, effective_ids=True)
