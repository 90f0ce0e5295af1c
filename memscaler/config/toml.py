"""TOML with line numbers. tomllib keeps none, and an operator wants to know which line is wrong."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from memscaler.core.errors import ConfigError, PermissionMissing

_HEADER = re.compile(r"^\s*(\[\[?)\s*(.+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"""^\s*("[^"]*"|'[^']*'|[A-Za-z0-9_-]+)\s*=""")
_PART = re.compile(r""""([^"]*)"|'([^']*)'|([A-Za-z0-9_-]+)""")

Where = tuple[str | int, ...]


class Document:
    """A parsed file that knows the line of every key."""

    def __init__(self, file: Path, text: str) -> None:
        self.file = file
        self.lines = _lines(text)
        try:
            self.data: dict[str, Any] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as err:
            raise ConfigError(f"{file} is not TOML: {err}") from err

    def origin(self, *where: str | int) -> str:
        """`file:line` of a key or the table it is in."""
        for end in range(len(where), 0, -1):
            if where[:end] in self.lines:
                return f"{self.file}:{self.lines[where[:end]]}"
        return str(self.file)


def read(file: Path) -> Document:
    """The file, parsed. Raise ConfigError if it is missing or no TOML."""
    try:
        return Document(file, file.read_text(encoding="utf-8"))
    except PermissionError as err:
        raise PermissionMissing(f"{file}: {err.strerror}") from err
    except OSError as err:
        raise ConfigError(f"{file}: {err.strerror}") from err
    except UnicodeDecodeError as err:
        raise ConfigError(f"{file} is not UTF-8 text") from err


def _lines(text: str) -> dict[Where, int]:
    """Key path -> line number. Elements of an array of tables are numbered from 0."""
    found: dict[Where, int] = {}
    table: Where = ()
    counts: dict[Where, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = tuple(next(filter(None, part), "") for part in _PART.findall(header[2]))
            if header[1] == "[[":
                nth = counts.get(table, 0)
                counts[table] = nth + 1
                table = (*table, nth)
            found.setdefault(table, number)
        elif key := _KEY.match(line):
            found.setdefault((*table, key[1].strip("\"'")), number)
    return found
