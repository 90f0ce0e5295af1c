"""Figures for people, as every view of them writes them."""

from __future__ import annotations

JOULES_PER_WH = 3600.0
WH_PER_KWH = 1000.0


def energy(joules: float) -> str:
    """For example "412.3 Wh", "1.03 kWh"."""
    hours = joules / JOULES_PER_WH
    return f"{hours:.1f} Wh" if hours < WH_PER_KWH else f"{hours / WH_PER_KWH:.2f} kWh"


def fine_energy(joules: float) -> str:
    """The same, with more digits of little: "0.42 Wh", "0.025 Wh"."""
    hours = joules / JOULES_PER_WH
    for below, digits in ((0.0005, 1), (0.0995, 3), (0.995, 2)):
        if 0 <= hours < below:
            return f"{hours:.{digits}f} Wh"
    return energy(joules)


def idle_time(seconds: float) -> str:
    """In two digits: "4.8 s", "11 min", "1.5 h"."""
    for unit, size_s in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * size_s:
            amount = seconds / size_s
            return f"{amount:.0f} {unit}" if amount >= 10 else f"{amount:.2g} {unit}"  # noqa: PLR2004
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"  # noqa: PLR2004
