"""What is drawn as sparklines: the last minutes of each GPU, as this process has seen them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MOST = 300  # values, one a second
BARS, PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.:-=+*#"


@dataclass(slots=True)
class History:
    """One GPU's. None: it was not known then."""

    power_w: deque[float | None] = field(default_factory=lambda: deque(maxlen=MOST))
    connections: deque[float | None] = field(default_factory=lambda: deque(maxlen=MOST))


class Histories:
    """By UUID: they go on when the daemon is restarted."""

    def __init__(self) -> None:
        self._gpus: dict[str, History] = {}

    def of(self, uuid: str) -> History:
        """One GPU's, empty at first."""
        return self._gpus.setdefault(uuid, History())

    def add(self, document: Mapping[str, Any]) -> None:
        """What a status document says."""
        for gpu in document["gpus"]:
            mine = self.of(gpu["uuid"])
            mine.power_w.append(_drawable(gpu["power_w"]))
            mine.connections.append(_drawable(connections_of(gpu, document["watches"])))

    def add_gap(self) -> None:
        """Nobody answers."""
        for mine in self._gpus.values():
            mine.power_w.append(None)
            mine.connections.append(None)


def _drawable(value: float | None) -> float | None:
    """JSON as Python reads it knows NaN and infinity."""
    return value if value is not None and math.isfinite(value) else None


def connections_of(gpu: Mapping[str, Any], watches: Iterable[Mapping[str, Any]]) -> int:
    """Open connections to all ports that drive it."""
    return sum(watch["connections"] for watch in watches if gpu["gpu"] in watch["gpus"])


def sparkline(values: Sequence[float | None], width: int, *, highest: float, unicode: bool = True) -> str:
    """The last `width` values as bars from 0 to highest, the latest one on the right; blanks for what is not known."""
    bars = BARS if unicode else PLAIN_BARS
    shown = list(values)[-width:] if width > 0 else []
    return "".join(" " if value is None else _bar(value, highest, bars) for value in shown).rjust(max(0, width))


def _bar(value: float, highest: float, bars: str) -> str:
    share = value / highest if highest > 0 else 0.0
    return bars[min(len(bars) - 1, max(0, round(share * (len(bars) - 1))))]
