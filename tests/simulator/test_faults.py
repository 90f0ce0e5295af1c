"""What can go wrong with a driver, on demand."""

import ctypes
import subprocess
import sys
import threading
import time

import pynvml as n
import pytest

from memscaler.simulator import SimulatedDriver, SimulatorError, start

SET = "nvmlDeviceSetMemoryLockedClocks"


def code_of(call, *arguments):
    try:
        call(*arguments)
    except n.NVMLError as error:
        return error.value
    return 0


def test_code_after_and_times(nvml):
    """A fault lets some calls through, strikes some, and is over."""
    driver = nvml("a40", "a40")
    driver.boards[0].inject(SET, code=999, after=1, times=2)
    first, second = (n.nvmlDeviceGetHandleByIndex(i) for i in range(2))
    assert [code_of(n.nvmlDeviceSetMemoryLockedClocks, first, 405, 405) for _ in range(5)] == [0, 999, 999, 0, 0]
    assert code_of(n.nvmlDeviceSetMemoryLockedClocks, second, 405, 405) == 0


def test_accepted_but_ignored(nvml):
    """Success is not effect."""
    board = nvml("a40").boards[0]
    board.inject(SET, ignore=True)
    handle = n.nvmlDeviceGetHandleByIndex(0)
    n.nvmlDeviceSetMemoryLockedClocks(handle, 405, 405)
    assert (board.memory_clock_mhz, bool(board.locks)) == (7251, False)
    board.clear_faults()
    n.nvmlDeviceSetMemoryLockedClocks(handle, 405, 405)
    assert board.memory_clock_mhz == 405


def test_delay(nvml):
    """A delayed call works, late."""
    board = nvml("a40").boards[0]
    board.inject(SET, delay_ms=60)
    before = time.monotonic()
    n.nvmlDeviceSetMemoryLockedClocks(n.nvmlDeviceGetHandleByIndex(0), 405, 405)
    assert time.monotonic() - before >= 0.06
    assert board.memory_clock_mhz == 405


def test_hang_is_logged_and_ends_when_cleared(nvml):
    """A hanging call shows in the log as entered; other boards answer; clearing lets it go on."""
    driver = nvml("a40", "a40")
    driver.boards[0].inject(SET, hang=True)
    handle, other = (n.nvmlDeviceGetHandleByIndex(i) for i in range(2))
    thread = threading.Thread(target=n.nvmlDeviceSetMemoryLockedClocks, args=(handle, 405, 405))
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    (record,) = driver.call_log(SET)
    assert (record.code, record.return_ns, record.gpu) == (None, None, 0)
    n.nvmlDeviceSetMemoryLockedClocks(other, 405, 405)
    driver.boards[0].clear_faults(SET)
    thread.join(2)
    assert not thread.is_alive()
    assert driver.call_log(SET)[0].code == 0
    assert driver.boards[0].memory_clock_mhz == 405


def test_every_function_at_once(nvml):
    """A star strikes everything, and clearing the driver's faults clears those of its boards."""
    driver = nvml("a40")
    handle = n.nvmlDeviceGetHandleByIndex(0)
    driver.inject("*", code=999)
    driver.boards[0].inject(SET, code=2)
    assert code_of(n.nvmlDeviceGetName, handle) == code_of(n.nvmlDeviceGetCount) == 999
    driver.clear_faults()
    assert code_of(n.nvmlDeviceGetName, handle) == code_of(n.nvmlDeviceSetMemoryLockedClocks, handle, 405, 405) == 0
    with pytest.raises(SimulatorError, match="nvmlFoo"):
        driver.inject("nvmlFoo", code=1)


def test_lost_and_back(nvml):
    """A lost board answers 15 to everything, its neighbour works, and it comes back."""
    driver = nvml("a40", "p40")
    handle, other = (n.nvmlDeviceGetHandleByIndex(i) for i in range(2))
    driver.boards[0].lose()
    for call in (n.nvmlDeviceGetName, n.nvmlDeviceResetMemoryLockedClocks, n.nvmlDeviceGetPowerUsage):
        assert code_of(call, handle) == 15
    assert code_of(n.nvmlDeviceGetHandleByIndex, 0) == code_of(n.nvmlDeviceGetHandleByUUID, driver.boards[0].uuid) == 15
    assert (n.nvmlDeviceGetName(other), n.nvmlDeviceGetCount()) == ("Tesla P40", 2)
    driver.boards[0].restore()
    assert n.nvmlDeviceGetName(handle) == "NVIDIA A40"


def test_reload(nvml):
    """After a driver reload locks are gone, sessions are stale, and old handles stay invalid."""
    driver = nvml("a40")
    handle = n.nvmlDeviceGetHandleByIndex(0)
    n.nvmlDeviceSetMemoryLockedClocks(handle, 405, 405)
    driver.reload(stale_code=15)
    assert not driver.boards[0].locks
    assert code_of(n.nvmlDeviceGetName, handle) == code_of(n.nvmlDeviceGetCount) == 15
    n.nvmlShutdown()
    n.nvmlInit()
    assert code_of(n.nvmlDeviceGetName, handle) == 2
    assert n.nvmlDeviceGetName(n.nvmlDeviceGetHandleByUUID(driver.boards[0].uuid)) == "NVIDIA A40"


