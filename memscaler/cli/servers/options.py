"""Options and arguments that several of these commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Names = Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Of servers.", show_default=False)]
All = Annotated[bool, typer.Option("--all", help="All servers.")]
User = Annotated[
    str | None,
    typer.Option(
        "--user", metavar="USER", help="Of this user's supervisor. Default: of all supervisors.", show_default=False
    ),
]
SupervisorDir = Annotated[
    str | None,
    typer.Option(
        "--runtime-dir",
        metavar="DIR",
        help="Of the supervisor. Default: all below /run, and your own.",
        show_default=False,
    ),
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Do not wait until the servers are ready, or failed.")]
