"""`memscaler servers import`: gppm's YAML files become descriptions in TOML."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from memscaler.cli.options import Json
from memscaler.cli.output import plain, print_json, show

ENDINGS = (".yaml", ".yml")
FAILED = 1
MODE = 0o644
MOST_BYTES = 1 << 20


def import_gppm(
    source: Annotated[
        Path,
        typer.Argument(metavar="FILE|DIR", help="A YAML file of gppm, or a directory of them.", show_default=False),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Where the files go. Default: /etc/memscaler/servers.d."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the files and write none.")] = False,
    as_json: Json = False,
) -> None:
    """Write a TOML file for each YAML file, with the same servers. A file that is there already is never replaced.

    Nothing has to be imported: YAML files below servers.d are read as they are.
    """
    from memscaler.config.schema import DEFAULT_FILE

    folder = output or DEFAULT_FILE.parent / "servers.d"
    made, problems = _all_converted(_files(source), folder, go_on=source.is_dir())
    _check_free([target for _, target, _, _ in made], dry_run=dry_run)
    if not dry_run:
        for _, target, text, _ in made:
            _write(target, text)
    if as_json:
        told = [{"source": str(file), "file": str(target), "servers": names} for file, target, _, names in made]
        print_json({"dry_run": dry_run, "files": told, "problems": problems})
    elif dry_run:
        show("\n".join(f"# {plain(target)}\n{text}" for _, target, text, _ in made).rstrip("\n"))
    elif made:
        show("\n".join(f"wrote {plain(target)}: {', '.join(map(plain, names))}" for _, target, _, names in made))
        show("next: memscaler config check; sudo memscaler servers apply")
    if problems:
        for sentence in problems:
            print(f"memscaler: {plain(sentence)}", file=sys.stderr)
        raise typer.Exit(FAILED)


Made = tuple[Path, Path, str, list[str]]  # the file, what it becomes, that one's text, the names in it


def _all_converted(files: Sequence[Path], folder: Path, *, go_on: bool) -> tuple[list[Made], list[str]]:
    """And what is wrong with the others, if it goes on after one; else raise MemscalerError."""
    from memscaler.core.errors import MemscalerError

    made: list[Made] = []
    problems: list[str] = []
    for file in files:
        try:
            made.append((file, folder / f"{file.stem}.toml", *_converted(file)))
        except MemscalerError as error:
            if not go_on:
                raise
            problems += [f"left out: {line}" for line in str(error).splitlines()]
    return made, problems


def _files(source: Path) -> list[Path]:
    """Raise UsageError if there is none."""
    from memscaler.core.errors import UsageError

    if source.is_dir():
        found = sorted(each for each in source.iterdir() if each.suffix in ENDINGS)
        if not found:
            raise UsageError(f"{source} has no YAML files", hint="name a file, or another directory")
        return found
    if not source.is_file():
        raise UsageError(f"{source} is not there", hint="name a YAML file of gppm, or a directory of them")
    return [source]


def _converted(file: Path) -> tuple[str, list[str]]:
    """A TOML text and the names of its servers. Raise ConfigError."""
    from memscaler.config import gppm
    from memscaler.core.errors import ConfigError, PermissionMissing

    try:
        with file.open(encoding="utf-8") as stream:
            text = stream.read(MOST_BYTES)
    except PermissionError as error:
        raise PermissionMissing(f"you may not read {file}") from error
    except UnicodeDecodeError as error:
        hint = "name a YAML file of gppm; a model is served by `memscaler serve`, or described with model = ..."
        raise ConfigError(f"{file} is no text, so it is no YAML", hint=hint) from error
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    servers = gppm.read(text, str(file))
    head = f"# From {json.dumps(str(file), ensure_ascii=False)[1:-1]}, by `memscaler servers import`.\n\n"
    return head + gppm.write(servers), [server.name for server in servers]


def _check_free(targets: list[Path], *, dry_run: bool) -> None:
    """Before the first is written. Raise MemscalerError."""
    from memscaler.core.errors import MemscalerError, UsageError

    twice = sorted({str(target) for target in targets if targets.count(target) > 1})
    if twice:
        raise UsageError(
            f"two files would become {twice[0]}", hint="import them one by one, into different directories"
        )
    there = [target for target in targets if os.path.lexists(target)]
    if there and not dry_run:
        listed = ", ".join(map(str, there))
        raise MemscalerError(f"{listed}: there already", hint="remove it first, or name another directory (--output)")


def _write(target: Path, text: str) -> None:
    """Raise MemscalerError."""
    from memscaler.core.errors import MemscalerError, PermissionMissing

    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(target, flags, MODE), "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), MODE)  # whatever the umask
    except PermissionError as error:
        raise PermissionMissing(f"cannot write {target}", hint="sudo memscaler servers import ...") from error
    except OSError as error:
        raise MemscalerError(f"cannot write {target}: {error.strerror}") from error
