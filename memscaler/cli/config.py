"""`memscaler config`: begin a file, check one, see what is in force and where it comes from."""

from __future__ import annotations

import errno
import os
import shlex
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memscaler.cli.lazy import HelpfulGroup
from memscaler.cli.options import Config, Json
from memscaler.cli.output import INDENT, plain, print_json, show
from memscaler.cli.redraw import width

if TYPE_CHECKING:
    from memscaler.config.load import Examined

BAD = 78
KEY_WIDTH, ORIGIN_AT = 16, 48
MODE = 0o644
RUN_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer(
    cls=HelpfulGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Begin a configuration, check it, see what is in force.",
)


@app.command("init", short_help="A file to begin with: every setting, commented.")
def init(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it there; a new file has mode 0644.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Print a complete file: every setting with its default, commented out. It changes nothing as it is."""
    from memscaler.config.render import sample
    from memscaler.core.errors import MemscalerError, PermissionMissing

    if output is None:
        show(sample().rstrip("\n"))
        return
    try:
        _write(output, sample(), _replaced(output) if force else None)
    except FileExistsError as error:
        raise MemscalerError(f"{output} is there already", hint="--force replaces it") from error
    except PermissionError as error:
        raise PermissionMissing(f"cannot write {output}") from error
    except OSError as error:
        raise MemscalerError(f"cannot write {output}: {error.strerror}") from error
    show(
        f"wrote {plain(output)}; `memscaler config check {plain(shlex.quote(str(output)))}` checks what you make of it"
    )


def _replaced(path: Path) -> os.stat_result | None:
    """The file that gives way; None: there is none. A link, a FIFO or a device is none of ours: raise OSError."""
    try:
        # O_PATH: to open a device or a FIFO may already do something
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is there, and no regular file")
    return status


def _write(path: Path, text: str, old: os.stat_result | None) -> None:
    """All of it or nothing: a full disk leaves the old file, whose owner and mode the new one takes over."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp") if old else path
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(draft, flags, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if old:
                os.fchown(descriptor, old.st_uid, old.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(old.st_mode) if old else MODE)  # whatever the umask
            os.fsync(descriptor)
        if old:
            draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


@app.command("check", short_help="Tell everything that is wrong with a file.")
def check(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]",
            help="With conf.d/*.toml and servers.d/* beside it. Default: the one that `run` would read.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a file, and the environment, as `memscaler run` would, and tell everything that is wrong: exit code 78.

    Changes nothing; needs no root, no GPU and no free port. GPUs that are named and not there are told where NVIDIA's
    driver is loaded. What else this machine lacks: `memscaler doctor`.
    """
    from memscaler.cli.present import absent, unsure
    from memscaler.config import gpuctl_doubts
    from memscaler.config.environment import unknown
    from memscaler.config.load import examine
    from memscaler.config.sleep_doubts import doubts

    found = examine({}, os.environ, file)
    problems, warnings = [*found.problems], [*unknown(os.environ), *found.ignored]
    # of another file than that of `run`, as in a repository, nobody knows yet who will own it
    refused = problems if file is None else warnings
    refused += [f"{brief}: `run` refuses it" for brief in found.refusals]
    if found.settings is not None:
        refused += absent(found.settings)
        if file is None and (sentence := unsure(found.settings)):
            warnings.append(sentence)
    is_idle = found.settings is not None and not found.settings.watches and not found.settings.discover
    if is_idle and found.settings is not None and not found.settings.gateways:
        warnings.append("no port is watched: add a [[watch]] table, or discover = true")
    warnings += [
        f"{server.origin}: server {server.name}: no port is known, so nothing watches it"
        for server in (found.settings.servers if found.settings else ())
        if server.enabled and server.port is None
    ]
    warnings += [*doubts(found.settings), *gpuctl_doubts.here(found.settings)] if found.settings else []
    warnings += [] if found.settings else gpuctl_doubts.of_rules(found.rules)
    if as_json:
        first = found.files[0] if found.files else None
        told = {"ok": not problems, "file": first, "files": found.files, "problems": problems, "warnings": warnings}
        print_json(told)
    else:
        _tell(found, problems, warnings)
    if problems:
        raise typer.Exit(BAD)


def _tell(found: Examined, problems: list[str], warnings: list[str]) -> None:
    for sentence in problems:
        print(f"memscaler: {plain(sentence)}", file=sys.stderr)
    for sentence in warnings:
        print(f"warning: {plain(sentence)}", file=sys.stderr)
    if found.settings is None or problems:
        return
    what = found.names or "no file; the defaults and the environment"
    ports, gpus = len(found.settings.watches), len(found.settings.gpus)
    count = len(found.settings.servers)
    tables = f", {count} server{'s' * (count != 1)}" * bool(count)
    tables += ", every server that is found" * found.settings.discover
    if ports or not found.settings.discover:
        tables += f", {ports} watched port{'s' * (ports != 1)}"
    tables += f", settings of {gpus} GPU{'s' * (gpus != 1)}" * bool(gpus)
    rules = ((found.settings.stages, "stage"), (found.settings.gateways, "gateway"), (found.settings.gpuctl, "rule"))
    for several, each in rules:
        tables += f", {len(several)} {each}{'s' * (len(several) != 1)}" * bool(several)
    show(f"{plain(what)}: good{tables}")


@app.command("show", context_settings=RUN_FLAGS, short_help="The settings in force, and where they come from.")
def show_settings(
    context: typer.Context,
    origin: Annotated[bool, typer.Option("--origin", help="Tell where each value comes from.")] = False,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show the settings that `memscaler run` would have with the same flags, which may follow: `--idle-after 5s`.

    With --origin each has the flag, the variable, the line of the file or "default" beside it.
    """
    from memscaler.config.load import load
    from memscaler.config.render import effective

    settings = load(_flags(context), os.environ, config)
    rows = effective(settings)
    if as_json:
        print_json({"settings": [{"key": key, "value": value, "origin": where} for key, value, where in rows]})
        return
    room = width() if sys.stdout.isatty() else sys.maxsize  # who searches in it wants a setting in one line
    for line in _table([(key, value, where if origin else "") for key, value, where in rows], room):
        show(line)


def _table(rows: Sequence[tuple[str, object, str]], room: int) -> Iterator[str]:
    """A line for each, and more only where it is longer than `room`; origins in a column of their own."""
    from memscaler.config.render import literal

    heads = [f"{plain(key):<{KEY_WIDTH}} =" for key, _, _ in rows]
    texts = [f"{head} {plain(literal(value))}" for head, (_, value, _) in zip(heads, rows, strict=True)]
    at = max((len(text) for text in texts if len(text) < ORIGIN_AT), default=0)
    for head, text, (_, value, where) in zip(heads, texts, rows, strict=True):
        last = text
        if len(text) > room and isinstance(value, list):
            yield from (f"{head} [", *_broken(value, room))
            last = "]"
        line = f"{last:<{at}}  ({plain(where)})" if where else last
        yield from [line] if len(line) <= room or not where else [last, f"{'':<{at}}  ({plain(where)})"]


def _broken(values: Sequence[object], room: int) -> Iterator[str]:
    """Elements of a list, as many in a line as it has room for."""
    from memscaler.config.render import literal

    line = INDENT
    for text in (f"{plain(literal(each))}," for each in values):
        if line != INDENT and len(line) + len(text) > room:
            yield line.rstrip()
            line = INDENT
        line += f"{text} "
    yield line.rstrip()


def _flags(context: typer.Context) -> dict[str, Any]:
    """The flags of `memscaler run` among the arguments, by the keys of the settings."""
    from memscaler.cli.run import run

    parser = typer.Typer(rich_markup_mode=None, add_completion=False)
    parser.command()(run)
    told = typer.main.get_command(parser).make_context(None, list(context.args), parent=context)
    given = {"watch" if name == "port" else name: value for name, value in told.params.items() if name != "config"}
    return {key: value or None for key, value in given.items()}


@app.command("schema", short_help="The file's JSON Schema, for editors.")
def schema() -> None:
    """Print the JSON Schema (draft 2020-12) of the file, by which editors complete and check it as it is typed."""
    import json

    from memscaler.config.render import json_schema

    show(json.dumps(json_schema(), indent=2))
