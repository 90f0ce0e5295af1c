"""Whole governors whose drivers fail: real connections, real sockets, and boards that tell what became of them.

One governor has all boards at once: those that suffer one fault after the other, and one of each kind that must not
notice. `MEMSCALER_FAULTS=all` tries every answer to every call instead of one of each kind.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from memscaler.simulator import SimulatedBoard, SimulatedDriver
from tests.faults.codes import UNDO, Fault, faults, main_faults
from tests.governor import Governor, connect, governing, listener, port_of
from tests.patience import patience

SUFFERING = ("a40",) * 9 + ("p40",) * 2 + ("a100",) * 2
SPARED = ("a40", "p40", "a100")
PROMISE_S = 0.2
SLACK_S = 0.3  # for 16 boards and their clients on one shared machine
UNDO_AGAIN_S = 4.0  # a wake that failed for a second is asked for again after 1.6 s at most
PARKED_WITHIN_S = 12.0  # with the quarantine that a failure brings
READ_BACK_S = 0.1
UNAVAILABLE = 69
SERVER_PID = 4242
EVERYTHING = bool(os.environ.get("MEMSCALER_FAULTS"))
QUICK = {
    "MEMSCALER_IDLE_AFTER": "150ms",
    "MEMSCALER_MIN_DWELL": "0s",
    "MEMSCALER_RETRY_AFTER": "300ms",
    "MEMSCALER_SETTLE_TIMEOUT": "200ms",
    "MEMSCALER_SAMPLE_EVERY": "1s",
}


class Station:
    """One GPU, the port that drives it, and what was found wrong with it."""

    def __init__(self, board: SimulatedBoard) -> None:
        self.board = board
        self.wrong: list[str] = []
        self.slowest_s = 0.0
        self.wakes = self.cells = 0
        self.server = listener()

    @contextlib.contextmanager
    def client(self) -> Iterator[None]:
        with connect(self.server), self.server.accept()[0]:
            yield

    def check(self, fine: bool, what: str) -> None:
        if not fine:
            self.wrong.append(f"{self.board.key} {self.board.index}: {what}")

    def parked(self, cell: str) -> bool:
        fine = wait(lambda: bool(self.board.locks), PARKED_WITHIN_S)
        self.check(fine, f"{cell}: does not park")
        time.sleep(READ_BACK_S)  # or its park would never count as a success, and quarantines would double for ever
        return fine

    def awake(self, within_s: float) -> bool:
        """True once nothing holds its clocks; the time that it took counts."""
        began_s = time.monotonic()
        fine = wait(lambda: not self.board.locks, within_s)
        self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
        self.wakes += fine
        return fine

    def stays_awake(self) -> bool:
        """A park whose driver call was under way when the client came may still show, for as long as a wake takes."""
        return stays(lambda: not self.board.locks, 0.1) or (
            self.awake(PROMISE_S + SLACK_S) and stays(lambda: not self.board.locks, 0.2)
        )

    def try_fault(self, fault: Fault) -> None:
        """It comes while the GPU is parked, lasts over a wake and the parks after it, and ends while a client is there."""
        cell = str(fault)
        self.cells += 1
        if not self.parked(f"before {cell}"):
            return
        promise_s = PROMISE_S + SLACK_S + 8 * fault.delay_s
        self.board.inject(fault.symbol, **fault.how)
        try:
            with self.client():
                fine = self.awake(0.5 if fault.on_wake_path else promise_s)
                self.check(fine or fault.on_wake_path, f"{cell}: not awake in time")
                self.check(not fine or self.stays_awake(), f"{cell}: slow with a client")
            if not fault.on_wake_path:
                time.sleep(0.5)  # it may park, or fail to
                with self.client():
                    self.check(self.awake(promise_s), f"{cell}: the second client finds it slow")
            with self.client():
                self.board.clear_faults()
                self.check(self.awake(UNDO_AGAIN_S), f"{cell}: not awake after the fault is over")
                self.check(self.stays_awake(), f"{cell}: slow with a client afterwards")
        finally:
            self.board.clear_faults()

    def live_on(self, end: threading.Event) -> None:
        """Be a GPU that has nothing to do with the faults of others: parked soon, awake at once."""
        while not end.is_set():
            self.check(wait(lambda: bool(self.board.locks), 3), "spared, and does not park")
            with self.client():
                self.check(self.awake(PROMISE_S + SLACK_S), "spared, and does not wake in time")
                self.check(stays(lambda: not self.board.locks, 0.05), "spared, and slow with a client")


def wait(condition: Callable[[], bool], within_s: float) -> bool:
    end_s = time.monotonic() + within_s * patience()
    while not condition():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.004)
    return True


def stays(condition: Callable[[], bool], for_s: float) -> bool:
    return not wait(lambda: not condition(), for_s)


@contextlib.contextmanager
def governed(folder: Path, boards: tuple[str, ...]) -> Iterator[tuple[Governor, list[Station]]]:
    """A governor of these boards, each with its own port. Afterwards nothing is parked, and it has made no mistake."""
    state = folder / "simulator" / "state"
    state.parent.mkdir(parents=True)
    with SimulatedDriver.create(state, boards, settle_ms=1) as driver:
        driver.log_everything()
        for board in driver.boards:
            board.add_process(SERVER_PID)
        stations = [Station(board) for board in driver.boards]
        ports = [part for one in stations for part in ("--port", f"{port_of(one.server)}:gpu{one.board.index}")]
        with governing(folder, ",".join(boards), *ports, env=QUICK) as governor:
            yield governor, stations
            assert not governor.ended()
            driver.clear_faults()
            assert governor.stop() == 0
        assert not [board for board in driver.boards if board.locks]
        assert not list((folder / "journal").glob("GPU-*"))
        assert "Traceback" not in governor.log_path.read_text()
        for one in stations:
            one.server.close()


def calls_of(folder: Path) -> dict[str, list[str]]:
    """Kind of board -> the calls that a governor made about it, from its start through parks, samples and wakes."""
    kinds = tuple(dict.fromkeys(SPARED))
    calls: dict[str, list[str]] = {}
    with governed(folder, kinds) as (governor, stations):
        for _ in range(2):
            assert all(one.parked("first") for one in stations)
            with contextlib.ExitStack() as stack:
                for one in stations:
                    stack.enter_context(one.client())
                assert all(one.awake(1) for one in stations)
        log = governor.driver.call_log()
        for one in stations:
            symbols = (record.symbol for record in log if record.gpu == one.board.index)
            calls[one.board.key] = list(dict.fromkeys(symbols))
    return calls


def cells_of(calls: dict[str, list[str]]) -> dict[str, list[Fault]]:
    """Each call once, on the first kind of board that makes it; those after which a GPU is left alone come last."""
    cells: dict[str, list[Fault]] = {}
    seen: set[str] = set()
    for kind, symbols in calls.items():
        fresh = [symbol for symbol in symbols if symbol not in seen]
        seen.update(fresh)
        mine = [fault for symbol in fresh for fault in (faults if EVERYTHING else main_faults)(symbol)]
        cells[kind] = sorted(mine, key=leaves_it_unmanaged)
    return cells


def leaves_it_unmanaged(fault: Fault) -> bool:
    """A wake that is reported done and is not: that GPU is never parked again."""
    return bool(fault.how.get("ignore")) and fault.symbol in UNDO


@pytest.mark.timeout(3600 if EVERYTHING else 300)
def test_governors_with_failing_drivers(tmp_path: Path) -> None:
    """Every call x each kind of fault: GPUs with clients are awake, nothing stays parked, other GPUs do not notice."""
    calls = calls_of(tmp_path / "first")
    cells = cells_of(calls)
    assert sum(map(len, cells.values())) > 80, cells
    began_s = time.monotonic()
    with governed(tmp_path / "all", SUFFERING + SPARED) as (_, stations):
        suffering, spared = stations[: len(SUFFERING)], stations[len(SUFFERING) :]
        end = threading.Event()
        with ThreadPoolExecutor(len(stations)) as pool:
            living = [pool.submit(one.live_on, end) for one in spared]
            trying = [pool.submit(try_share, one, suffering, cells[one.board.key]) for one in suffering]
            for each in trying:
                each.result()
            end.set()
            for each in living:
                each.result()
    wrong = [what for one in stations for what in one.wrong]
    tried = sum(one.cells for one in suffering)
    slowest_s = max(one.slowest_s for one in spared)
    print(f"{tried} cells in {time.monotonic() - began_s:.0f} s;", end=" ")
    print(f"spared GPUs: {sum(one.wakes for one in spared)} wakes, the slowest seen after {slowest_s * 1e3:.0f} ms")
    assert not wrong, f"{len(wrong)} wrong:\n" + "\n".join(wrong)
    assert tried == sum(map(len, cells.values()))


def try_share(station: Station, suffering: list[Station], cells: list[Fault]) -> None:
    """This station's share of the cells of its kind of board; what leaves it unmanaged is the last of them."""
    same = [one for one in suffering if one.board.key == station.board.key]
    mine = cells[same.index(station) :: len(same)]
    for fault in sorted(mine, key=leaves_it_unmanaged):
        station.try_fault(fault)


