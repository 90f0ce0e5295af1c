"""Work that may hang in a driver, each process's in a lane of its own: who waits for one holds up no other.

A process has two lanes, one for freezes and one for the rest, because a limit that is lowered moves gigabytes first. A
lane is a thread. Nobody waits for it at the end: the journal tells what it may have done.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field

IDLE_S = 10.0  # a lane that is not kept ends after that

Lane = Hashable
Work = Callable[[], None]


@dataclass
class _Thread:
    work: queue.SimpleQueue[Work | None] = field(default_factory=queue.SimpleQueue)
    waiting: int = 0


class Lanes:
    """Used by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lanes: dict[Lane, _Thread] = {}
        self._kept: frozenset[Lane] = frozenset()

    def do(self, lane: Lane, work: Work) -> None:
        """In this lane, after what it has to do already. The work catches what it raises.

        Raise RuntimeError if there is no room for another thread.
        """
        with self._lock:
            thread = self._begun(lane)
            thread.waiting += 1
            thread.work.put(work)

    def keep(self, lanes: Collection[Lane]) -> None:
        """These are to be there when they are needed: beginning a thread takes a while."""
        with self._lock:
            before, self._kept = self._kept, frozenset(lanes)
            for lane in self._kept:
                with contextlib.suppress(RuntimeError):  # when it is needed, then
                    self._begun(lane)
            for lane, thread in self._lanes.items():
                if lane in before - self._kept:
                    thread.work.put(None)  # it waits for no end until then

    def _begun(self, lane: Lane) -> _Thread:
        if lane not in self._lanes:
            thread = _Thread()
            threading.Thread(target=self._run, args=(lane, thread), name=f"lane {lane}", daemon=True).start()
            self._lanes[lane] = thread  # there is one now, and it waits for our lock before it lets go of the lane
        return self._lanes[lane]

    def _run(self, lane: Lane, thread: _Thread) -> None:
        while True:
            try:
                work = thread.work.get(timeout=None if lane in self._kept else IDLE_S)
            except queue.Empty:
                with self._lock:
                    if thread.waiting or lane in self._kept:
                        continue
                    del self._lanes[lane]
                    return
            if work is None:
                continue
            try:
                work()
            finally:
                with self._lock:
                    thread.waiting -= 1


@dataclass
class Deadlines:
    """Of calls that are under way. Used under its user's lock."""

    _by_call: dict[int, tuple[str, float]] = field(default_factory=dict)

    def begin(self, key: str, call: int, within_s: float) -> None:
        """It should end within that."""
        self._by_call[call] = key, time.monotonic() + within_s

    def end(self, call: int) -> None:
        """It has ended, or is known to be late."""
        self._by_call.pop(call, None)

    def late(self, now_s: float) -> list[tuple[str, int]]:
        """Those that should have ended: told once."""
        found = [(key, call) for call, (key, due_s) in self._by_call.items() if due_s <= now_s]
        for _, call in found:
            self.end(call)
        return found

    @property
    def due_s(self) -> float:
        """When to ask `late`."""
        return min((due_s for _, due_s in self._by_call.values()), default=float("inf"))
