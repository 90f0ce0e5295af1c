"""`memscaler restore`: undo what a memscaler that is gone left behind.

Of the configuration file it wants only where the journal is, and does without it if the file is broken.
"""

from __future__ import annotations

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
    """Wake what a memscaler that is gone left parked, then its servers that sleep deeper, deepest stage first.

    May be run any number of times, but not beside a running memscaler.
    """
    from memscaler.cli.simulated import simulate as start_simulation
    from memscaler.core.errors import DaemonRunning, MemscalerError, PermissionMissing
    from memscaler.daemon.guardian import JOURNAL
    from memscaler.daemon.lock import prepare_runtime_dir, refuse_beside_daemon, wait_until_free
    from memscaler.gpu.restore import restore_from
    from memscaler.sleep.undo import Report, undo

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
    try:
        report = restore_from(settings.runtime_dir / JOURNAL, all_levers=everything)
    except PermissionMissing:
        raise
    except MemscalerError:  # without its driver a GPU cannot be helped, but servers can
        print("".join(f"{line}\n" for line in undo(settings.runtime_dir).lines()), end="")
        raise
    if not as_json:
        print(report, flush=True)  # servers may take minutes
    servers = Report() if report.permission_missing else undo(settings.runtime_dir)
    if as_json:
        from memscaler.cli.output import print_json

        print_json({"ok": report.ok and servers.ok, "gpus": report.gpus, "servers": servers.lines()})
    else:
        print("".join(f"{line}\n" for line in servers.lines()), end="")
    if report.permission_missing:
        raise PermissionMissing("you may not wake GPUs")
    if not (report.ok and servers.ok):
        raise typer.Exit(FAILED)
