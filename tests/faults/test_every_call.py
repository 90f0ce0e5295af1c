"""Every driver call x everything that it can answer: the GPU wakes, nothing stays parked, the other GPU does not notice.

The calls are not listed here: they are what the driver's call log has after actuators went through all they can do.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.codes import Fault, faults, main_faults
from tests.faults.conftest import Machine
from tests.faults.pairs import Pair, Side, eventually

PAIRS = 8
FEWEST_CALLS = 17  # of one GPU, so that a log that is empty by mistake is noticed
EVERYTHING = bool(os.environ.get("MEMSCALER_FAULTS"))
Calls = dict[str, list[str]]


def calls_of(machine: Machine, board: str, folder: Path) -> Calls:
    """The driver calls that start, sampling, parking, waking and recovering take: about one "gpu", about "all"."""
    simulated, driver = machine(board)
    simulated.log_everything()
    mark = simulated.log_mark()
    driver.reopen(driver.gpus[0].identity.uuid, probe=True)
    side = Side(simulated.boards[0], driver, folder)
    assert side.park(1)
    assert side.wake(1)
    simulated.reload()
    side.actuator.sample()
    assert eventually(lambda: side.park(1) or (side.wake(1) and False), within_s=3)
    side.actuator.sample()
    assert side.wake(1)
    side.actuator.close()
    assert side.actuator.join(1)
    driver.close()  # the next machine of this process begins with the last one's end
    records = simulated.call_log(after=mark)
    told = {
        "gpu": dict.fromkeys(record.symbol for record in records if record.gpu is not None),
        "all": dict.fromkeys(record.symbol for record in records if record.gpu is None),
    }
    return {about: list(symbols) for about, symbols in told.items()}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("board", ["a40", "p40", "a100"])
def test_every_call_and_every_answer(machine: Machine, tmp_path: Path, board: str) -> None:
    """No cell of the matrix leaves a GPU slow, parked, or unable to park again."""
    calls = calls_of(machine, board, tmp_path / "first")["gpu"]
    assert len(calls) >= FEWEST_CALLS, calls
    simulated, driver = machine(*[board] * 2 * PAIRS)
    pairs = [Pair(simulated.boards[at : at + 2], driver, tmp_path) for at in range(0, 2 * PAIRS, 2)]
    # Reads are the same on all boards; the levers are not.
    of_call = {call: faults if EVERYTHING or board == "a40" or is_lever(call) else main_faults for call in calls}
    cells = [fault for call in calls for fault in of_call[call](call)]
    began_s = time.monotonic()
    with ThreadPoolExecutor(PAIRS) as pool:
        list(pool.map(lambda at: try_all(pairs[at], cells[at::PAIRS]), range(PAIRS)))
    conclude(board, calls, pairs, began_s)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("board", ["a40", "p40"])
def test_every_call_while_a_reload_is_recovered_from(machine: Machine, tmp_path: Path, board: str) -> None:
    """The driver is reloaded, and looking the GPU up again or opening the session anew goes wrong in every way."""
    calls = calls_of(machine, board, tmp_path / "first")
    simulated, driver = machine(board, board)
    pair = Pair(simulated.boards, driver, tmp_path)
    began_s = time.monotonic()
    for call in (*calls["all"], *calls["gpu"]):
        for fault in (faults if EVERYTHING else main_faults)(call):
            pair.try_at_reload(fault, simulated, of_all=call in calls["all"])
    conclude(f"{board}, reloaded", [*calls["all"], *calls["gpu"]], [pair], began_s)


def conclude(what: str, calls: list[str], pairs: list[Pair], began_s: float) -> None:
    for pair in pairs:
        pair.close()
    wrong = [found for pair in pairs for found in pair.wrong]
    cells = sum(pair.cells for pair in pairs)
    print(f"{what}: {len(calls)} calls, {cells} cells in {time.monotonic() - began_s:.1f} s")
    assert not wrong, f"{len(wrong)} wrong:\n" + "\n".join(wrong[:200])
    assert not any(side.board.locks for pair in pairs for side in (pair.sick, pair.well))


def try_all(pair: Pair, cells: list[Fault]) -> None:
    for fault in cells:
        pair.try_before_park(fault)
        pair.try_while_parked(fault)


def is_lever(call: str) -> bool:
    return "Set" in call or "Reset" in call
