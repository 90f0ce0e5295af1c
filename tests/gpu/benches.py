"""What the GPU tests stand on: a simulated machine, and one actuator on it whose reports can be waited for."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from memscaler.core.model import LeverResult, Outcome
from memscaler.gpu.actuator import Actuator
from memscaler.gpu.inventory import Driver, open_driver
from memscaler.gpu.reports import Note, Report, Sample, WakeTiming
from memscaler.simulator import SimulatedDriver, load

SERVER_PID = 4242


class Machine:
    """Simulated boards without any server on them, and the driver as memscaler sees it."""

    def __init__(self, path: Path, boards: tuple[str, ...], **settings: bool) -> None:
        self.simulated = SimulatedDriver.create(path, boards, context=False, **settings)  # type: ignore[arg-type]
        self.boards = self.simulated.boards
        load(self.simulated.library_dir, path)
        self._drivers: list[Driver] = []

    def serve(self, gpu: int = 0) -> None:
        """Put a server with a context on this GPU: its clocks go up and stay up."""
        self.boards[gpu].add_process(SERVER_PID)
        eventually(lambda: not self.boards[gpu].settling)

    def setters(self) -> list[str]:
        """The calls so far that change clocks, oldest first; one under way included."""
        return [call.symbol for call in self.simulated.call_log() if "Set" in call.symbol or "Reset" in call.symbol]

    def driver(self, *, look: bool = True) -> Driver:
        driver = open_driver(look=look)
        self._drivers.append(driver)
        return driver

    def close_drivers(self) -> None:
        while self._drivers:
            self._drivers.pop().close()

    def close(self) -> None:
        self.simulated.clear_faults()
        self.close_drivers()
        self.simulated.close()


Simulate = Callable[..., Machine]


@dataclass
class Bench:
    """One actuator and everything it reports."""

    actuator: Actuator
    reports: queue.SimpleQueue[Report]
    seq: int = 0
    notes: list[Note] = field(default_factory=list)
    timings: list[WakeTiming] = field(default_factory=list)

    def park(self) -> None:
        self.seq += 1
        self.actuator.park(self.seq)

    def wake(self) -> None:
        self.seq += 1
        self.actuator.wake(self.seq)

    def next(self, within_s: float = 5) -> LeverResult | Sample:
        """The next result or sample; notes and timings are put aside."""
        while True:
            report = self.reports.get(timeout=within_s)
            if isinstance(report, Note):
                self.notes.append(report)
            elif isinstance(report, WakeTiming):
                self.timings.append(report)
            else:
                return report

    def expect(self, *outcomes: Outcome) -> LeverResult:
        """The next results are these, and answer the last order."""
        result: LeverResult | Sample | None = None
        for outcome in outcomes:
            result = self.next()
            while isinstance(result, Sample):  # taken before each park
                result = self.next()
            assert isinstance(result, LeverResult)
            assert (result.outcome, result.seq) == (outcome, self.seq), result.reason
        assert isinstance(result, LeverResult)
        return result

    def parked(self) -> None:
        self.park()
        self.expect(Outcome.APPLIED, Outcome.VERIFIED)

    def quiet(self, for_s: float) -> bool:
        """True if nothing is reported for so long."""
        try:
            self.next(for_s)
        except queue.Empty:
            return True
        return False


Start = Callable[..., Bench]


def eventually(condition: Callable[[], bool], within_s: float = 2) -> None:
    """Wait until the condition holds."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
