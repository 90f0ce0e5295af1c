"""When a simulated GPU was parked, by the driver's call log: the truth that all claims are checked against."""

from __future__ import annotations

import time
from dataclasses import dataclass

from memscaler.simulator import SimulatedDriver
from tests.governor import eventually

SET, RESET = "nvmlDeviceSetMemoryLockedClocks", "nvmlDeviceResetMemoryLockedClocks"  # of an A40


def now_ns() -> int:
    return time.monotonic_ns()


@dataclass(frozen=True)
class Span:
    """From the return of the call that locked the clocks to the entry of the one that released them."""

    begin_ns: int
    end_ns: int | None


class Timeline:
    """One board. Read anew at each question."""

    def __init__(self, driver: SimulatedDriver, gpu: int = 0) -> None:
        self._driver = driver
        self._gpu = gpu
        self.board = driver.boards[gpu]

    @property
    def spans(self) -> list[Span]:
        """In order; the last one may have no end yet."""
        found: list[Span] = []
        begun = 0
        for call in self._driver.call_log([SET, RESET]):
            if call.gpu != self._gpu or call.code not in (0, None):
                continue
            if call.symbol == SET:
                begun = begun or call.return_ns or call.entry_ns
            elif begun:
                found.append(Span(begun, call.entry_ns))
                begun = 0
        return [*found, Span(begun, None)] if begun else found

    def parked_ns(self, begin_ns: int, end_ns: int) -> int:
        """For how long it was parked in between."""
        return sum(
            max(0, min(span.end_ns or end_ns, end_ns) - max(span.begin_ns, begin_ns))
            for span in self.spans
            if span.begin_ns < end_ns
        )

    def share(self, begin_ns: int, end_ns: int) -> float:
        """Of the time in between."""
        return self.parked_ns(begin_ns, end_ns) / (end_ns - begin_ns)

    def parks(self, after_ns: int = 0) -> list[int]:
        """When it was parked."""
        return [span.begin_ns for span in self.spans if span.begin_ns >= after_ns]

    def wakes(self, after_ns: int = 0) -> list[int]:
        """When it was woken."""
        return [span.end_ns for span in self.spans if span.end_ns and span.end_ns >= after_ns]

    def parked_at(self, at_ns: int) -> bool:
        return any(span.begin_ns <= at_ns < (span.end_ns or at_ns + 1) for span in self.spans)

    def wait_parked(self, within_s: float = 15.0) -> int:
        """When it was; its clocks have settled."""
        eventually(lambda: self.board.locks and self.board.memory_clock_mhz == 405, within_s=within_s, what="park")
        return self.spans[-1].begin_ns

    def wait_awake(self, within_s: float = 5.0) -> None:
        eventually(lambda: not self.board.locks, within_s=within_s, what="wake")
