"""Options and arguments that several of these commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PROCESS = "PID, UNIT, PORT, container:NAME or cgroup:/PATH; pid:N or port:N where a number is both"

GvmRoot = Annotated[
    Path | None,
    typer.Option(
        "--gvm-root",
        metavar="DIR",
        help="Where debugfs is. Default: root of [gvm], /sys/kernel/debug.",
        show_default=False,
    ),
]
ProcRoot = Annotated[
    Path | None,
    typer.Option(
        "--proc-root", metavar="DIR", help="Where proc is. Default: proc_root of [gvm], /proc.", show_default=False
    ),
]
How = Annotated[
    str,
    typer.Option(
        "--how",
        metavar="MEANS",
        help="By what to freeze: gvm, cgroup or signal. Default: auto, the best that can be had.",
        show_default=False,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
Timeout = Annotated[
    str,
    typer.Option(
        "--timeout",
        metavar="TIME",
        help="How long to wait for one write; a lower memory.limit moves memory to the host first.",
    ),
]
