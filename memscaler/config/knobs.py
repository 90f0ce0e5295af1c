"""Values of knobs as people write and read them."""

from __future__ import annotations

import re

from memscaler.config.amounts import bytes_text, read_bytes
from memscaler.core.gpuctl import Knob
from memscaler.core.knobs import BEYOND_README, DIRECTIONS, RANGES

_WHOLE = re.compile(r"[+-]?[0-9]{1,20}", re.ASCII)
_SWITCH = {"0": 0, "1": 1, "off": 0, "on": 1, "no": 0, "yes": 1, "false": 0, "true": 1}


def parsed(knob: Knob, raw: object, *, beyond: bool = False) -> int:
    """A knob's value. beyond: also the compute.priority that GVM's README does not name. Raise ValueError."""
    if knob is Knob.MEMORY_LIMIT:
        return read_bytes(raw)
    text = str(raw).strip()
    if knob is Knob.COMPUTE_FREEZE:
        if text.lower() not in _SWITCH:
            raise ValueError(f"{raw!r} is neither 0 nor 1")
        return _SWITCH[text.lower()]
    lowest, highest = RANGES[knob]
    if knob is Knob.COMPUTE_PRIORITY and beyond:
        highest = BEYOND_README
    if isinstance(raw, bool) or not _WHOLE.fullmatch(text) or not lowest <= int(text) <= highest:
        direction = f"; {DIRECTIONS[knob]}" if knob in DIRECTIONS else ""
        raise ValueError(f"{raw!r} is no whole number from {lowest} to {highest}{direction}")
    return int(text)


def spoken(knob: Knob, value: int) -> str:
    """For people: "6 GiB", "max", "8", "frozen"."""
    if knob is Knob.MEMORY_LIMIT:
        return bytes_text(value)
    if knob is Knob.COMPUTE_FREEZE:
        return "frozen" if value else "runs"
    return str(value)
