"""`memscaler run`: the governor in the foreground."""

from __future__ import annotations

import os
import sys
from typing import Annotated

from memscaler.cli.govern import become_governor
from memscaler.cli.options import Config, RuntimeDir, Simulate, setting
from memscaler.config.environment import unknown
from memscaler.config.load import load


def run(
    port: Annotated[list[str] | None, setting("watch", "--port", "-p", metavar="PORT[@SCOPE][:GPU,...]")] = None,
    discover: Annotated[bool, setting("discover", "--discover")] = False,
    idle_after: Annotated[str | None, setting("idle_after", "--idle-after", metavar="TIME")] = None,
    quiet: Annotated[str | None, setting("quiet", "--quiet", metavar="WHEN")] = None,
    ignore: Annotated[list[str] | None, setting("ignore", "--ignore", metavar="PREFIX")] = None,
    touch: Annotated[str | None, setting("touch", "--touch", metavar="TIME|off")] = None,
    config: Config = None,
    dry_run: Annotated[bool, setting("dry_run", "--dry-run")] = False,
    simulate: Simulate = None,
    lever: Annotated[str | None, setting("lever", "--lever", metavar="LEVER")] = None,
    metrics: Annotated[str | None, setting("metrics", "--metrics", metavar="HOST:PORT|off")] = None,
    runtime_dir: RuntimeDir = None,
    log_format: Annotated[str | None, setting("log_format", "--log-format", metavar="FORMAT")] = None,
    log_level: Annotated[str | None, setting("log_level", "--log-level", metavar="LEVEL")] = None,
    loader_python: Annotated[str | None, setting("loader_python", "--loader-python", metavar="PYTHON")] = None,
) -> None:
    """Govern: park GPUs whose ports are quiet, wake them when a client connects. Ctrl-C wakes all and ends."""
    flags = {
        "watch": port,
        "discover": discover or None,
        "idle_after": idle_after,
        "quiet": quiet,
        "ignore": ignore,
        "touch": touch,
        "dry_run": dry_run or None,
        "simulate": simulate,
        "lever": lever,
        "metrics": metrics,
        "runtime_dir": runtime_dir,
        "log_format": log_format,
        "log_level": log_level,
        "loader_python": loader_python,
    }
    load(flags, os.environ, config)  # whatever is wrong is said here, before anything is started
    for sentence in unknown(os.environ):
        print(f"warning: {sentence}", file=sys.stderr)
    become_governor(flags, config)
