"""The slots: what the kernel counts per watch, read through shared memory without a system call.

Layout: struct slot in bpf/connections.bpf.c. All fields but `armed` and the bounds of a touch only grow.
"""

from __future__ import annotations

import mmap
import struct
import threading
from dataclasses import dataclass, replace
from typing import Protocol

from memscaler.kernel.bpf import HashMap

MAX_WATCHES = 64
NO_WATCH = MAX_WATCHES  # the slot of what is no watch: listening sockets that came or went, and our own probes
SLOT_WORDS = 16
_ARMED, _TOUCH_NS, _TOUCH_BYTES = 3, 13, 14


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
    last_work_ns: int
    touches: int
    touch_ns: int
    touch_bytes: int
    data_rings: int


class Counters(Protocol):
    """The slots, and the arming of their doorbells."""

    def read(self, slot: int) -> Slot:
        """All of one watch, `closed` first: a connection in between must not make the difference negative."""
        ...

    def is_armed(self, slot: int) -> bool:
        """False once it has rung."""
        ...

    def arm(self, slot: int) -> None:
        """Ask for one ring at the next open."""
        ...

    def clear(self, slot: int) -> None:
        """For another watch. No hook must know the slot."""
        ...

    def set_touch(self, slot: int, within_ns: int, below_bytes: int) -> None:
        """What counts as a touch on this watch; within_ns 0: nothing does. Before any hook knows the slot."""
        ...

    def close(self) -> None:
        """Nothing can be read afterwards."""
        ...


class MappedCounters:
    """The mmapped array of slots."""

    def __init__(self, fd: int) -> None:
        size = -(-(MAX_WATCHES + 1) * SLOT_WORDS * 8 // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self._words = memoryview(self._memory).cast("Q")

    def read(self, slot: int) -> Slot:
        first = slot * SLOT_WORDS
        closed = self._words[first + 1]
        opened, _, *others = self._words[first : first + SLOT_WORDS]
        return Slot(opened, closed, *others)

    def clear(self, slot: int) -> None:
        for word in range(slot * SLOT_WORDS, (slot + 1) * SLOT_WORDS):
            self._words[word] = 0

    def set_touch(self, slot: int, within_ns: int, below_bytes: int) -> None:
        self._words[slot * SLOT_WORDS + _TOUCH_BYTES] = below_bytes
        self._words[slot * SLOT_WORDS + _TOUCH_NS] = within_ns

    def is_armed(self, slot: int) -> bool:
        return self._words[slot * SLOT_WORDS + _ARMED] == 1

    def arm(self, slot: int) -> None:
        """Ask for one ring at the next open. One aligned 64-bit store, as the kernel's compare-and-exchange needs."""
        self._words[slot * SLOT_WORDS + _ARMED] = 1

    def close(self) -> None:
        self._words.release()
        self._memory.close()


class PolledCounters:
    """The same by a system call for each, where the kernel cannot ring (before Linux 5.8).

    There `rings` counts everything that would have rung, so that whoever polls sees whether something has since.
    """

    def __init__(self, fd: int) -> None:
        self._slots = HashMap(fd, 4, SLOT_WORDS * 8)
        self._lock = threading.Lock()  # the loop and the scout
        self._armed: dict[int, int] = {}  # slot -> rings at the arming

    def read(self, slot: int) -> Slot:
        closed, found = self._read(slot).closed, self._read(slot)
        return replace(found, closed=closed, armed=int(self._armed.get(slot) == found.rings))

    def _read(self, slot: int) -> Slot:
        with self._lock:
            value = self._slots.get(struct.pack("=I", slot)) or bytes(SLOT_WORDS * 8)
        return Slot(*struct.unpack(f"={SLOT_WORDS}Q", value))

    def is_armed(self, slot: int) -> bool:
        return self._armed.get(slot) == self._read(slot).rings

    def arm(self, slot: int) -> None:
        self._armed[slot] = self._read(slot).rings

    def clear(self, slot: int) -> None:
        with self._lock:
            self._slots.put(struct.pack("=I", slot), bytes(SLOT_WORDS * 8))

    def set_touch(self, slot: int, within_ns: int, below_bytes: int) -> None:
        words = [0] * SLOT_WORDS
        words[_TOUCH_NS], words[_TOUCH_BYTES] = within_ns, below_bytes
        with self._lock:
            self._slots.put(struct.pack("=I", slot), struct.pack(f"={SLOT_WORDS}Q", *words))

    def close(self) -> None:
        """The map is the attachment's."""
