"""Amounts of memory as people write them: "6G", "512MiB", "6GB" (decimal), a number of bytes, "max" for no limit."""

from __future__ import annotations

import re
from fractions import Fraction

from memscaler.config.values import Kind
from memscaler.core.gpuctl import NO_LIMIT

_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(?:([KMGT])(iB|B)?|B)?", re.IGNORECASE | re.ASCII)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_KIB = 1024
_UNITS = tuple((unit, _KIB**power) for unit, power in (("TiB", 4), ("GiB", 3), ("MiB", 2), ("KiB", 1), ("B", 0)))


def read_bytes(raw: object) -> int:
    """In bytes; NO_LIMIT for "max". A letter alone is binary, as systemd has it: 6G is 6GiB. Raise ValueError."""
    text = str(raw).strip()
    if text.lower() == "max":
        return NO_LIMIT
    found = _AMOUNT.fullmatch(text)
    is_part = found is not None and "." in found[1] and not found[2]  # of a byte: nobody means that, and 0.5 G is near
    if isinstance(raw, (bool, float)) or found is None or is_part:
        raise ValueError(f'{raw!r} is no amount of memory (write "6G", "512MiB", "6GB", a number of bytes or "max")')
    unit = 1000 if (found[3] or "").lower() == "b" else _KIB
    amount = int(Fraction(found[1]) * unit ** _POWERS[(found[2] or "").lower()])
    if amount > NO_LIMIT:  # NO_LIMIT itself is what GVM prints for none
        raise ValueError(f'{raw!r} is more than any GPU has (write "max" for no limit)')
    return amount


def write_bytes(amount_bytes: int) -> str:
    """In the largest unit that makes it a whole number, "6 GiB", "1536 MiB", "max"; reads back as the same."""
    if amount_bytes == NO_LIMIT:
        return "max"
    unit, size = next(each for each in _UNITS if (amount_bytes and not amount_bytes % each[1]) or each[1] == 1)
    return f"{amount_bytes // size} {unit}"


def bytes_text(count: int) -> str:
    """For people, in the largest unit, exact where that is short: "6 GiB", "1.5 GiB", "512 MiB", "max"."""
    if count == NO_LIMIT:
        return "max"
    unit, size = next(each for each in _UNITS if count >= each[1] or each[1] == 1)
    return f"{count / size:.1f}".removesuffix(".0") + f" {unit}"


SIZE: Kind[int] = Kind(
    read_bytes,
    {
        "anyOf": [
            {"type": "integer", "minimum": 0},
            {
                "type": "string",
                "pattern": r"^\s*([0-9]+(\.[0-9]+)?\s*[KkMmGgTt]([Ii]?[Bb])?|[0-9]+\s*[Bb]?|[Mm][Aa][Xx])\s*$",
            },
        ]
    },
    write_bytes,
)
