"""`memscaler`: the entry point, and what its commands have in common."""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from memscaler import __version__
from memscaler.cli.errors import exit_with, interruptible
from memscaler.cli.lazy import PLAIN, Entry, LazyGroup
from memscaler.cli.quick import convert_quickly

# Every command, in the order of the help. What a line names is imported when its command is used: so a new command is
# a new line here, and whatever it needs costs the others nothing. A group is a line, too, with its typer.Typer.
# Afterwards `make generate` writes the shell completion and the manual anew; a test compares them.
COMMANDS = {
    "run": Entry("memscaler.cli.run:run", "Park quiet GPUs, wake them when a client connects."),
    "serve": Entry("memscaler.cli.serve:serve", "Serve a model, planned and governed, until Ctrl-C.", "ServeCommand"),
    "gpus": Entry("memscaler.cli.gpus:gpus", "Show the GPUs and what parking would do."),
    "ports": Entry("memscaler.cli.ports:ports", "Show the servers that listen, their GPUs, and what is watched."),
    "restore": Entry("memscaler.cli.restore:restore", "Wake what a memscaler that is gone left parked."),
    "status": Entry("memscaler.cli.status:status", "Show what the running daemon does, and why.", "StatusCommand"),
    "top": Entry("memscaler.cli.top:top", "Watch GPUs live, and steer them by keyboard."),
    "verify": Entry("memscaler.cli.verify:verify", "Check that every GPU is as memscaler means it to be."),
    "report": Entry("memscaler.cli.report.command:report", "Tell what was used and saved, and what could have been."),
    "hold": Entry("memscaler.cli.hold:hold", "Keep GPUs awake: for a time, or while a command runs.", "HoldCommand"),
    "unhold": Entry("memscaler.cli.hold:unhold", "End holds."),
    "park": Entry("memscaler.cli.steer:park", "Park GPUs now."),
    "pause": Entry("memscaler.cli.steer:pause", "Keep every GPU awake."),
    "resume": Entry("memscaler.cli.steer:resume", "Govern again, after pause or release."),
    "release": Entry("memscaler.cli.steer:release", "Let go of the driver, for its upgrade."),
    "wake": Entry("memscaler.cli.wake:wake", "Bring servers back out of deeper sleep."),
    "sleep": Entry("memscaler.cli.wake:sleep", "Take servers down to a deeper stage now."),
    "suspend": Entry("memscaler.cli.suspend:app", "Suspend the whole machine, or keep it up."),
    "reload": Entry("memscaler.cli.steer:reload", "Read the configuration anew."),
    "gateway": Entry(
        "memscaler.cli.gateway:gateway", "Hold clients while their server wakes, pass everything through."
    ),
    "servers": Entry("memscaler.cli.servers.group:app", "Run model servers as described, and steer them by name."),
    "plan": Entry("memscaler.cli.planning.plan:plan", "Plan where models go on the GPUs, and what fits."),
    "analyze": Entry("memscaler.cli.planning.analyze:analyze", "Show what a model file needs in memory."),
    "gpuctl": Entry("memscaler.cli.gpuctl.group:app", "Show what runs on GPUs, and freeze, limit or deprioritise it."),
    "setup": Entry("memscaler.cli.setup:setup", "Make a service of this installation, and remove it again."),
    "doctor": Entry("memscaler.cli.doctor:doctor", "Check whether this machine has what it takes, and what to do."),
    "calibrate": Entry("memscaler.cli.calibrate:calibrate", "Measure what parking saves and costs on this machine."),
    "config": Entry("memscaler.cli.config:app", "Begin, check and show the configuration."),
    "help": Entry("memscaler.cli.help:show_help", "Show the help of a command."),
}
EPILOG = (
    "Exit codes: 0 ok, 1 failed, 2 usage, 3 daemon not running, 4 no permission, 69 no usable kernel feature or GPU, "
    "78 bad configuration. "
    "MEMSCALER_DEBUG=1 shows tracebacks."
)


class _Memscaler(LazyGroup):
    table = COMMANDS


app = typer.Typer(
    name="memscaler",
    cls=_Memscaler,
    help="Parks the GPUs of quiet LLM servers in their lowest power state, and wakes them when a client connects.",
    epilog=EPILOG,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    **PLAIN,  # the completion is in files (completions/), which start no python
)


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
    """Run the command line of this process, and exit. The entry point is memscaler.__main__."""
    _open_streams()
    with exit_with(), interruptible():
        convert_quickly()
        app(prog_name="memscaler")  # also as `python -m memscaler`
    sys.exit(0)
