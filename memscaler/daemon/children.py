"""The children that act for the governor, all together, as the loop has them."""

from __future__ import annotations

from memscaler.config.schema import Settings
from memscaler.daemon.arbiter import Arbiter
from memscaler.daemon.sleeper import Sleeper


class Children:
    """Used by the loop's thread. What each method means: child.py."""

    def __init__(self, arbiter: Arbiter, sleeper: Sleeper) -> None:
        self.arbiter, self.sleeper = arbiter, sleeper
        self._all = arbiter, sleeper  # what stands still goes on before a server is waited for

    @property
    def gone(self) -> bool:
        return all(child.gone for child in self._all)

    @property
    def due_ns(self) -> list[int]:
        return [at_ns for child in self._all for at_ns in child.due_ns]

    def begin(self) -> None:
        for child in self._all:
            child.begin()

    def follow(self, settings: Settings) -> None:
        for child in self._all:
            child.follow(settings)

    def end(self) -> None:
        """The governor ends: none is replaced."""
        for child in self._all:
            child.end(stop=True)

    def hurry(self) -> None:
        for child in self._all:
            child.hurry()

    def close(self) -> bool:
        """False if an application may still stand still, with nobody but the guardian to let go of it."""
        for child in self._all:
            child.close()
        return not self.arbiter.has_left_something

    def heed(self, ready: set[int]) -> None:
        for child in self._all:
            child.heed(ready)

    def turn(self, now_ns: int) -> None:
        for child in self._all:
            child.turn(now_ns)

    def resumed(self, slept_s: float) -> None:
        for child in self._all:
            child.resumed(slept_s)
