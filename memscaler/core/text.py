"""Figures for people, as every view of them writes them."""

from __future__ import annotations

JOULES_PER_WH = 3600.0
WH_PER_KWH = 1000.0


def energy(joules: float) -> str:
    """For example "412.3 Wh", "1.03 kWh"."""
    hours = joules / JOULES_PER_WH
    return f"{hours:.1f} Wh" if hours < WH_PER_KWH else f"{hours / WH_PER_KWH:.2f} kWh"
