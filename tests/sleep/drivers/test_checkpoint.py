"""The stage checkpoint, against a fake cuda-checkpoint: a real program that fails in every way that has been told."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from memscaler.config.gpuctl import Gvm
from memscaler.core.stages import Stage
from memscaler.sleep.drivers import cuda
from memscaler.sleep.drivers.checkpoint_gates import Facts, driver_major, managed, refusal
from memscaler.sleep.drivers.make import Around, drivers
from memscaler.sleep.drivers.protocol import Broken, Gone, Later, Stuck, Undone, Where
from tests.servers.bench import eventually
from tests.sleep.drivers.benches import NAMED, PYTHON, REPOSITORY, Cuda, Started, wait_gone, within

FULL = ["lock", "checkpoint", "restore", "unlock"]


@pytest.fixture
def made(tmp_path, machine):
    """Make servers, as in `made()` or `made(GGML_CUDA_ENABLE_UNIFIED_MEMORY="")`."""
    servers = []

    def make(**environment):
        folder = tmp_path / f"cuda{len(servers)}"
        folder.mkdir()
        servers.append(Cuda(folder, machine, **environment))
        return servers[-1]

    yield make
    for each in servers:
        each.kill()


@pytest.fixture
def bench(made):
    return made()


@pytest.fixture
def driver(bench, monkeypatch):
    monkeypatch.setattr("memscaler.sleep.drivers.checkpoint.AGAIN_S", 0.05)
    monkeypatch.setattr("memscaler.sleep.drivers.checkpoint.LOCK_S", 0.2)
    return bench.driver()


def memo_of(bench, driver):
    assert driver.possible(bench.target, bench.rule, within()) == ""
    return driver.prepare(bench.target, bench.rule, within())


def test_down_and_back(bench, driver):
    """Lock, checkpoint; restore, unlock; each once, and doing either twice does nothing."""
    memo = memo_of(bench, driver)
    assert driver.look(memo, within()).where is Where.UP
    driver.enter(memo, within())
    driver.enter(memo, within())
    assert bench.state == "checkpointed"
    assert driver.look(memo, within()).where is Where.DOWN
    driver.leave(memo, within())
    driver.leave(memo, within())
    assert bench.state == "running"
    assert bench.actions() == FULL


# ---- the gates -------------------------------------------------------------------------------------------------------

GOOD = Facts(
    machine="x86_64",
    root=True,
    driver="580.65.06",
    users={7: {"GPU-1": 1 << 30}},
    persistence={"GPU-1": True},
    tool_version="580.65.06",
)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, ""),
        ({"root": False}, "only root"),
        ({"machine": "aarch64"}, "x86-64"),
        ({"driver": ""}, "does not tell its version"),
        ({"driver": "565.57.01"}, "older than 570"),
        ({"tool_problem": "cuda-checkpoint is not installed"}, "not installed"),
        ({"tool_actions": False, "tool_version": "550.54"}, "only toggle"),
        ({"users": {}}, "no"),
        ({"users": {7: {"GPU-1": 1}, 8: {"GPU-1": 1}}}, "share is lost below driver 610"),
        ({"users": {7: {"GPU-1": 1}, 8: {"GPU-1": 1}}, "driver": "610.1"}, "only a single one"),
        ({"users": {7: {"GPU-1": 1, "GPU-2": 1}}}, "uses 2 GPUs"),
        ({"persistence": {"GPU-1": False}}, "persistence mode"),
        ({"persistence": {"GPU-1": None}}, "persistence mode"),
        ({"users": {7: {"GPU-1": None}}}, "how much memory"),
        ({"unified": frozenset({7})}, "unified memory"),
        ({"managed": frozenset({7})}, "GVM"),
    ],
)
def test_gates(change, says):
    """Each closes it alone."""
    reason = refusal(replace(GOOD, **change))
    assert says in reason
    assert bool(reason) == bool(change)


def test_versions():
    """Anything but a number is no version."""
    assert [driver_major(text) for text in ("570.86.15", "610", "", "R570", "-1.2")] == [570, 610, None, None, None]


def refused(bench, root=None, **more):
    driver = bench.driver() if root is None else bench.driver(root)
    reason = driver.possible(bench.target, replace(bench.rule, **more), within())
    assert not bench.actions_or_none()
    return reason


def test_no_persistence_mode(tmp_path, monkeypatch):
    """As NVML tells it."""
    from memscaler.simulator import SimulatedDriver, load

    monkeypatch.setenv("MEMSCALER_SIM_STATE", "")
    with SimulatedDriver.create(tmp_path / "boards", ("a40",), context=False) as machine:
        load(machine.library_dir, machine.state_path)
        bench = Cuda(tmp_path, machine)
        try:
            assert "persistence mode" in refused(bench)
        finally:
            bench.kill()


def test_unified_memory(made):
    """llama.cpp looks whether the variable is there, whatever its value."""
    assert "unified memory" in refused(made(GGML_CUDA_ENABLE_UNIFIED_MEMORY=""))


def test_gvm(bench, tmp_path):
    """Memory on its account; none on it is no reason."""
    root = tmp_path / "root"
    (root / "proc").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemAvailable: 500000000 kB\n")
    folder = root / f"sys/kernel/debug/nvidia-uvm/processes/{bench.pid}/8"
    folder.mkdir(parents=True)
    (folder / "memory.current").write_text("0\n")
    assert refused(bench, root) == ""
    (folder / "memory.current").write_text("4096\n")
    assert "GVM" in refused(bench, root)
    (folder / "memory.current").write_text("?\n")
    (folder / "memory.limit").write_text("1\n")
    assert "GVM" in refused(bench, root), "what cannot be read is no nothing"
    (folder / "memory.current").unlink()
    (folder / "memory.limit").unlink()
    assert refused(bench, root) == "", "it has left that GPU meanwhile"


def test_gvm_is_where_the_configuration_says(bench, tmp_path):
    """And not only below /sys/kernel/debug."""
    entry = tmp_path / f"elsewhere/nvidia-uvm/processes/{bench.pid}/0"
    entry.mkdir(parents=True)
    (entry / "memory.current").write_text("4096\n")
    around = Around(bench.runtime, gvm=lambda: Gvm(root=tmp_path / "elsewhere"))
    driver = drivers(around)[Stage.CHECKPOINT]
    assert "GVM" in driver.possible(bench.target, bench.rule, within())
    (entry / "memory.current").write_text("0\n")
    assert driver.possible(bench.target, bench.rule, within()) == ""


def test_gvm_by_another_thread(tmp_path):
    """GVM calls a process by the thread that began with CUDA (A3)."""
    go, ready = threading.Event(), threading.Event()
    tids = []

    def work():
        tids.append(threading.get_native_id())
        ready.set()
        go.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert ready.wait(60)
        folder = tmp_path / f"sys/kernel/debug/nvidia-uvm/processes/{tids[0]}/0"
        folder.mkdir(parents=True)
        (folder / "memory.current").write_text("4096\n")
        assert managed(frozenset({os.getpid()}), tmp_path, Gvm()) == {os.getpid()}
        assert managed(frozenset({1}), tmp_path, Gvm()) == frozenset()
    finally:
        go.set()
        thread.join()


def test_not_enough_memory(bench, tmp_path):
    """What is on the GPU, and a margin, must be free; swap does not count."""
    root = tmp_path / "root"
    (root / "proc").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal: 64000000 kB\nMemAvailable: 900000 kB\nSwapFree: 64000000 kB\n")
    assert "are free" in refused(bench, root)


def test_two_processes_two_gpus(bench, machine):
    """A child with a context makes two; another GPU of the same process, too many."""
    machine.boards[1].add_process(bench.pid, 1 << 20)
    assert "2 GPUs" in refused(bench)


def test_engine_below_the_listener(bench, machine, tmp_path):
    """An API server has the clients, and its engine the GPU, as vLLM's have: the engine is checkpointed."""
    code = f"import subprocess, time; subprocess.Popen(['{PYTHON}', '-c', '{NAMED}']); time.sleep(999)"
    front = Started([PYTHON, "-c", code], tmp_path)
    try:
        children = eventually(Path(f"/proc/{front.pid}/task/{front.pid}/children").read_text).split()
        engine = int(children[0])
        machine.boards[1].add_process(engine, 1 << 20)
        target = replace(bench.target, pids=(front.pid,))
        assert bench.driver().possible(target, bench.rule, within()) == ""
        assert bench.driver().prepare(target, bench.rule, within())["pid"] == engine
    finally:
        front.kill()


