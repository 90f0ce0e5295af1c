"""`memscaler restore`: undo what a memscaler that is gone left behind.

Of the configuration file it wants only where the journal is, and does without it if the file is broken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from memscaler.cli.options import Json, RuntimeDir, Simulate, settings_anyway

FAILED = 1


def restore(
    everything: Annotated[
        bool,
        typer.Option("--all", help="Reset every lever of every GPU, whoever set it, not only what memscaler left."),
    ] = False,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="Wait until the memscaler that runs is gone, then restore. It sleeps meanwhile."),
    ] = False,
    runtime_dir: RuntimeDir = None,
    simulate: Simulate = None,
    as_json: Json = False,
) -> None:
    """Wake what a memscaler that is gone left parked, let go of applications, and bring back servers that sleep deeper.

    May be run any number of times, but not beside a running memscaler.
    """
    from memscaler.cli.simulated import simulate as start_simulation
    from memscaler.core.errors import DaemonRunning, MemscalerError, PermissionMissing
    from memscaler.daemon.journals import JOURNAL
    from memscaler.daemon.lock import prepare_runtime_dir, refuse_beside_daemon, wait_until_free
    from memscaler.gpu.restore import restore_from

    settings = settings_anyway({"runtime_dir": runtime_dir, "simulate": simulate})
    try:
        if not wait:
            refuse_beside_daemon(settings.runtime_dir)
    except DaemonRunning as error:
        hint = "it wakes its GPUs itself: `memscaler pause`, or stop it"
        raise MemscalerError(str(error), hint=hint) from error
    start_simulation(settings.simulate, settings.runtime_dir)
    if wait:
        prepare_runtime_dir(settings.runtime_dir)
        wait_until_free(settings.runtime_dir)
    say = _nothing if as_json else _say
    try:
        report = restore_from(settings.runtime_dir / JOURNAL, all_levers=everything)
    except PermissionMissing:
        raise
    except MemscalerError:  # without its driver a GPU cannot be helped, but applications and servers can
        _undo(settings.runtime_dir, _say)
        raise
    say(map(str, report.gpus))
    undone = _Undone() if report.permission_missing else _undo(settings.runtime_dir, say)
    say(() if report.gpus or undone.applications or undone.servers else (str(report),))
    ok = report.ok and undone.ok
    if as_json:
        from memscaler.cli.output import print_json

        print_json({"ok": ok, "gpus": report.gpus, "applications": undone.applications, "servers": undone.servers})
    if report.permission_missing:
        raise PermissionMissing("you may not wake GPUs")
    if not ok:
        raise typer.Exit(FAILED)


@dataclass(frozen=True, slots=True)
class _Undone:
    """Beside the GPUs: a line for each application and each server that there was something to do for."""

    ok: bool = True
    applications: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()


def _undo(runtime_dir: Path, say: Callable[[Iterable[str]], None]) -> _Undone:
    """What stands still goes on first: a server may take minutes."""
    from memscaler.gvm import undo as applications
    from memscaler.sleep import undo as servers

    try:
        let_go = applications.undo(runtime_dir)
        say(let_go.lines())
    finally:  # whatever hinders the one, the other is not to wait for an operator
        back = servers.undo(runtime_dir)
        say(back.lines())
    return _Undone(let_go.ok and back.ok, let_go.lines(), back.lines())


def _say(lines: Iterable[str]) -> None:
    print("".join(f"{line}\n" for line in lines), end="", flush=True)


def _nothing(_: Iterable[str]) -> None:
    """It is said at the end."""
