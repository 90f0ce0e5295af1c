"""`memscaler servers logs`: from the journal, or from the file that a server writes."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, BinaryIO, NoReturn

import typer

from memscaler.cli.output import plain
from memscaler.cli.servers.options import SupervisorDir, User

LINES = "50"
LOOK_EVERY_S = 0.25
BLOCK_BYTES = 65536
MOST_LINES = 1_000_000


def logs(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Of a server; NAME.HOOK of one of its hooks.", show_default=False)
    ],
    lines: Annotated[str, typer.Option("--lines", "-n", metavar="N", help="How many of the last lines.")] = LINES,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    user: User = None,
    runtime_dir: SupervisorDir = None,
) -> None:
    """Show what a server has written: from the journal, where there is one, else from its file. It may be stopped."""
    from memscaler.core.errors import UsageError

    if not lines.isascii() or not lines.isdigit() or int(lines) > MOST_LINES:
        raise UsageError(f"--lines: {plain(lines)!r} is no number of lines", hint="see `memscaler servers logs --help`")
    place = _place(name, user, runtime_dir)
    sys.stdout.flush()
    if place["path"]:
        _file(Path(place["path"]), int(lines), follow=follow)
    else:
        _journal(place["identifier"], lines, follow=follow)


def _place(name: str, user: str | None, runtime_dir: str | None) -> Mapping[str, str]:
    """Where its log is: as its supervisor says; if none runs, where it would be. Raise MemscalerError."""
    from memscaler.cli.servers.supervisors import SupervisorNotRunning, running, unknown

    try:
        answers = running(user, runtime_dir)
    except SupervisorNotRunning:
        return _without_supervisor(name, user)
    known = {str(each["name"]): supervisor for supervisor, document in answers for each in document["servers"]}
    owner = next((each for each in _owners(name) if each in known), None)
    if owner is None:
        raise unknown(name, list(known))
    place: Mapping[str, str] = known[owner].show(owner)["log"]
    if owner == name:
        return place
    if place["path"]:
        return {"identifier": "", "path": str(Path(place["path"]).with_name(f"{name}.log"))}
    return {"identifier": place["identifier"].removesuffix(owner) + name, "path": ""}


def _owners(name: str) -> list[str]:
    """The name itself, and those of which it could be a hook: a.b.c, a.b, a."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]


def _without_supervisor(name: str, user: str | None) -> Mapping[str, str]:
    from memscaler.cli.servers.supervisors import SupervisorNotRunning
    from memscaler.servers import places

    folders = [folder for folder, whose in places.logs_dirs() if user in (None, whose)]
    path = next((folder / f"{name}.log" for folder in folders if _is_file(folder / f"{name}.log")), None)
    if path is None and shutil.which("journalctl") is None:
        raise SupervisorNotRunning(f"no supervisor runs, and no server {plain(name)} has a log here")
    return {"identifier": places.IDENTIFIER + name, "path": str(path or "")}


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _journal(identifier: str, lines: str, *, follow: bool) -> NoReturn:
    """As journalctl does it, with its exit code."""
    from memscaler.core.errors import MemscalerError

    program = shutil.which("journalctl")
    if program is None:
        raise MemscalerError("there is no journalctl here", hint='log = "file" in the description writes a file')
    words = ["--no-pager", "--no-hostname", "-o", "short-iso", "-t", identifier, "-n", lines]
    os.execv(program, [program, *words, *(["--follow"] if follow else [])])  # noqa: S606  # the system's own


def _file(path: Path, lines: int, *, follow: bool) -> None:
    """The last lines, then what comes: also after it was rotated, which cuts it short."""
    from memscaler.core.errors import MemscalerError, PermissionMissing

    try:
        with path.open("rb") as file:
            file.seek(_beginning(file, lines))
            _copy(file)
            if not file.tell():
                print(f"memscaler: {path} is empty: nothing has been written yet", file=sys.stderr, flush=True)
            while follow:
                time.sleep(LOOK_EVERY_S)
                if path.stat().st_size < file.tell():
                    file.seek(0)
                _copy(file)
    except FileNotFoundError as error:
        raise MemscalerError(f"{path}: nothing has been written yet") from error
    except PermissionError as error:
        raise PermissionMissing(f"you may not read {path}", hint="sudo memscaler servers logs ...") from error


def _beginning(file: BinaryIO, lines: int) -> int:
    """Where the last lines begin."""
    at = file.seek(0, os.SEEK_END)
    left = lines + 1  # the last one ends with a newline
    while at > 0 and lines:
        size = min(BLOCK_BYTES, at)
        at -= size
        file.seek(at)
        block = file.read(size)
        found = block.count(b"\n")
        if found >= left:
            for _ in range(left):
                cut = block.rfind(b"\n")
                block = block[:cut]
            return at + len(block) + 1
        left -= found
    return at


def _copy(file: BinaryIO) -> None:
    shutil.copyfileobj(file, sys.stdout.buffer)
    sys.stdout.buffer.flush()