def test_program(bench, tmp_path):
    """Missing, open to others, none, or too old."""
    assert "No such file" in refused(bench, program=str(tmp_path / "nowhere"))
    bench.program.chmod(0o777)
    assert "may be changed by others" in refused(bench)
    bench.program.chmod(0o755)
    bench.faults(version="550.54.09")
    assert "only toggle" in refused(bench)
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho hello\n")
    other.chmod(0o755)
    assert "does not tell its version" in refused(bench, program=str(other))


def test_somebody_else_has_checkpointed_it(bench, driver):
    """Not ours to touch."""
    bench.state = "checkpointed"
    assert "not our doing" in driver.possible(bench.target, bench.rule, within())


# ---- failures on the way down ----------------------------------------------------------------------------------------


def test_the_lock_times_out(bench, driver):
    """Work on the GPU does not end: nothing was done, and nothing needs to be undone."""
    memo = memo_of(bench, driver)
    bench.faults(lock="busy")
    with pytest.raises(Undone, match="timed out") as caught:
        driver.enter(memo, within())
    assert not caught.value.for_good
    assert bench.state == "running"
    assert bench.actions() == ["lock"]


def test_the_lock_times_out_and_holds(bench, driver):
    """An error is said, and it is locked nevertheless: unlocked again."""
    memo = memo_of(bench, driver)
    bench.faults(lock="after", checkpoint="refuse")
    with pytest.raises(Undone):
        driver.enter(memo, within())
    assert bench.state == "running"
    assert bench.actions() == ["lock", "unlock"]


