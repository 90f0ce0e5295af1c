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
    """Wake what a memscaler that is gone left parked. May be run any number of times, but not beside a running one."""
    from memscaler.cli.simulated import simulate as start_simulation
    from memscaler.core.errors import DaemonRunning, MemscalerError, PermissionMissing
    from memscaler.daemon.guardian import JOURNAL
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
    report = restore_from(settings.runtime_dir / JOURNAL, all_levers=everything)
    if as_json:
        from memscaler.cli.output import print_json

        print_json({"ok": report.ok, "gpus": report.gpus})
    else:
        print(report)
    if report.permission_missing:
        raise PermissionMissing("you may not wake GPUs")
    if not report.ok:
        raise typer.Exit(FAILED)
