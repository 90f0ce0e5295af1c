"""Two actuators side by side: one whose GPU is to suffer, and one whose GPU must not notice.

What is right is read from the boards and from the journal, never from what an actuator says of itself. The part of the
governor that the pair needs (ask again for a wake that failed) is played here.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from memscaler.core.model import LeverResult, Outcome
from memscaler.gpu.actuator import Actuator
from memscaler.gpu.capability import choose
from memscaler.gpu.grip import Reopening
from memscaler.gpu.hands import Means
from memscaler.gpu.inventory import Driver
from memscaler.gpu.journal import Journal
from memscaler.gpu.reports import ActuatorPolicy, Note, Report
from memscaler.simulator import SimulatedBoard, SimulatedDriver
from tests.faults.codes import Fault
from tests.patience import patience

PROMISE_S = 0.5  # many threads share one interpreter here; test_governors.py holds it to the real one
RECOVERY_S = 3.0  # from the end of a fault until the GPU parks again
GIVEN_S = 0.15  # for a park that may hang: then the client comes
AGAIN_S = 0.003  # until a failed wake is asked for again
POLICY = ActuatorPolicy(settle_timeout_s=0.15, write_deadline_s=0.05, read_deadline_s=0.05)


class Side:
    """One GPU with its actuator."""

    def __init__(self, board: SimulatedBoard, driver: Driver, journal: Path) -> None:
        device = next(gpu for gpu in driver.gpus if gpu.identity.uuid == board.uuid)
        self.board = board
        self.journal = Journal(journal)
        self.reports: queue.SimpleQueue[Report] = queue.SimpleQueue()
        self.mistakes: list[str] = []
        self.seq = 0
        levers = choose(device).levers
        self.actuator = Actuator(
            Means(device, levers, self.journal, self.reports.put, POLICY, reopening=Reopening(driver))
        )

    def _next(self, until_s: float) -> LeverResult | None:
        """The next answer to the last order."""
        while (left_s := until_s - time.monotonic()) > 0:
            try:
                report = self.reports.get(timeout=left_s)
            except queue.Empty:
                return None
            if isinstance(report, Note) and report.event == "actuator.failed":
                self.mistakes.append(report.detail)
            if isinstance(report, LeverResult) and report.seq == self.seq:
                return report
        return None

    def park(self, within_s: float) -> bool:
        """True if it is down and seen to be."""
        self.seq += 1
        self.actuator.park(self.seq)
        until_s = time.monotonic() + within_s
        while (answer := self._next(until_s)) is not None:
            if answer.outcome is not Outcome.APPLIED:
                return answer.outcome is Outcome.VERIFIED
        return False

    def order_wake(self) -> None:
        self.seq += 1
        self.actuator.wake(self.seq)

    def wake(self, within_s: float) -> bool:
        """Order it, again for as long as it fails. True once no lock holds the board."""
        until_s = time.monotonic() + within_s
        self.order_wake()
        while time.monotonic() < until_s:
            answer = self._next(min(until_s, time.monotonic() + 0.005))
            if answer is None:
                if not self.board.locks and self.actuator.call_due_ns() is None:
                    return True
            elif answer.outcome is not Outcome.WOKEN:
                time.sleep(AGAIN_S)
                self.order_wake()
        return not self.board.locks

    @property
    def owes(self) -> bool:
        return self.journal.entry(self.actuator.gpu) is not None


class Pair:
    """One cell after the other is tried on the same two GPUs. What is wrong is collected."""

    def __init__(self, boards: Sequence[SimulatedBoard], driver: Driver, folder: Path) -> None:
        self.sick, self.well = (Side(board, driver, folder / "journal") for board in boards)
        self.wrong: list[str] = []
        self.cells = 0

    def close(self) -> None:
        for side in (self.sick, self.well):
            side.actuator.close()
        for side in (self.sick, self.well):
            if not side.actuator.join(1):
                self.wrong.append("a thread does not end")
            self.wrong += side.mistakes

    def try_before_park(self, fault: Fault) -> None:
        """The fault is there when the GPU is to be parked."""
        self._try(f"{fault}, before the park", fault, parked=False)

    def try_while_parked(self, fault: Fault) -> None:
        """The fault comes when the GPU is parked; it is sampled once, then its client comes."""
        self._try(f"{fault}, while parked", fault, parked=True)

    def try_at_reload(self, fault: Fault, simulated: SimulatedDriver, *, of_all: bool) -> None:
        """The driver is reloaded under two parked GPUs, and the fault is there. of_all: it strikes both of them."""
        self.cells += 1
        cell = f"{fault}, at a reload"
        for side in (self.sick, self.well):
            self._check(self._parks_again(side), f"{cell}: does not park to begin with")
        (simulated if of_all else self.sick.board).inject(fault.symbol, **fault.how)
        try:
            simulated.reload()
            self.sick.wake(GIVEN_S)
            if not of_all and "hang" not in fault.how:  # under a call that hangs nobody may open the session anew
                self._check(self._parks_again(self.well), f"{cell}: the other GPU does not park")
                self._check(self.well.wake(PROMISE_S * patience()), f"{cell}: the other GPU does not wake")
            self._check(not self.sick.board.locks, f"{cell}: parked after the wake")
        finally:
            simulated.clear_faults()
        for side in (self.sick, self.well):
            self._check(self._parks_again(side), f"{cell}: does not park again after the fault is over")
            self._check(side.wake(PROMISE_S * patience()), f"{cell}: not awake in the end")
            self._check(eventually(lambda: not side.owes), f"{cell}: the journal still has it")

    def _try(self, cell: str, fault: Fault, *, parked: bool) -> None:
        self.cells += 1
        if parked:
            self._check(self.sick.park(PROMISE_S * patience()), f"{cell}: does not park to begin with")
        self.sick.board.inject(fault.symbol, **fault.how)
        try:
            if parked:
                self.sick.actuator.sample()
            else:
                self.sick.park(GIVEN_S)
            promise_s = PROMISE_S * patience() + 20 * fault.delay_s
            awake = self.sick.wake(GIVEN_S if fault.on_wake_path else promise_s)
            self._check(awake or fault.on_wake_path, f"{cell}: not awake in time: {self.sick.board.locks}")
            self._other_is_well(cell)
        finally:
            self.sick.board.clear_faults()
        self._check(self.sick.wake(PROMISE_S * patience()), f"{cell}: not awake after the fault is over")
        self._check(self._parks_again(self.sick), f"{cell}: does not park again after the fault is over")
        self._check(self.sick.wake(PROMISE_S * patience()), f"{cell}: not awake in the end")
        self._check(eventually(lambda: not self.sick.owes), f"{cell}: the journal still has it")

    def _other_is_well(self, cell: str) -> None:
        self._check(self.well.park(PROMISE_S * patience()), f"{cell}: the other GPU does not park")
        self._check(self.well.wake(PROMISE_S * patience()), f"{cell}: the other GPU does not wake")

    def _parks_again(self, side: Side) -> bool:
        until_s = time.monotonic() + RECOVERY_S * patience()
        while time.monotonic() < until_s:
            if side.park(PROMISE_S * patience()):
                return True
            side.wake(PROMISE_S * patience())
        return False

    def _check(self, fine: bool, what: str) -> None:
        if not fine:
            self.wrong.append(what)


def eventually(condition: Callable[[], bool], within_s: float = 0.5) -> bool:
    end_s = time.monotonic() + within_s * patience()
    while not condition():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.002)
    return True
