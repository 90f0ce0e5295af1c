"""The end of a run: since when it is wanted, what is to follow it, who waits for that, and when it is reached.

It is reached when every GPU was seen at full speed and every child has let go of what it held; where a GPU does not
come up, when STOP_BUDGET_NS are over. The first who wants an end says why; only a signal changes what follows.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from enum import StrEnum

from memscaler.core.errors import MemscalerError
from memscaler.core.model import Phase, Stop
from memscaler.core.snapshot import Released
from memscaler.daemon.children import Children
from memscaler.daemon.fleet import Fleet
from memscaler.daemon.governing import Governing
from memscaler.daemon.keeper import Keeper
from memscaler.daemon.record import Recorder
from memscaler.daemon.requests import Document

STOP_BUDGET_NS = 900_000_000  # of the second in which we promise to be gone


class Ending(StrEnum):
    """What is to follow the end of the loop."""

    STOP = "stop"
    RELEASE = "release"  # let go of the driver, and wait
    RESTART = "restart"  # begin anew in this process


class End:
    """Used by the loop's thread.

    by_ns: when the GPUs' time is over (CLOCK_MONOTONIC); 0 while nobody wants an end. then: what is to follow.
    asker: who waits for what follows. released: what the operator said who asked for a release.
    """

    def __init__(
        self, governing: Governing, fleet: Fleet, children: Children, keeper: Keeper, recorder: Recorder
    ) -> None:
        self._governing, self._fleet = governing, fleet
        self._children, self._keeper, self._recorder = children, keeper, recorder
        self.by_ns = 0
        self.then = Ending.STOP
        self.asker: Future[Document] | None = None
        self.released: Released | None = None

    def begin(self, reason: str, then: Ending) -> None:
        """Wake everything, for good."""
        if not self.by_ns:
            self.by_ns = time.monotonic_ns() + STOP_BUDGET_NS
            self.then = then
            self._keeper.replace_no_more()
            self._recorder.stopping(reason)
            self._governing.feed(Stop())
            self._children.end()
        elif then is Ending.STOP:  # a signal goes before what else was to follow
            self.then = then
            if time.monotonic_ns() > self.by_ns:
                self._children.hurry()

    def release(self, released: Released, asker: Future[Document]) -> None:
        """An operator wants the driver. Raise MemscalerError if the end has begun already."""
        self.refuse_late()
        self.asker, self.released = asker, released
        why = f": {released.reason}" if released.reason else ""
        self.begin(f"released by {released.owner}{why}", Ending.RELEASE)

    def refuse_late(self) -> None:
        """Raise MemscalerError if the end has begun: nothing new is begun any more."""
        if self.by_ns:
            raise MemscalerError("memscaler is about to end")

    def is_reached(self) -> bool:
        """Every GPU is awake, and was seen to be, every server, and every application; or the time is over."""
        return bool(self.by_ns) and self._children.gone and self.gpus_are_done()

    def gpus_are_done(self) -> bool:
        stopped = all(gpu.phase is Phase.STOPPED for gpu in self._governing.state.gpus.values())
        return (stopped and not self._fleet.unproven()) or time.monotonic_ns() >= self.by_ns

    def left_parked(self) -> set[str]:
        """The GPUs that may be down still."""
        phases = {uuid: gpu.phase for uuid, gpu in self._governing.state.gpus.items()}
        return {uuid for uuid, phase in phases.items() if phase is not Phase.STOPPED} | set(self._fleet.unproven())
