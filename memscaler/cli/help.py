"""`memscaler help COMMAND`, for who does not think of `memscaler COMMAND --help`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from memscaler.core.errors import UsageError


def show_help(
    context: typer.Context,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="COMMAND", help="Default: the list of commands.", show_default=False)
    ] = None,
) -> None:
    """Show the help of a command: the same as `memscaler COMMAND --help`."""
    asked: Any = context.parent
    for word in command or []:
        if not hasattr(asked.command, "resolve_command"):
            raise UsageError(f"`{asked.command_path}` has no commands of its own", hint="see `memscaler help`")
        name, found, _ = asked.command.resolve_command(asked, [word])
        asked = type(context)(found, info_name=name, parent=asked)
    print(asked.get_help())
