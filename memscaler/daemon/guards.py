"""The watches that a child of the governor wants to be told of at once: kept armed whatever their GPUs do.

Each child has guards of its own; the kernel's counters know how often each watch has rung, so what one of them has
noticed and had armed again is not lost for the other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from memscaler.daemon import child_picture
from memscaler.daemon.child_picture import Key
from memscaler.daemon.governing import Governing
from memscaler.daemon.watching import Watching


class Guards:
    """Of one owner. Used by the loop's thread."""

    def __init__(self, owner: str, governing: Governing, watching: Watching) -> None:
        self._owner, self._governing, self._watching = owner, governing, watching
        self.keys: frozenset[Key] = frozenset()
        self._slots: Mapping[Key, int] = {}
        self._rung: dict[Key, int] = {}

    @property
    def armed(self) -> Collection[Key]:
        """Those of the wanted watches that there are."""
        return self._slots.keys()

    def want(self, keys: frozenset[Key]) -> None:
        """These are armed from now on, those that there are. What rang before is what is seen then."""
        self.keys = keys
        slots = child_picture.slots_of(self._watching, keys)
        if slots != self._slots:
            for key, slot in slots.items():
                if self._slots.get(key) != slot:
                    self._rung[key] = self._governing.rung(slot)
            self._slots = slots
            self._rung = {key: count for key, count in self._rung.items() if key in slots}
            self._governing.guard(self._owner, frozenset(slots.values()))

    def rang(self) -> list[Key]:
        """The guarded watches that have rung since this was asked last."""
        rang = []
        for key, slot in self._slots.items():
            count = self._governing.rung(slot)
            if count != self._rung[key]:
                self._rung[key] = count
                rang.append(key)
        return rang

    def arm_again(self) -> Collection[Key] | None:
        """All that rang. Those whose sockets could not be asked afterwards; None: there is nothing to guard."""
        if not self._slots:
            return None
        slots = frozenset(self._slots.values())
        self._governing.arm(slots)
        return () if self._governing.compare(list(slots)) else list(self._slots)

    def compare(self, keys: Iterable[Key]) -> tuple[list[Key], Collection[Key]]:
        """Look at the sockets of these watches, with what is guarded armed first: who rang, and who is doubtful."""
        slots = child_picture.slots_of(self._watching, set(keys))
        guarded = [slot for key, slot in slots.items() if key in self._slots]
        rang = self.rang()
        self._governing.arm(guarded)
        return rang, () if self._governing.compare(list(slots.values())) else tuple(slots)
