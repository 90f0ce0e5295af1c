"""The same thing again and again: in place on a terminal, one after the other elsewhere. Ctrl-C ends it well."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

from memscaler.cli.output import SCHEMA, WIDTH, show
from memscaler.cli.paint import is_terminal
from memscaler.core.errors import MemscalerError, PermissionMissing, UsageError

CLEAR, HOME, REST_OF_LINE, BELOW = "\x1b[2J", "\x1b[H", "\x1b[K", "\x1b[J"
CUT, WRAP = "\x1b[?7l", "\x1b[?7h"  # what becomes of a line that is longer than the screen is wide

Document = dict[str, Any]


def width() -> int:
    """Columns to write; never fewer than 80, for a table that is cut off is worse than one that is broken."""
    return max(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns) if sys.stdout.isatty() else WIDTH


def again(every_s: float, look: Callable[[], Document], write: Callable[[Document, int], str] | None) -> None:
    """Look and show until interrupted. write None: a line of JSON each time.

    A daemon that is not there is waited for; who may not ask, or asks for a GPU that is not there, is told at once.
    """
    try:
        if write is not None and is_terminal():
            print(CLEAR, end="")
        while True:
            _show(look, write, every_s)
            time.sleep(every_s)
    except KeyboardInterrupt:
        if write is not None and is_terminal():
            print()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show(look: Callable[[], Document], write: Callable[[Document, int], str] | None, every_s: float) -> None:
    try:
        document = look()
    except (PermissionMissing, UsageError):
        raise
    except MemscalerError as error:
        text = str(error) if write is not None else json.dumps({"schema": SCHEMA, "error": str(error)})
    else:
        text = write(document, width()) if write is not None else json.dumps({"schema": SCHEMA, **document})
    if write is None:
        print(text, flush=True)
    elif is_terminal():
        _draw(f"every {every_s:g} s, {time.strftime('%H:%M:%S')}; Ctrl-C ends\n\n{text}")
    else:
        show(text + "\n")
        sys.stdout.flush()


def _draw(text: str) -> None:
    """In place of what was there, without flicker, and no longer than the screen."""
    rows = shutil.get_terminal_size((WIDTH, 24)).lines - 1
    lines = text.splitlines()
    if len(lines) > rows:
        lines = [*lines[: rows - 1], f"... {len(lines) - rows + 1} lines more: a higher terminal, or name some GPUs"]
    encoding = sys.stdout.encoding or "utf-8"
    whole = CUT + HOME + "".join(f"{line}{REST_OF_LINE}\n" for line in lines) + BELOW + WRAP
    print(whole.encode(encoding, "replace").decode(encoding), end="", flush=True)
