"""`memscaler top`: the GPUs live, with sparklines, and holds, parks and pauses from the keyboard."""

from __future__ import annotations

import os
import sys

import typer

from memscaler.cli.options import RuntimeDir


def top(runtime_dir: RuntimeDir = None) -> None:
    """Watch the GPUs live, and steer them: h holds the selected one for an hour, u ends that, p parks, ? shows more.

    For root; members of group memscaler may watch. Asks the daemon once a second while it is shown.
    """
    from memscaler.core.errors import UsageError

    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM", "dumb") in ("", "dumb"):
        hint = "for a file or a pipe: memscaler status --watch, or with --json for programs"
        raise UsageError("top needs a terminal that can move its cursor", hint=hint)

    from memscaler.cli.client import Client
    from memscaler.cli.top.app import App

    code = App(Client(runtime_dir)).run()
    if code:
        raise typer.Exit(code)