def test_the_checkpoint_fails_for_good(bench, driver):
    """State `failed`: that process is dead to CUDA. Nothing is tried any more, by any call."""
    memo = memo_of(bench, driver)
    bench.faults(checkpoint="failed")
    with pytest.raises(Broken, match="will not come back"):
        driver.enter(memo, within())
    bench.faults()
    assert driver.look(memo, within()).where is Where.FAILED
    with pytest.raises(Broken):
        driver.leave(memo, within())
    with pytest.raises(Broken):
        driver.enter(memo, within())
    assert "failed already" in driver.possible(bench.target, bench.rule, within())
    assert bench.actions() == ["lock", "checkpoint"]
    os.kill(bench.pid, 0)  # ours is not to kill it


@pytest.mark.parametrize("fault", ["refuse", "not permitted", "crash", "lie"])
def test_the_checkpoint_is_refused(bench, driver, fault):
    """It is locked still: unlocked, and up as before."""
    memo = memo_of(bench, driver)
    bench.faults(checkpoint=fault)
    with pytest.raises(Undone):
        driver.enter(memo, within())
    assert bench.state == "running"
    assert bench.actions() == ["lock", "checkpoint", "unlock"]


def test_an_error_after_success(bench, driver):
    """The state counts, not the words."""
    memo = memo_of(bench, driver)
    bench.faults(checkpoint="after")
    driver.enter(memo, within())
    assert bench.state == "checkpointed"
    driver.leave(memo, within())


@pytest.mark.parametrize("action", ["lock", "checkpoint"])
def test_the_process_dies(bench, driver, action):
    """It says "operation not permitted", and the process is gone (NVIDIA/cuda-checkpoint#25)."""
    memo = memo_of(bench, driver)
    bench.faults(**{action: "not permitted, dead"})
    with pytest.raises(Gone):
        driver.enter(memo, within())
    wait_gone(bench.pid)
    assert driver.look(memo, within()).where is Where.GONE
    with pytest.raises(Gone):
        driver.leave(memo, within())


def test_the_checkpoint_hangs_and_ends_late(bench, driver):
    """At the deadline it is left to finish; leaving waits for it, and brings it back."""
    memo = memo_of(bench, driver)
    bench.faults(checkpoint="slow", slow_s=12)
    with pytest.raises(Stuck, match="left to finish"):
        driver.enter(memo, within(10))  # half of it is kept for an undo
    assert driver.look(memo, within(0.5)).where is Where.BETWEEN
    driver.leave(memo, within(60))
    assert bench.state == "running"
    assert bench.actions() == FULL


def test_the_checkpoint_hangs_for_ever(bench, driver):
    """When half of leave's time is over, it is killed; then the state is read, and the lock undone."""
    memo = memo_of(bench, driver)
    bench.faults(checkpoint="hang")
    with pytest.raises(Stuck):
        driver.enter(memo, within(10))
    bench.faults()
    driver.leave(memo, within(10))
    assert bench.state == "running"
    assert bench.actions() == ["lock", "checkpoint", "unlock"]


def test_get_state_is_slow(bench, driver):
    """Seconds are normal."""
    bench.faults(state_s=0.7)
    memo = memo_of(bench, driver)
    driver.enter(memo, within())
    driver.leave(memo, within())
    assert bench.actions() == FULL


def test_get_state_hangs(bench, driver):
    """Nothing is done without knowing."""
    memo = memo_of(bench, driver)
    bench.faults(state_s=1000)
    began = time.monotonic()
    with pytest.raises(Later):
        driver.enter(memo, within(1))
    with pytest.raises(Stuck):
        driver.leave(memo, within(1))
    assert driver.look(memo, within(1)).where is not Where.UP
    assert time.monotonic() - began < 30
    assert not bench.actions_or_none()


def test_an_unknown_word(bench, driver):
    """A state that a newer driver may have: nothing is done."""
    memo = memo_of(bench, driver)
    bench.faults(state="migrating")
    with pytest.raises(Later, match="unknown"):
        driver.enter(memo, within())
    with pytest.raises(Stuck):
        driver.leave(memo, within())
    assert driver.look(memo, within()).where is Where.UNKNOWN
    assert not bench.actions_or_none()


