"""The set of connections, kept by the kernel's hooks and us: of which watch each is, since when, and what is judged.

An entry is taken out exactly once, by whoever deletes it. Most are put in by a hook; those that a hook could not see or
missed, and those of our own probes (own_probes.py), by us.
"""

from __future__ import annotations

import errno

from memscaler.kernel.bpf import EXIST, NOEXIST, HashMap
from memscaler.kernel.records import CONNECTION, IDENTITY, JUDGED, NOT_HEARD, OWED


class Connections(HashMap):
    """The words of its entries; `put`, `get` and `delete` are the map's."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, IDENTITY.size, CONNECTION.size)

    def by_slot(self) -> dict[int, dict[bytes, int]]:
        """Slot -> identity -> since."""
        entries: dict[int, dict[bytes, int]] = {}
        for key, value in self.entries():
            since_ns, slot, *_ = CONNECTION.unpack(value)
            entries.setdefault(slot, {})[key] = since_ns
        return entries

    def since_ns(self, key: bytes, slot: int) -> int | None:
        """Since when it is open (0: nobody knows); None if it is not in the set for this watch."""
        value = self.get(key)
        if value is None or CONNECTION.unpack(value)[1] != slot:
            return None
        return int(CONNECTION.unpack(value)[0])

    def is_older(self, key: bytes, than_ns: int) -> bool:
        """True if it is there and was not renewed since."""
        value = self.get(key)
        return value is not None and CONNECTION.unpack(value)[0] < than_ns

    def add(self, key: bytes, slot: int) -> None:
        """One that no hook has seen. Raise FileExistsError if a hook was faster, OSError (E2BIG) if the set is full."""
        self.put(key, CONNECTION.pack(0, slot, NOT_HEARD, 0, 0), NOEXIST)

    def mark(self, key: bytes, judged: tuple[int, int] | None, now_ns: int) -> None:
        """Tell the hook that sees the connection end how much of what was said is judged already."""
        value = self.get(key)
        if value is not None:
            since_ns, slot, *_ = CONNECTION.unpack(value)
            heard = (OWED, now_ns, 0) if judged is None else (JUDGED, *judged)
            try:
                self.put(key, CONNECTION.pack(since_ns, slot, *heard), EXIST)
            except OSError as error:
                if error.errno != errno.ENOENT:  # ended just now
                    raise
