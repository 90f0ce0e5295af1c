"""A histogram that is filled here and read as a frozen one."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence

from memscaler.core.snapshot import Histogram
from memscaler.observe.specs import WAKE_LATENCY_BUCKETS_S


class Latencies:
    """Counts latencies in seconds. Used by one thread."""

    def __init__(self, bounds_s: Sequence[float] = WAKE_LATENCY_BUCKETS_S) -> None:
        self._bounds_s = (*bounds_s, math.inf)
        self._counts = [0] * len(self._bounds_s)
        self._sum_s = 0.0

    def add(self, latency_s: float) -> None:
        """Count one."""
        self._counts[bisect.bisect_left(self._bounds_s, latency_s)] += 1
        self._sum_s += latency_s

    def freeze(self) -> Histogram:
        """All that were counted, cumulative."""
        return Histogram(tuple(zip(self._bounds_s, itertools.accumulate(self._counts), strict=True)), self._sum_s)