def test_states_as_numbers(bench, driver):
    """CUprocessState, where only that is told."""
    memo = memo_of(bench, driver)
    for number, where in enumerate((Where.UP, Where.BETWEEN, Where.DOWN, Where.FAILED, Where.BETWEEN, Where.BETWEEN)):
        bench.faults(state=number)
        assert driver.look(memo, within()).where is where


def test_abandoned(bench, driver):
    """Somebody comes before, and between lock and checkpoint: it is not checkpointed."""
    memo = memo_of(bench, driver)
    with pytest.raises(Undone, match="somebody came"):
        driver.enter(memo, within(abandoned=lambda: True))
    assert not bench.actions_or_none()
    with pytest.raises(Undone, match="somebody came"):
        driver.enter(memo, within(abandoned=lambda: bench.state == "locked"))
    assert bench.state == "running"
    assert bench.actions() == ["lock", "unlock"]


# ---- failures on the way back ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["restore", "unlock"])
@pytest.mark.parametrize("fault", ["refuse", "crash", "lie"])
def test_it_does_not_come_back_now(bench, driver, action, fault):
    """Tried a few times, then told; the next leave goes on from where it is."""
    memo = memo_of(bench, driver)
    driver.enter(memo, within())
    bench.faults(**{action: fault})
    with pytest.raises(Stuck):
        driver.leave(memo, within())
    assert driver.look(memo, within()).where in (Where.DOWN, Where.BETWEEN)
    bench.faults()
    driver.leave(memo, within())
    assert bench.state == "running"


def test_the_restore_fails_for_good(bench, driver):
    """State `failed`."""
    memo = memo_of(bench, driver)
    driver.enter(memo, within())
    bench.faults(restore="failed")
    with pytest.raises(Broken):
        driver.leave(memo, within())
    assert bench.actions().count("restore") == 1


def test_the_restore_takes_long(bench, driver):
    """Its deadline passes: it is left to finish, not begun again; a later leave unlocks."""
    memo = memo_of(bench, driver)
    driver.enter(memo, within())
    bench.faults(restore="slow", slow_s=12)
    with pytest.raises(Stuck):
        driver.leave(memo, within(5))
    driver.leave(memo, within(60))
    assert bench.actions() == FULL


def test_it_dies_asleep(bench, driver):
    """Nothing is left; another process of the same pid would be another process."""
    memo = memo_of(bench, driver)
    driver.enter(memo, within())
    os.kill(bench.pid, signal.SIGKILL)
    wait_gone(bench.pid)
    with pytest.raises(Gone):
        driver.leave(memo, within())
    assert driver.look({**memo, "pid": os.getpid()}, within()).where is Where.GONE


@pytest.mark.parametrize("state", ["locked", "checkpointed"])
def test_another_process_brings_it_back(bench, driver, state):
    """Whoever put it there has died: all that is needed is in the memo."""
    memo = memo_of(bench, driver)
    bench.state = state
    bench.driver().leave(memo, within())
    assert bench.state == "running"


def test_a_death_in_the_middle(bench, driver):
    """Our process is killed while cuda-checkpoint runs, which goes on; the undo waits for it instead of beside it."""
    memo = memo_of(bench, driver)
    bench.faults(checkpoint="slow", slow_s=2)
    code = f"""
import json, sys
sys.path.insert(0, {str(REPOSITORY)!r})
from tests.sleep.drivers.benches import within
from memscaler.sleep.drivers.make import Around, drivers
from pathlib import Path
drivers(Around(Path({str(bench.runtime)!r})))["checkpoint"].enter(json.loads({json.dumps(dict(memo))!r}), within())
"""
    sleeper = subprocess.Popen([sys.executable, "-c", code])
    eventually(lambda: "checkpoint" in bench.actions_or_none())
    sleeper.kill()
    sleeper.wait()
    driver.leave(memo, within())
    assert bench.state == "running"
    assert bench.actions() == FULL


def test_one_at_a_time(bench, driver):
    """Two that enter and leave at once: never two calls for one process (checked by the program itself)."""
    memo = memo_of(bench, driver)
    bench.faults(state_s=0.05)
    errors = []

    def work():
        for _ in range(3):
            for act in (driver.enter, driver.leave):
                try:
                    act(memo, within())
                except Exception as error:  # noqa: BLE001
                    errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not errors
    driver.leave(memo, within())
    assert bench.state == "running"


def test_its_environment(tmp_path):
    """The program gets none of ours."""
    tool = tmp_path / "cuda-checkpoint"
    tool.write_text(f"#!/bin/sh\nenv > {tmp_path}/env\necho Version 580.1 --action\n")
    tool.chmod(0o755)
    os.environ["MEMSCALER_SECRET"] = "1"
    try:
        cuda.find(str(tool))
    finally:
        del os.environ["MEMSCALER_SECRET"]
    told = (tmp_path / "env").read_text()
    assert "PATH=" in told
    assert "SECRET" not in told
