"""The doorbell: a BPF ring buffer whose content is ignored. It means "go and look".

Ring buffer layout: Documentation/bpf/ringbuf.rst: one page with the consumer's position (writable), one with the
producer's (read-only), then the data. Its descriptor can be waited for with epoll.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable

from memscaler.kernel.counters import Counters


class Doorbell:
    """Wait for `fd` to become readable, then call `silence`, then look."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        page = mmap.PAGESIZE
        self._consumer_memory = mmap.mmap(fd, page, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self._producer_memory = mmap.mmap(fd, page, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, offset=page)
        self._consumer = memoryview(self._consumer_memory).cast("Q")
        self._producer = memoryview(self._producer_memory).cast("Q")

    def silence(self) -> None:
        """Take everything out. A record still being written rings once more: that costs one look too many."""
        self._consumer[0] = self._producer[0]

    def close(self) -> None:
        """Unmap. The descriptor is the attachment's."""
        self._consumer.release()
        self._producer.release()
        self._consumer_memory.close()
        self._producer_memory.close()


class Door:
    """The doorbell as one GPU hears it: `fd` becomes readable for any watch, `rang` is about its own."""

    def __init__(self, fd: int, counters: Counters, slots: Iterable[int]) -> None:
        self.fd = fd
        self._is_armed = counters.is_armed
        self.watch(slots)

    def watch(self, slots: Iterable[int]) -> None:
        """From now on these are its own."""
        self._slots = tuple(slots)

    def rang(self) -> bool:
        """True from the ring of one of its watches until that is armed again."""
        return not all(map(self._is_armed, self._slots))
