"""Which of a dead program's last lines says why: llama.cpp goes on after its error, Python ends with it."""

from __future__ import annotations

import re
from collections.abc import Sequence

LOOKED_AT = 15  # what was said before had other consequences, or none
_TRACEBACK = "Traceback (most recent call last)"
_RAISED = re.compile(r"[\w.]*(?:Error|Exception|Interrupt|Exit)(?::|$)")
_CAUSE = re.compile(
    r"\b(?:error|fatal|exception|cannot|can't|could not|couldn't|unable|invalid|unknown|unsupported|not found|no such"
    r"|not supported|out of memory|denied|in use|no space|abort(?:ed|ing)?|assert)\b",
    re.IGNORECASE,
)
_FAILED = re.compile(r"\bfail(?:ed|ure|s)?\b", re.IGNORECASE)


def most_telling(lines: Sequence[str], *, killed: bool = False) -> str:
    """The error itself, not what follows from it; else what was said last; "" if nothing was.

    killed: from outside, so that nothing that it said is the reason.
    """
    said = [line for line in lines if line.strip()][-LOOKED_AT:]
    if killed:
        return said[-1] if said else ""
    if any(_TRACEBACK in line for line in said):
        raised = [line for line in said if _RAISED.match(line)]
        if raised:
            return raised[-1]
    for wanted in (_CAUSE, _FAILED):
        if found := next((line for line in said if wanted.search(line)), None):
            return found
    return said[-1] if said else ""
