"""Data on standard output: JSON for programs, columns for people."""

from __future__ import annotations

import dataclasses
import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise

WIDTH = 80
INDENT = " " * 6
SCHEMA = 1  # of all JSON that commands print; grows when a key changes its meaning or goes
_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def print_json(document: Mapping[str, object]) -> None:
    """Print one document."""
    print(json.dumps({"schema": SCHEMA, **document}, default=_jsonable, indent=2))


def columns(rows: Sequence[Sequence[str]]) -> str:
    """The rows, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def labelled(label: str, text: str) -> list[str]:
    """Indented lines of at most 80 columns; none without text."""
    if not text:
        return []
    return textwrap.wrap(f"{label} {text}", WIDTH, initial_indent=INDENT, subsequent_indent=INDENT + "  ")


def plain(text: object) -> str:
    """Text from elsewhere as one line, without anything that a terminal would obey."""
    return "".join(char if char.isprintable() else " " if char.isspace() else "?" for char in str(text))


def show(text: str) -> None:
    """Print, also where the terminal's character set lacks some of it."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding))


def span(seconds: float | None) -> str:
    """A time for people: "2d 3h", "1h 5m", "4m 10s", "12s"; None: "-"."""
    if seconds is None:
        return "-"
    left = max(0, round(seconds))
    for (unit, size), (smaller, small) in pairwise(_UNITS):
        if left >= size:
            rest = left % size // small
            return f"{left // size}{unit}" + f" {rest}{smaller}" * bool(rest)
    return f"{left}s"


def _jsonable(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)
