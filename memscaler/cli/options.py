"""Options that several commands share, with help and defaults from the one schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from memscaler.config.schema import BY_KEY, DEFAULT_FILE


def setting(key: str, *names: str, metavar: str = "") -> Any:
    """A typer option for a setting."""
    option = BY_KEY[key]
    default = f" Default: {option.default}." if option.default not in ("", "false") else ""
    text = f"{option.help}{default} [{option.env[0]}]"
    return typer.Option(*names, help=text, metavar=metavar or None, show_default=False)


Config = Annotated[
    Path | None,
    typer.Option("--config", help=f"Configuration file. Default: {DEFAULT_FILE}, if it is there.", metavar="FILE"),
]
RuntimeDir = Annotated[str | None, setting("runtime_dir", "--runtime-dir", metavar="DIR")]
Simulate = Annotated[str | None, setting("simulate", "--simulate", metavar="BOARDS")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
