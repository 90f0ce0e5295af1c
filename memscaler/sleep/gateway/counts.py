"""What a gateway counts, from its start on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

# From the moment that a backend is wanted to the one in which clients are let through.
WAKE_BUCKETS_S = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)


@dataclass(slots=True)
class Counts:
    """connections, waiting: now. refused: by reason. wakes: by result. bytes_up: of relays that have ended."""

    connections: int = 0
    waiting: int = 0
    accepted: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    packets: int = 0
    stalls: int = 0
    pauses: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    wakes: Counter[str] = field(default_factory=Counter)
    buckets: list[int] = field(default_factory=lambda: [0] * (len(WAKE_BUCKETS_S) + 1))
    wakes_s: float = 0.0

    def woke(self, took_s: float) -> None:
        """In so long a time."""
        self.wakes["done"] += 1
        self.wakes_s += took_s
        self.buckets[next((at for at, most_s in enumerate(WAKE_BUCKETS_S) if took_s <= most_s), -1)] += 1
