"""Words that the page's parts share."""

from __future__ import annotations

from itertools import pairwise

NONE = "\N{EN DASH}"
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def span(seconds: float) -> str:
    """A time for people: "2 d 3 h", "4 min 10 s", "12 s"."""
    left = max(0, round(seconds))
    for (unit, size), (smaller, small) in pairwise(_UNITS):
        if left >= size:
            rest = left % size // small
            return f"{left // size} {unit}" + f" {rest} {smaller}" * bool(rest)
    return f"{left} s"
