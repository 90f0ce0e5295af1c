"""How long a server that failed is left alone: twice as long each time."""

from __future__ import annotations

LONGEST_S = 60.0


def pause_s(failures: int, first_s: float) -> float:
    """Seconds before the next start, after so many failures in a row; a minute at most, or first_s if that is more."""
    return min(first_s * 2.0 ** min(failures - 1, 32), max(LONGEST_S, first_s))
