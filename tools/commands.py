"""The command line as data: what the shell completion and the manual are made from. It comes from the CLI itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import typer.main

from memscaler.cli.main import COMMANDS, app
from memscaler.config.gpuctl import How
from memscaler.config.schema import LEVERS
from memscaler.core.gpuctl import Knob
from memscaler.core.watch import Quiet
from memscaler.daemon.doctor.table import CHECKS
from memscaler.simulator import known_boards

FILE, DIRECTORY, GPU, COMMAND, SHELL = "file", "directory", "gpu", "command", "shell"
TIMES = ("30s", "5m", "30m", "2h")
LISTS = frozenset({"BOARDS"})  # words that may follow each other behind commas
CHECK_IDS = (*sorted({check.id.rpartition("-")[0] for check in CHECKS}), *(check.id for check in CHECKS))
Value = str | tuple[str, ...]
# What can be completed, by the word that stands for a value in the help, of one command or of all.
# A tuple: these words. (): it can be anything.
VALUES: dict[str, Value] = {
    "ADDRESS": (),
    "BOARDS": tuple(known_boards()),
    "ADDRESS|off": ("off", "127.0.0.1:9824"),
    "COMMAND": COMMAND,
    "DIR": DIRECTORY,
    "FILE": FILE,
    "FILE|DIR": FILE,
    "FORMAT": ("auto", "console", "json"),
    "GPU": GPU,
    "GPU,...": GPU,
    "HOST:PORT|off": ("off", "127.0.0.1:9823"),
    "ID": (),
    "doctor ID": CHECK_IDS,
    "KEY": (),
    "LEVEL": ("debug", "info", "warning", "error"),
    "LEVER": LEVERS,
    "MODEL": FILE,
    "MEANS": get_args(How),
    "MIB": (),
    "MAC": (),
    "N": (),
    "NAME": (),
    "NAME|PORT": (),
    "ORDER": ("free_desc", "total_desc", "index"),
    "PATH": (),
    "PATH|off": ("off", "/health"),
    "PORT": (),
    "PORT[@SCOPE][:GPU,...]": (),
    "PREFIX": (),
    "PRICE": (),
    "PROCESS|KNOB": tuple(Knob),
    "PROCESS|KNOB=VALUE": ("compute.freeze=1", "compute.freeze=0", "compute.priority=", "memory.limit="),
    "PROGRAM": FILE,
    "PYTHON": FILE,
    "SERVER": (),
    "SIZE": ("24GiB",),
    "STAGE": ("server-sleep", "checkpoint", "stop-server"),
    "TEXT": (),
    "TIME": TIMES,
    "TIME|DATE": ("24h", "7d", "30d"),
    "TIME|off": ("off", "250ms", "1s"),
    "TYPE": ("f16", "q8_0", "q4_0"),
    "USER": (),
    "WHEN": tuple(Quiet),
    "http|tcp": ("http", "tcp"),
    "on|off|auto": ("on", "off", "auto"),
}


@dataclass(frozen=True, slots=True)
class Option:
    """names: all spellings. metavar: of its value; "": it is a switch. many: it may be given several times.

    value: what that may be. may: it may be left out.
    """

    names: tuple[str, ...]
    metavar: str
    help: str
    many: bool
    may: bool
    value: Value

    @property
    def brief(self) -> str:
        """The first sentence of its help, without examples."""
        return re.split(r"\.(?:$| )|[;,:] e\.g\.|, e\.g\.| \(|: \d", self.help)[0]


@dataclass(frozen=True, slots=True)
class Argument:
    """A word of the command line that is no option."""

    metavar: str
    help: str
    many: bool
    required: bool
    value: Value


@dataclass(frozen=True, slots=True)
class Command:
    """path: "" for memscaler itself, "config init" for a command of a group. wraps: behind -- a command line begins.

    lent: options of another command that it takes as well.
    """

    path: str
    short_help: str
    help: str
    usage: str
    options: tuple[Option, ...]
    arguments: tuple[Argument, ...]
    commands: tuple[Command, ...]
    wraps: bool
    lent: tuple[Option, ...] = ()

    @property
    def name(self) -> str:
        """Its last word."""
        return self.path.rpartition(" ")[2]

    def walk(self) -> Iterator[Command]:
        """It, and all below it."""
        yield self
        for each in self.commands:
            yield from each.walk()


def tree() -> Command:
    """The whole command line."""
    root: Any = typer.main.get_command(app)
    return _command(root, root.help, typer.Context(root, info_name="memscaler", **root.context_settings))


def _command(command: Any, short_help: str, context: Any) -> Command:
    path = context.command_path.removeprefix("memscaler").strip()
    below = []
    for name, each in getattr(command, "commands", {}).items():
        line = each.get_short_help_str(200) if path else COMMANDS[name].short_help
        below.append(_command(each, line, typer.Context(each, info_name=name, parent=context)))
    options = _options(command, path, context)
    lender = command.context_settings.get("ignore_unknown_options") and context.find_root().command.commands["run"]
    known = {name for each in options for name in each.names}
    usage = " ".join(command.collect_usage_pieces(context))
    return Command(
        path,
        short_help,
        (command.help or "").strip(),
        usage,
        options,
        tuple(_argument(each, path) for each in command.params if each.param_type_name == "argument"),
        tuple(below),
        wraps="[-- COMMAND" in usage,
        lent=tuple(each for each in _options(lender, "run", context) if not known & {*each.names}) if lender else (),
    )


def _options(command: Any, path: str, context: Any) -> tuple[Option, ...]:
    return tuple(_option(each, path) for each in command.get_params(context) if each.param_type_name == "option")


def _option(param: Any, path: str) -> Option:
    names = tuple(sorted({*param.opts, *param.secondary_opts}, key=lambda name: (name.startswith("--"), name)))
    metavar = "" if param.is_flag else param.metavar or "TEXT"
    may = metavar.startswith("[")
    metavar = metavar.strip("[]") if may else metavar
    return Option(names, metavar, _sentence(param.help), param.multiple, may, _value(metavar, path))


def _argument(param: Any, path: str) -> Argument:
    metavar = param.metavar or param.name.upper()
    return Argument(metavar, _sentence(param.help), param.nargs == -1, param.required, _value(metavar, path))


def _value(metavar: str, path: str) -> Value:
    """Raise KeyError for a word that VALUES lacks."""
    return VALUES[f"{path} {metavar}"] if f"{path} {metavar}" in VALUES else VALUES[metavar] if metavar else ()


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split())
