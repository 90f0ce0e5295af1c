"""What a word that nobody knows may be a slip of the pen for. One way for all that a configuration says."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LIKELY = 0.6  # difflib's own


def nearest(word: str, known: Iterable[str], likely: float = LIKELY) -> str:
    """The known word that this one may be meant for; "" if it resembles none. likely: how much it has to, up to 1."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=likely)), "")


def meant(near: str) -> str:
    """The end of a sentence about an unknown word. near: the known one as it is written; "": nothing is said."""
    return f" (did you mean {near}?)" if near else ""


def strange(key: str, near: str = "") -> str:
    """About a key that nobody knows. near: the known one."""
    return f"unknown key {key!r}{meant(near and repr(near))}"
