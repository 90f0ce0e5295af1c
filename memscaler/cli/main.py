"""`memscaler`: the entry point, and what its commands have in common."""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from memscaler import __version__
from memscaler.cli import gpus, hold, ports, restore, run, status, steer
from memscaler.cli.errors import exit_with

EPILOG = (
    "Exit codes: 0 ok, 1 failed, 2 usage, 3 daemon not running, 4 no permission, 69 no usable kernel feature or GPU, "
    "78 bad configuration. "
    "MEMSCALER_DEBUG=1 shows tracebacks."
)

app = typer.Typer(
    name="memscaler",
    help="Parks the GPUs of quiet LLM servers in their lowest power state, and wakes them when a client connects.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run", short_help="Park quiet GPUs, wake them when a client connects.")(run.run)
app.command("gpus", short_help="Show the GPUs and what parking would do.")(gpus.gpus)
app.command("ports", short_help="Show the servers that listen, their GPUs and what would be watched.")(ports.ports)
app.command("restore", short_help="Wake what a memscaler that is gone left parked.")(restore.restore)
app.command("status", short_help="Show what the running daemon does, and why.")(status.status)
app.command("hold", cls=hold.HoldCommand, short_help="Keep GPUs awake: for a time, or while a command runs.")(hold.hold)
app.command("unhold", short_help="End holds.")(hold.unhold)
app.command("park", short_help="Park GPUs now.")(steer.park)
app.command("pause", short_help="Keep every GPU awake.")(steer.pause)
app.command("resume", short_help="Govern again, after pause or release.")(steer.resume)
app.command("release", short_help="Let go of the driver, for its upgrade.")(steer.release)
app.command("reload", short_help="Read the configuration anew.")(steer.reload)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"memscaler {__version__}")
        raise typer.Exit


@app.callback()
def _callback(
    _wanted: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Parks the GPUs of quiet LLM servers in their lowest power state, and wakes them when a client connects."""


def _open_streams() -> None:
    """Where a standard stream is closed (2>&-), what is opened next would take its number, and get what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def main() -> NoReturn:
    """Run the command line of this process, and exit."""
    _open_streams()
    with exit_with():
        app()
    sys.exit(0)
