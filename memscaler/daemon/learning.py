"""Learns the gaps between the work of each GPU, whenever the loop looks anyway: it never wakes up for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import structlog

from memscaler.core import gaps
from memscaler.core.gaps import Gap, Track, Worked
from memscaler.core.model import Counters, Doubt, Observation, Policy
from memscaler.kernel.ledger import Ledger

log = structlog.get_logger()


def nobody(_: Gap) -> None:
    """Nobody wants to know."""


class Learning:
    """Used by the loop's thread."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._tracks: dict[str, Track] = {}
        self._doubted: dict[str, int] = {}
        self.looked = True
        """The counters or the sockets were looked at: there may be something to learn."""

    def see(self, seen: Observation) -> None:
        """What the governor has been told."""
        if isinstance(seen, Counters):
            self.looked = True
        elif isinstance(seen, Doubt):
            for uuid in list(self._tracks) if seen.gpu is None else [seen.gpu]:
                self._doubted[uuid] = time.monotonic_ns()

    def learn(self, policy: Policy, tell: Callable[[Gap], None]) -> None:
        """Tell the gaps that have come to light. Who learns only listens: a mistake of his must not end governing."""
        if not self.looked:
            return
        self.looked = False
        try:
            self._learn(policy, tell)
        except Exception:
            log.exception("gaps.failed")
            self._tracks.clear()

    def _learn(self, policy: Policy, tell: Callable[[Gap], None]) -> None:
        now_ns = time.monotonic_ns()
        worked = self._ledger.worked()
        doubted, self._doubted = self._doubted, {}
        before, self._tracks = self._tracks, {}
        for uuid, mine in policy.gpus.items():
            track = before.get(uuid) or Track(uuid)
            if uuid in doubted:
                track = gaps.forget(track, doubted[uuid])
            self._tracks[uuid], found = gaps.follow(track, _of(mine.watches, worked, now_ns), now_ns)
            for gap in found:
                log.debug("gap.seen", uuid=uuid, start_ns=gap.start_ns, end_ns=gap.end_ns)
                tell(gap)


def _of(slots: frozenset[int], worked: Mapping[int, Worked], now_ns: int) -> dict[int, Worked]:
    """A watch that cannot be counted may be at work at any time."""
    nothing = Worked(known_ns=0, doubt_ns=now_ns)
    return {slot: worked.get(slot, nothing) for slot in slots}
