"""Handles and sessions that went stale: driver reload, GPU reset, GPU lost and back, library and kernel that differ."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from memscaler.core.errors import DriverUnavailable, GpuCallFailed, GpuLost
from memscaler.core.model import LeverResult, Outcome
from memscaler.gpu import nvml, nvml_calls, session
from memscaler.simulator import SimulatedDriver
from tests.faults.conftest import Machine
from tests.faults.pairs import Side, eventually

INIT, SHUTDOWN = "nvmlInit", "nvmlShutdown"
RESET = "nvmlDeviceResetMemoryLockedClocks"
BOARDS = ("a40", "p40", "a100")


def sides(machine: Machine, folder: Path, *boards: str) -> tuple[SimulatedDriver, list[Side]]:
    simulated, driver = machine(*boards)
    return simulated, [Side(board, driver, folder / "journal") for board in simulated.boards]


def end(*all_sides: Side) -> None:
    for side in all_sides:
        side.actuator.close()
        assert side.actuator.join(1)
        assert not side.mistakes


def parks(side: Side) -> bool:
    """True if it is down, perhaps at the second or third try."""
    return side.park(1) or (side.wake(1) and False)


@pytest.mark.parametrize("code", [1, 2, 9, 15, 16, 999])
def test_driver_reload(machine: Machine, tmp_path: Path, code: int) -> None:
    """After a reload every lever parks and wakes again, whatever the stale session says; it is opened anew once."""
    simulated, three = sides(machine, tmp_path, *BOARDS)
    assert all(side.park(1) for side in three)
    mark = simulated.log_mark()
    simulated.reload(stale_code=code)
    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(lambda side: side.wake(1), three))
        assert all(pool.map(lambda side: eventually(lambda: parks(side), within_s=3), three))
        assert all(board.locks for board in simulated.boards)
        assert all(pool.map(lambda side: side.wake(1), three))
    assert len(simulated.call_log(INIT, after=mark)) == 1
    assert not any(board.locks for board in simulated.boards)
    end(*three)


@pytest.mark.parametrize("board", BOARDS)
def test_gpu_lost_and_back(machine: Machine, tmp_path: Path, board: str) -> None:
    """A GPU that fell off the bus while parked is awake as soon as it is back, and parks again."""
    simulated, (lost, well) = sides(machine, tmp_path, board, board)
    assert lost.park(1)
    lost.board.lose()
    assert not lost.wake(0.1)
    assert lost.owes
    assert well.park(1)
    assert well.wake(1)
    lost.board.restore()
    assert lost.wake(0.5)
    assert eventually(lambda: parks(lost), within_s=3)
    assert lost.wake(1)
    assert not simulated.call_log(SHUTDOWN)  # the other GPU answered: it was not the session
    end(lost, well)


def test_session_whose_lookups_still_answer(machine: Machine, tmp_path: Path) -> None:
    """A stale session may know its GPUs and reach none of them: when each of them has failed, it is opened anew."""
    simulated, both = sides(machine, tmp_path, "a40", "a40")
    assert all(side.park(1) for side in both)
    for symbol in ("nvmlDeviceGetClockInfo", "nvmlDeviceGetPerformanceState", "nvmlDeviceGetPowerUsage", RESET):
        simulated.inject(symbol, code=999)
    assert not both[0].wake(0.1)
    assert not simulated.call_log(SHUTDOWN), "one GPU is no proof"
    healed = threading.Thread(target=heal_at_shutdown, args=(simulated,))
    healed.start()
    assert both[1].wake(2)
    assert both[0].wake(2)
    healed.join()
    end(*both)


def heal_at_shutdown(simulated: SimulatedDriver) -> None:
    assert eventually(lambda: bool(simulated.call_log(SHUTDOWN)), within_s=5)
    simulated.clear_faults()


def test_hung_call_keeps_the_session_from_being_renewed(machine: Machine, tmp_path: Path) -> None:
    """Nobody shuts the library down under a call; it is said which one it is, and afterwards all goes well."""
    simulated, (hung, other) = sides(machine, tmp_path, "a40", "a40")
    assert hung.park(1)
    assert other.park(1)
    hung.board.inject(RESET, hang=True)
    hung.order_wake()
    assert eventually(lambda: hung.actuator.overdue(time.monotonic_ns()) == "undo")
    simulated.reload()
    other.order_wake()
    answer = other._next(time.monotonic() + 2)
    assert isinstance(answer, LeverResult)
    assert answer.outcome is Outcome.FAILED
    with pytest.raises(GpuCallFailed, match=f"a call does not return.*{RESET}"):
        other.actuator._grip.reopen()
    assert not simulated.call_log(SHUTDOWN)
    simulated.clear_faults()
    assert hung.wake(1)
    assert other.wake(1)
    assert eventually(lambda: parks(other), within_s=3)
    assert other.wake(1)
    end(hung, other)


def test_library_and_kernel_differ_after_an_upgrade(machine: Machine, tmp_path: Path) -> None:
    """That cannot be mended in this process: the remedy is told, and that a new process is needed."""
    simulated, driver = machine("a40")
    side = Side(simulated.boards[0], driver, tmp_path)
    assert side.park(1)
    simulated.set_mismatch(True)
    assert side.wake(1), "the open session still works"
    assert side.park(1)
    assert not driver.outdated
    simulated.reload()
    side.order_wake()
    answer = side._next(time.monotonic() + 2)
    assert isinstance(answer, LeverResult)
    assert answer.outcome is Outcome.FAILED
    assert "upgraded while in use" in answer.remedy
    assert "upgraded while in use" in driver.outdated
    with pytest.raises(DriverUnavailable):
        eventually(lambda: bool(driver.reopen(side.actuator.gpu)))
    simulated.set_mismatch(False)
    assert side.wake(2)
    assert not driver.outdated
    end(side)


def test_driver_gone_for_a_while(machine: Machine, tmp_path: Path) -> None:
    """Unloaded for an upgrade and loaded later: parks and wakes go on by themselves, and opening is not tried wildly."""
    simulated, (side,) = sides(machine, tmp_path, "a40")
    assert side.park(1)
    simulated.set_loaded(False)
    mark = simulated.log_mark()
    simulated.reload(stale_code=9)
    side.wake(0.3)
    assert side.owes
    assert 1 <= len(simulated.call_log(INIT, after=mark)) < 15
    simulated.set_loaded(True)
    assert eventually(lambda: side.wake(0.2) and not side.owes, within_s=2)
    assert eventually(lambda: parks(side), within_s=3)
    assert side.wake(1)
    end(side)


def test_users_are_counted(machine: Machine) -> None:
    """Somebody else in this process has NVML open, too: it is shut down as often as it was initialised, and opened so."""
    simulated, driver = machine("a40")
    uuid = driver.gpus[0].identity.uuid
    nvml.initialise()
    try:
        simulated.reload()
        driver.reopen(uuid)
        assert [call.code for call in simulated.call_log(SHUTDOWN)] == [0, 0, 1][: len(simulated.call_log(SHUTDOWN))]
        assert nvml.is_alive()
    finally:
        nvml.shutdown()
    assert nvml.is_alive(), "one user is left"


def test_old_handles_never_reach_the_driver(machine: Machine) -> None:
    """After the session was opened anew a handle of before is refused without a call."""
    simulated, driver = machine("a40")
    old = driver.gpus[0]
    simulated.reload()
    fresh = driver.reopen(old.identity.uuid)
    simulated.log_everything()
    mark = simulated.log_mark()
    with pytest.raises(GpuCallFailed, match="the handle is stale"):
        nvml.clock_mhz(old.handle, nvml.MEMORY)
    with pytest.raises(GpuCallFailed, match="the handle is stale"):
        nvml_calls.Setter(RESET, old.handle)()
    assert not simulated.call_log(after=mark)
    assert nvml.clock_mhz(fresh.handle, nvml.MEMORY) > 0
    assert driver.find(old.identity.uuid) is fresh


def test_unknown_gpu(machine: Machine) -> None:
    """A GPU that is not in this machine is lost."""
    _, driver = machine("a40")
    with pytest.raises(GpuLost):
        driver.reopen("GPU-00000000-0000-0000-0000-000000000000")


def test_only_one_thread_renews() -> None:
    """Many threads find the session stale at once: one opens it anew, the others use what it got."""
    shared, opened = session.Session("it"), []
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: shared.renew(0, lambda: opened.append(time.sleep(0.02))), range(8)))
    assert (len(opened), shared.generation) == (1, 1)


def test_calls_fail_at_once_while_the_session_is_opened() -> None:
    """No call waits for a renewal that hangs, and no second renewal begins."""
    shared, hang = session.Session("it"), threading.Event()
    thread = threading.Thread(target=shared.renew, args=(0, hang.wait))
    thread.start()
    assert eventually(lambda: shared.generation == 1)
    began_s = time.monotonic()
    with pytest.raises(GpuCallFailed, match="being opened anew"):
        shared.enter("a call")
    assert time.monotonic() - began_s < 0.05
    with pytest.raises(GpuCallFailed, match="does not return"):
        shared.renew(1, lambda: None)
    hang.set()
    thread.join()
    shared.enter("a call", 1)
    shared.leave()


def test_a_gpu_that_hangs_at_the_start_is_left_out(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not keep the others from being found."""
    monkeypatch.setattr("memscaler.gpu.inventory.OPEN_DEADLINE_S", 0.1)
    simulated, _ = machine("a40", "p40")
    simulated.boards[0].inject("nvmlDeviceGetArchitecture", hang=True)
    from memscaler.gpu.inventory import open_driver

    with open_driver() as driver:
        assert [gpu.identity.index for gpu in driver.gpus] == [1]
        assert "does not return from nvmlDeviceGetArchitecture" in driver.lost[0].reason
        simulated.clear_faults()
