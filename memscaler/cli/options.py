"""Options that several commands share, with help and defaults from the one schema."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from memscaler.config.schema import BY_KEY, DEFAULT_FILE, Settings


def setting(key: str, *names: str, metavar: str = "") -> Any:
    """A typer option for a setting."""
    option = BY_KEY[key]
    default = f" Default: {option.default}." if option.default not in ("", "false") else ""
    text = f"{option.help}{default} [{option.env[0]}]"
    return typer.Option(*names, help=text, metavar=metavar or None, show_default=False)


def settings_anyway(flags: Mapping[str, object]) -> Settings:
    """The settings, without the configuration file if that is broken or may not be read."""
    from memscaler.config.load import load
    from memscaler.core.errors import ConfigError, PermissionMissing

    try:
        return load(flags, os.environ)
    except (ConfigError, PermissionMissing, OSError):
        return settings_without_file(flags)


def settings_without_file(flags: Mapping[str, object]) -> Settings:
    """If a variable is wrong, without all of them but those that tell where and with which driver memscaler runs."""
    from memscaler.config.load import without_file
    from memscaler.core.errors import ConfigError

    try:
        return without_file(flags, os.environ)
    except ConfigError:
        needed = (name for key in ("runtime_dir", "simulate") for name in BY_KEY[key].env)
        return without_file(flags, {name: os.environ[name] for name in needed if name in os.environ})


Config = Annotated[
    Path | None,
    typer.Option("--config", help=f"Configuration file. Default: {DEFAULT_FILE}, if it is there.", metavar="FILE"),
]
RuntimeDir = Annotated[str | None, setting("runtime_dir", "--runtime-dir", metavar="DIR")]
Simulate = Annotated[str | None, setting("simulate", "--simulate", metavar="BOARDS")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Gpus = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="GPU",
        help="gpu0 or 0, a beginning of its UUID, or its PCI address. Default: all.",
        show_default=False,
    ),
]
Reason = Annotated[
    str, typer.Option("--reason", metavar="TEXT", help="Why, for whoever looks at the status.", show_default=False)
]
