"""A group whose commands are imported when they are used. Its help needs no more than a table of them."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperGroup

from memscaler.core.errors import UsageError

PLAIN: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None, "pretty_exceptions_enable": False}


@dataclass(frozen=True, slots=True)
class Entry:
    """A command of the table.

    where: "module:function", or "module:app" with a typer.Typer, which is a group with commands of its own.
    short_help: its line in the list of commands; the function's docstring is its own help.
    cls: the name of a TyperCommand's subclass in the same module, for a command line that is out of the ordinary.
    """

    where: str
    short_help: str
    cls: str = ""

    def load(self, name: str) -> Any:
        """The command, ready to be run."""
        module_name, _, attribute = self.where.partition(":")
        module = importlib.import_module(module_name)
        target = getattr(module, attribute)
        if isinstance(target, typer.Typer):
            return _finished(typer.main.get_group(target), name)
        app = typer.Typer(**PLAIN)
        cls = getattr(module, self.cls) if self.cls else None
        app.command(name, cls=cls, short_help=self.short_help)(target)
        return _finished(typer.main.get_command(app), name)


class Commands(Mapping[str, Any]):
    """The commands of a table by their names, each made at its first use."""

    def __init__(self, table: Mapping[str, Entry]) -> None:
        self._table = table
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = self._table[name].load(name)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)


class HelpfulGroup(TyperGroup):
    """Where a command says only what is wrong with its arguments, its help is named."""

    def invoke(self, ctx: Any) -> Any:
        """Raise UsageError with a hint."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            error.hint = error.hint or f"see `{ctx.command_path} {ctx.invoked_subcommand or ''}".rstrip() + " --help`"
            raise


class LazyGroup(HelpfulGroup):
    """Subclasses have the table."""

    table: Mapping[str, Entry]

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = Commands(self.table)  # type: ignore[assignment]  # nobody adds any

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """For the help: from the table, without a look at the commands themselves."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.short_help) for name, entry in self.table.items()])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Raise UsageError with the nearest command for one that is not there."""
        if args[0] not in self.table:
            near = difflib.get_close_matches(args[0], self.table, n=1)
            hint = f"did you mean `{ctx.command_path} {near[0]}`?" if near else f"see `{ctx.command_path} --help`"
            raise UsageError(f"no such command: {args[0]!r}", hint=hint)
        return super().resolve_command(ctx, args)


def _finished(command: Any, name: str) -> Any:
    command.name = name
    below = getattr(command, "commands", {})
    for each in [command, *([] if isinstance(below, Commands) else below.values())]:
        for param in each.params:
            if param.param_type_name == "argument" and param.metavar:
                param.metavar = param.metavar.strip("[].")  # the usage has brackets and dots of its own
    return command
