"""Who is on which GPU, by the (simulated) driver; asked in a process of its own, as the arbiter does."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memscaler.gvm.boards import Board, Boards
from memscaler.simulator import SimulatedDriver

ASK = """
import sys, time
from memscaler.core.errors import GpuError
from memscaler.gvm.boards import look
began_s = time.monotonic()
try:
    found = look(float(sys.argv[1]))
    for uuid, board in found.boards.items():
        print(board.index, uuid, dict(board.used))
    print(sorted(found.on()))
except GpuError as error:
    print("no:", error)
print(time.monotonic() - began_s < 20, flush=True)
import os
os._exit(0)
"""

SIDE_BY_SIDE = """
import concurrent.futures
from memscaler.gvm.boards import look
with concurrent.futures.ThreadPoolExecutor(8) as threads:
    print({len(found.boards) for found in threads.map(lambda nth: look(), range(400))}, flush=True)
"""


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[SimulatedDriver]:
    made = SimulatedDriver.create(tmp_path / "boards", ("a40", "p40"), context=False)
    yield made
    made.clear_faults()
    made.close()


def ask(driver: SimulatedDriver, patience_s: float = 30, script: str = ASK) -> list[str]:
    command = [sys.executable, "-c", script, str(patience_s)]
    environment = {**os.environ, **driver.environment}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=120
    ).stdout.splitlines()


def test_processes_by_gpu(driver: SimulatedDriver) -> None:
    first, second = driver.boards
    first.add_process(os.getpid(), 5 << 20)
    second.add_process(os.getpid(), 7 << 20)
    second.add_process(1)
    told = ask(driver)
    assert told[0] == f"0 {first.uuid} {{{os.getpid()}: {5 << 20}}}"
    assert told[1].startswith(f"1 {second.uuid} ")
    assert f"{os.getpid()}: {7 << 20}" in told[1]
    assert told[2] == str([1, os.getpid()])


def test_a_driver_that_is_not_there_is_an_error_and_not_nobody(driver: SimulatedDriver) -> None:
    driver.set_loaded(False)
    assert ask(driver)[0].startswith("no: ")


def test_a_driver_that_hangs_is_given_up(driver: SimulatedDriver) -> None:
    driver.inject("nvmlDeviceGetComputeRunningProcesses_v3", hang=True)
    told = ask(driver, 0.3)
    assert "does not return from nvmlDeviceGetComputeRunningProcesses_v3" in told[0]
    assert told[1] == "True"


def test_looks_at_the_same_time(driver: SimulatedDriver) -> None:
    """The last one out does not close the session that another one has just opened."""
    assert ask(driver, script=SIDE_BY_SIDE) == ["{2}"]


def test_sums_and_users() -> None:
    found = Boards("1", {"A": Board(None, {1: 5, 2: None}), "B": Board(None, {1: 7})})
    assert found.on() == {1, 2}
    assert found.on(["B"]) == {1}
    assert found.bytes_of([1]) == 12
    assert found.bytes_of([1, 2]) is None
    assert found.users([1, 3]) == {1: {"A": 5, "B": 7}}
