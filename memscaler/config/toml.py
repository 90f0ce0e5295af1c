"""TOML with line numbers. tomllib keeps none, and an operator wants to know which line is wrong."""

from __future__ import annotations

import os
import re
import shlex
import stat
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from memscaler.core.errors import ConfigError, PermissionMissing

# no two parts that may match the same: a long line must not take its square in time
_HEADER = re.compile(r"""^\s*(\[\[?)((?:[^]\[#"']|"[^"]*"|'[^']*')+)\]\]?\s*(?:#.*)?$""")
_KEY = re.compile(r"""^\s*((?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+)(?:\s*\.\s*(?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+))*)\s*=""")
_PART = re.compile(r""""([^"]*)"|'([^']*)'|([A-Za-z0-9_-]+)""")

_PLACE = re.compile(r"\(at line (\d+), (column \d+)\)")

MOST_BYTES = 1 << 20
DEEPEST = 16  # parts of a name that are told apart; ours are server.hook.hook and so on
DROP_INS = "conf.d"  # the folder beside a file, whose files add to it
SERVERS = "servers.d"  # the one whose files describe servers

Where = tuple[str | int, ...]


class Distrusted(ConfigError):
    """Somebody else than root and who runs this could have written it. brief: why, and the cure, in a few words."""

    def __init__(self, path: Path, why: str, cure: str) -> None:
        super().__init__(f"{path} {why}", hint=f"{cure} {shlex.quote(str(path))}")
        self.brief = f"{path} {why} ({cure})"


class Document:
    """A parsed file that knows the line of every key."""

    def __init__(self, file: Path, text: str) -> None:
        self.file = file
        self.lines = _lines(text)
        try:
            self.data: dict[str, Any] = tomllib.loads(text)
        except ValueError as err:  # also a number of thousands of digits, which tomllib leaves to Python
            place = _PLACE.search(str(err))  # tomllib tells the line in its sentence only
            line = place[1] if place else max(len(text.splitlines()), 1)
            message = _PLACE.sub(r"(\2)", str(err))
            raise ConfigError(f"{file}:{line}: not TOML: {message}") from err
        except RecursionError as err:
            raise ConfigError(f"{file} is nested too deeply") from err

    def origin(self, *where: str | int) -> str:
        """`file:line` of a key or the table it is in."""
        for end in range(len(where), 0, -1):
            if where[:end] in self.lines:
                return f"{self.file}:{self.lines[where[:end]]}"
        return str(self.file)


@dataclass(frozen=True, slots=True)
class Opened:
    """A file that was read. distrust: why what it says must not decide what root does; None: it may."""

    file: Path
    text: str
    distrust: Distrusted | None

    def parse(self) -> Document:
        """Raise ConfigError if it is no TOML."""
        return Document(self.file, self.text)


@dataclass(frozen=True, slots=True)
class DropIns:
    """The files of a folder, by their names. distrust: why whoever may put one there must not."""

    files: tuple[Path, ...]
    distrust: Distrusted | None = None


def drop_ins(file: Path, name: str = DROP_INS, endings: tuple[str, ...] = (".toml",)) -> DropIns:
    """What lies in conf.d (or `name`) beside this file, whether or not that is there.

    Raise ConfigError, PermissionMissing.
    """
    folder = file.parent / name
    try:
        files = sorted(each for each in folder.iterdir() if each.suffix in endings and not each.name.startswith("."))
        if not files:
            return DropIns(())
        beside = _distrust(file.parent, file.parent.stat()) or _distrust(folder, folder.stat())
    except (FileNotFoundError, NotADirectoryError):
        return DropIns(())
    except PermissionError as err:
        raise PermissionMissing(f"{folder}: {err.strerror}") from err
    except OSError as err:
        raise ConfigError(f"{folder}: {err.strerror}") from err
    return DropIns(tuple(files), beside)


def look(file: Path) -> Opened:
    """The file, whoever may have written it, and whether it is to be trusted. Raise ConfigError, PermissionMissing.

    What it says decides what root does, so nobody but root and who runs this may write it or put another there.
    """
    try:
        return _open(file)
    except PermissionError as err:
        raise PermissionMissing(f"{file}: {err.strerror}") from err
    except OSError as err:
        raise ConfigError(f"{file}: {err.strerror}") from err
    except UnicodeDecodeError as err:
        raise ConfigError(f"{file} is not UTF-8 text") from err


def _open(file: Path) -> Opened:
    """What is judged is what was opened, in the folder that it was opened in: a path may lead elsewhere later."""
    path = Path(os.path.realpath(file))  # unlike Path.resolve it leaves a circle of links to `open`
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW  # a FIFO would wait for its writer
        with os.fdopen(os.open(path.name or ".", flags, dir_fd=folder), "rb") as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{file} is not a file")
            if status.st_size > MOST_BYTES:
                raise ConfigError(f"{file} is larger than {MOST_BYTES >> 10} KiB")
            distrust = _distrust(file, status) or _distrust(path.parent, os.fstat(folder))
            return Opened(file, opened.read(MOST_BYTES + 1).decode("utf-8"), distrust)
    finally:
        os.close(folder)


def _distrust(path: Path, status: os.stat_result) -> Distrusted | None:
    if status.st_uid not in (0, os.geteuid()):
        return Distrusted(path, f"belongs to another user (uid {status.st_uid})", "chown root")
    shared = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX  # /tmp: nobody can replace another's file
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not shared:
        return Distrusted(path, "may be written by others", "chmod go-w")
    return None


def _lines(text: str) -> dict[Where, int]:
    """Key path -> line number of the first that is said there. Elements of an array of tables are numbered from 0."""
    found: dict[Where, int] = {}
    table: Where = ()
    counts: dict[Where, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            names = _names(header[2])
            table = _place(names, counts)
            if header[1] == "[[":
                array = (*_place(names[:-1], counts), *names[-1:])
                counts[array] = counts.get(array, 0) + 1
                table = _place(names, counts)
            _note(found, table, number)
        elif key := _KEY.match(line):
            _note(found, (*table, *_names(key[1])), number)
    return found


def _names(dotted: str) -> list[str]:
    """The parts of a name: a."b.c".d"""
    parts = islice(_PART.finditer(dotted), DEEPEST)
    return [next(filter(None, part.groups()), "") for part in parts]


def _place(names: Iterable[str], counts: Mapping[Where, int]) -> Where:
    """Where tomllib puts it: what is said of an array of tables is said of its last one."""
    where: Where = ()
    for name in names:
        where = (*where, name)
        where = (*where, counts[where] - 1) if where in counts else where
    return where


def _note(found: dict[Where, int], where: Where, number: int) -> None:
    """Of a table that is only in the name of another one, that is the line."""
    for end in range(1, len(where) + 1):
        found.setdefault(where[:end], number)
