"""Amounts of memory, read and written."""

from __future__ import annotations

import math
import re

from memscaler.core.errors import UsageError

MIB, GIB = 1 << 20, 1 << 30
_UNITS = {
    "": MIB,
    "b": 1,
    "k": 1 << 10,
    "kib": 1 << 10,
    "m": MIB,
    "mib": MIB,
    "g": GIB,
    "gib": GIB,
    "t": 1 << 40,
    "tib": 1 << 40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE | re.ASCII)
_MOST = 1 << 50  # a PiB in one GPU is a typing error


def parse_bytes(text: str, what: str) -> int:
    """`"1024"` (MiB), `"24GiB"`, `"1.5G"`, `"24GB"` (decimal). what: the flag, for the error. Raise UsageError."""
    found = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise UsageError(f"{what}: {text!r} is no amount of memory", hint="MiB, or with a unit: 1024, 512MiB, 24GiB")
    size = float(found[1]) * unit
    if not size <= _MOST:
        raise UsageError(f"{what}: {text!r} is more than any GPU has", hint="a number alone means MiB")
    return round(size)


def size(amount_bytes: float) -> str:
    """For people: "21.3 GiB", "640 MiB", "0.6 MiB", "0"."""
    if amount_bytes == 0:
        return "0"
    if abs(amount_bytes) >= GIB:
        return f"{amount_bytes / GIB:.1f} GiB"
    mib = amount_bytes / MIB
    return f"{mib:.0f} MiB" if abs(mib) >= 10 else f"{mib:.1f} MiB"  # noqa: PLR2004  # two digits that count


def shortfall(missing_bytes: int, budget_bytes: int, split_bytes: int) -> str:
    """What is missing, rounded up, of what is needed and there: numbers of one unit, of which the sum is right.

    split_bytes: what the budgets lose because a model is cut into whole layers, and each GPU computes in a buffer.
    """
    unit, name, digits = (GIB / 10, "GiB", 1) if missing_bytes >= GIB else (MIB, "MiB", 0)
    missing, budget, split = math.ceil(missing_bytes / unit), round(budget_bytes / unit), round(split_bytes / unit)
    lost = f", of which the split costs {split / 10**digits:.{digits}f} {name}" if split else ""
    words = [
        f"{each / 10**digits:.{digits}f} {name}" if each else "0"
        for each in (missing, missing + budget - split, budget)
    ]
    return f"{words[0]} are missing ({words[1]} needed, {words[2]} in the budgets{lost})"


def more(amount_bytes: float) -> str:
    """As `size`, rounded up: who makes that much room has enough."""
    if amount_bytes >= GIB:
        return f"{math.ceil(amount_bytes / GIB * 10) / 10:.1f} GiB"
    return f"{math.ceil(amount_bytes / MIB)} MiB"
