"""The table of the commands; what a line names is imported when it is used."""

from __future__ import annotations

import typer

from memscaler.cli.lazy import PLAIN, Entry, LazyGroup

COMMANDS = {
    "ls": Entry("memscaler.cli.gpuctl.look:ls", "Show the processes on GPUs, and what is set on them."),
    "get": Entry("memscaler.cli.gpuctl.look:get", "Show what is set on processes."),
    "set": Entry("memscaler.cli.gpuctl.change:set_knobs", "Freeze processes, or change their limits and priorities."),
    "reset": Entry("memscaler.cli.gpuctl.change:reset", "Set processes back to the defaults."),
}


class _Gpuctl(LazyGroup):
    table = COMMANDS


app = typer.Typer(
    cls=_Gpuctl,
    no_args_is_help=True,
    help="Look at the processes on GPUs, and freeze, limit or deprioritise them.",
    epilog="Begin with docs/gpuctl.md. [[gpuctl]] in the configuration does it while clients are connected.",
    **PLAIN,
)


@app.callback()
def _gpuctl() -> None:
    """Look at the processes on GPUs, and freeze, limit or deprioritise them."""