def test_init_failures(nvml):
    """No driver is 9, another version 18; both are over when the driver is right again."""
    driver = nvml("a40")
    n.nvmlShutdown()
    driver.set_mismatch(True)
    assert code_of(n.nvmlInit) == 18
    driver.set_loaded(False)
    assert code_of(n.nvmlInit) == 9
    driver.set_loaded(True)
    driver.inject("nvmlInit_v2", code=17, times=1)
    assert code_of(n.nvmlInit) == 17
    assert code_of(n.nvmlInit) == 0


def test_without_a_state_file_there_is_no_driver(nvml, monkeypatch, tmp_path):
    """A missing state file is a missing driver, a foreign one a mismatch."""
    nvml("a40")
    n.nvmlShutdown()
    monkeypatch.setenv("MEMSCALER_SIM_STATE", str(tmp_path / "nothing"))
    assert code_of(n.nvmlInit) == 9
    (tmp_path / "foreign").write_text("x")
    monkeypatch.setenv("MEMSCALER_SIM_STATE", str(tmp_path / "foreign"))
    assert code_of(n.nvmlInit) == 18
    with pytest.raises(SimulatorError):
        SimulatedDriver.attach(tmp_path / "foreign")


def test_latency(nvml):
    """Setters and getters take as long as they are told to."""
    driver = nvml("a40")
    handle = n.nvmlDeviceGetHandleByIndex(0)
    driver.set_latency(call_ms=30)
    before = time.monotonic()
    n.nvmlDeviceGetName(handle)
    assert time.monotonic() - before < 0.02
    n.nvmlDeviceResetMemoryLockedClocks(handle)
    assert time.monotonic() - before >= 0.03


def test_call_log(nvml):
    """The log has who called what when with which answer, in order; getters only when asked for."""
    driver = nvml("p40")
    handle = n.nvmlDeviceGetHandleByIndex(0)
    mark = driver.log_mark()
    before = time.monotonic_ns()
    code_of(n.nvmlDeviceSetMemoryLockedClocks, handle, 405, 810)
    n.nvmlDeviceGetName(handle)
    (record,) = driver.call_log(after=mark)
    assert (record.symbol, record.gpu, record.arguments, record.code) == (SET, 0, (405, 810), 3)
    assert before <= record.entry_ns <= record.return_ns <= time.monotonic_ns()
    assert record.tid == threading.get_native_id()
    driver.log_everything()
    n.nvmlDeviceGetName(handle)
    assert [entry.symbol for entry in driver.call_log(after=mark)] == [SET, "nvmlDeviceGetName"]


def test_a_set_call_is_cheap(nvml):
    """Without injected latency a Set costs a few microseconds: the simulator does not blur a latency benchmark."""
    driver = nvml("a40")
    handle = n.nvmlDeviceGetHandleByIndex(0)
    for _ in range(2000):
        n.nvmlDeviceSetMemoryLockedClocks(handle, 405, 405)
        n.nvmlDeviceResetMemoryLockedClocks(handle)
    took = sorted(record.return_ns - record.entry_ns for record in driver.call_log(SET))
    assert took[len(took) // 2] < 5_000


def test_threads(nvml):
    """Eight threads on one library: every call answers, and the last word counts."""
    driver = nvml("a40", "p40")
    handles = [n.nvmlDeviceGetHandleByIndex(i) for i in range(2)]
    library = ctypes.CDLL("libnvidia-ml.so.1")
    codes = set()

    def hammer():
        value = ctypes.c_uint()
        for _ in range(400):
            codes.add(library.nvmlDeviceSetMemoryLockedClocks(handles[0], 405, 405))
            codes.add(library.nvmlDeviceGetPowerUsage(handles[1], ctypes.byref(value)))
            codes.add(library.nvmlInitWithFlags(0))
            codes.add(library.nvmlDeviceResetMemoryLockedClocks(handles[0]))
            codes.add(library.nvmlShutdown())

    threads = [threading.Thread(target=hammer) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == {0}
    assert not driver.boards[0].locks
    assert len(driver.call_log([SET])) == 8 * 400


def test_start_for_the_command_line(tmp_path):
    """`start` makes boards, or takes those that are there with their locks; another set replaces them."""
    code = f"""
import sys; from pathlib import Path; from memscaler.simulator import start
environment = start(tuple(sys.argv[1].split(",")), Path({str(tmp_path)!r}))
import pynvml as n; n.nvmlInit()
if len(sys.argv) > 2: n.nvmlDeviceSetMemoryLockedClocks(n.nvmlDeviceGetHandleByIndex(0), 405, 405)
print(n.nvmlDeviceGetCount(), environment["MEMSCALER_SIM_STATE"])
"""
    state = tmp_path / "simulator" / "state"
    said = [
        subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True).stdout
        for words in (("a40", "lock"), ("a40",))
    ]
    assert said == [f"1 {state}\n"] * 2
    assert SimulatedDriver.attach(state).boards[0].memory_lock is not None
    subprocess.run([sys.executable, "-c", code, "p40,t4"], check=True)
    assert [board.key for board in SimulatedDriver.attach(state).boards] == ["p40", "t4"]


def test_start_refuses_an_unknown_board(tmp_path):
    """A wrong board is a usage error before anything is loaded."""
    with pytest.raises(Exception, match="a41"):
        start(("a41",), tmp_path)