def test_driver_reload_under_a_governor(tmp_path: Path) -> None:
    """All GPUs are parked when the driver is reloaded: clients find them awake, and they park again by themselves."""
    with governed(tmp_path, SPARED) as (governor, stations):
        for code in (999, 2, 9):
            assert all(one.parked("before the reload") for one in stations)
            governor.driver.reload(stale_code=code)
            with contextlib.ExitStack() as stack:
                for one in stations:
                    stack.enter_context(one.client())
                    assert one.awake(PROMISE_S + SLACK_S)
            assert all(one.parked(f"after a reload with {code}") for one in stations)
            with stations[0].client():
                assert stations[0].awake(PROMISE_S + SLACK_S)


def test_gpus_lost_and_back_under_a_governor(tmp_path: Path) -> None:
    """A GPU is off the bus when its client comes: awake as soon as it is back, parked again later; others are well."""
    with governed(tmp_path, SPARED + SPARED) as (governor, stations):
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lose_and_restore, stations[:3], stations[3:]))
        assert not [what for one in stations for what in one.wrong]
        assert len(governor.events("gpu.alarmed")) >= 3


def lose_and_restore(lost: Station, well: Station) -> None:
    assert lost.parked("before it is lost")
    lost.board.lose()
    with lost.client():
        lost.check(not lost.awake(0.5), "awake without being there")
        if well.parked("beside a lost one"):
            with well.client():
                well.check(well.awake(PROMISE_S + SLACK_S), "not awake beside a lost one")
        lost.board.restore()
        lost.check(lost.awake(UNDO_AGAIN_S), "not awake when it is back")
    lost.parked("when it is back")


def test_library_that_no_longer_fits_is_told_with_the_remedy(tmp_path: Path) -> None:
    """After an upgrade in use no session can be opened: it begins anew, and if that does not help ends with what does.

    A library that is loaded cannot be replaced, so only another program in this process could load the new one.
    """
    with listener() as server:
        ports = ("--port", f"{port_of(server)}:gpu0")
        with governing(tmp_path, "a40", *ports, env=QUICK) as governor:
            board = governor.driver.boards[0]
            assert wait(lambda: board.locks, 10)
            governor.driver.set_mismatch(True)
            governor.driver.reload()
            with connect(server):
                assert wait(governor.ended, 30)
            assert "upgraded while in use" in governor.log_path.read_text()
            assert governor.process.returncode == UNAVAILABLE
            assert not board.locks
            governor.driver.set_mismatch(False)
            server.accept()[0].close()
        with governing(tmp_path, "a40", *ports, env=QUICK):
            assert wait(lambda: board.locks, 10)
