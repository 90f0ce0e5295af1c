"""The slots: what the kernel counts per watch, read through shared memory without a system call.

Layout: struct slot in bpf/connections.bpf.c. All fields but `armed` only grow.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

MAX_WATCHES = 64
SLOT_WORDS = 16
_ARMED = 3


@dataclass(frozen=True, slots=True)
class Slot:
    """One watch's counters. Times in ns of CLOCK_MONOTONIC."""

    opened: int
    closed: int
    last_activity_ns: int
    armed: int
    rang_ns: int
    rings: int
    overflow: int
    ring_failed: int
    ignored: int
    seen_by_sockops: int
    seen_by_tracepoint: int


_FIELDS = len(Slot.__dataclass_fields__)


class Counters:
    """The mmapped array of slots."""

    def __init__(self, fd: int) -> None:
        size = -(-MAX_WATCHES * SLOT_WORDS * 8 // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self._words = memoryview(self._memory).cast("Q")

    def read(self, slot: int) -> Slot:
        """All counters of one watch."""
        first = slot * SLOT_WORDS
        return Slot(*self._words[first : first + _FIELDS])

    def glance(self, slot: int) -> tuple[int, int, int, int]:
        """(opened, closed, last_activity_ns, armed): what the wake path needs, and nothing else.

        `closed` is read first: a connection that opens and closes in between must not make the difference negative.
        """
        words, first = self._words, slot * SLOT_WORDS
        closed = words[first + 1]
        return words[first], closed, words[first + 2], words[first + _ARMED]

    def is_armed(self, slot: int) -> bool:
        """False once it has rung."""
        return self._words[slot * SLOT_WORDS + _ARMED] == 1

    def arm(self, slot: int) -> None:
        """Ask for one ring at the next open. One aligned 64-bit store, as the kernel's compare-and-exchange needs."""
        self._words[slot * SLOT_WORDS + _ARMED] = 1

    def close(self) -> None:
        """Unmap. Nothing can be read afterwards."""
        self._words.release()
        self._memory.close()
