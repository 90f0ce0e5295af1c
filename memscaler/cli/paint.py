"""Colour, where it is wanted: on a terminal that knows it, and not against NO_COLOR (no-color.org)."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

RESET = "\x1b[0m"
STYLES = {
    "awake": "\x1b[36m",  # cyan
    "cooling": "\x1b[33m",  # yellow
    "parked": "\x1b[32m",  # green
    "held": "\x1b[35m",  # magenta
    "unmanaged": "\x1b[1;31m",  # red
    "ok": "\x1b[32m",
    "bad": "\x1b[1;31m",
    "unsure": "\x1b[33m",
    "faint": "\x1b[2m",
    "strong": "\x1b[1m",
}


@dataclass(frozen=True, slots=True)
class Paint:
    """Puts colour around words, or leaves them."""

    on: bool

    def __call__(self, style: str, text: str) -> str:
        start = STYLES.get(style, "") if self.on else ""
        return f"{start}{text}{RESET}" if start else text

    def column(self, table: str, heading: str, styles: Sequence[str]) -> str:
        """A table of `columns`, each row with the words below this heading in its own style."""
        head, *rows = table.splitlines()
        at = head.index(heading)
        painted = [self("faint", head)]
        for row, style in zip(rows, styles, strict=True):
            word = row[at:].split(" ", 1)[0]
            painted.append(row[:at] + self(style, word) + row[at + len(word) :])
        return "\n".join(painted) if self.on else table


def is_terminal() -> bool:
    """True if standard output is a terminal that can move its cursor and show colours."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb")


def paint() -> Paint:
    """For standard output."""
    return Paint(is_terminal() and not os.environ.get("NO_COLOR"))
