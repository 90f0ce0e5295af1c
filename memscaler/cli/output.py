"""Data on standard output: JSON for programs, columns for people."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

SCHEMA = 1  # of all JSON that commands print; grows when a key changes its meaning or goes


def print_json(document: Mapping[str, object]) -> None:
    """Print one document."""
    print(json.dumps({"schema": SCHEMA, **document}, default=_plain, indent=2))


def columns(rows: Sequence[Sequence[str]]) -> str:
    """The rows, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)
