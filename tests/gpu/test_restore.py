"""Undoing what a memscaler that is gone left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from memscaler.core.errors import DriverUnavailable
from memscaler.gpu.capability import choose
from memscaler.gpu.journal import Journal
from memscaler.gpu.restore import Result, restore, restore_from
from memscaler.simulator import Lock
from tests.gpu.benches import Machine, Simulate, eventually

RESET_MEMORY = "nvmlDeviceResetMemoryLockedClocks"
ROOT = Path(__file__).parents[2]

CRASHING = """
import os, sys
sys.path[:0] = {path!r}
from memscaler.gpu.capability import choose
from memscaler.gpu.inventory import open_driver
from memscaler.gpu.journal import Journal
for gpu in open_driver().gpus:
    lever = choose(gpu).levers[0]
    Journal({directory!r}).record(gpu.identity, lever.name, lever.target)
    lever.apply()
os.kill(os.getpid(), 9)
"""

UNPRIVILEGED = """
import os, sys
sys.path[:0] = {path!r}
import memscaler.gpu.restore
from pathlib import Path
from memscaler import simulator
simulator.load(Path({libraries!r}), Path(os.environ["MEMSCALER_SIM_STATE"]))
os.setgid(65534); os.setuid(65534)
report = memscaler.gpu.restore.restore_from({directory!r})
print(report)
sys.exit(4 if report.permission_missing and not report.ok else 0)
"""


def run_python(machine: Machine, code: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run this code in a process of its own, on the same simulated machine."""
    env = {**os.environ, **machine.simulated.environment}
    text = code.format(
        path=[*sys.path, str(ROOT)], directory=str(directory), libraries=str(machine.simulated.library_dir)
    )
    return subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=20, check=False, env=env
    )


def crash(machine: Machine, journal: Journal, boards: int) -> None:
    """Leave every GPU parked, as a killed daemon does."""
    for gpu in range(boards):
        machine.serve(gpu)
    assert run_python(machine, CRASHING, journal.directory).returncode == -9


def test_after_a_crash(simulate: Simulate, journal: Journal) -> None:
    """Locks that outlived their process are undone, each by its own lever, once and for all."""
    machine = simulate("a40", "p40", "a100")
    crash(machine, journal, 3)
    assert machine.boards[0].memory_lock == Lock(405, 405)
    assert machine.boards[1].forced_pstate == 8
    assert machine.boards[2].graphics_lock == Lock(210, 210)
    report = restore_from(journal.directory)
    assert report.ok, str(report)
    assert sorted(gpu.lever for gpu in report.gpus) == ["graphics-clock", "memory-clock", "pstate"]
    assert not any(board.locks for board in machine.boards)
    assert journal.entries() == ()
    assert str(restore_from(journal.directory)) == "nothing to restore"


def test_nothing_to_do_needs_no_driver(simulate: Simulate, journal: Journal) -> None:
    """With an empty journal the driver is not even opened; with an entry its absence is an error."""
    machine = simulate("a40")
    uuid = machine.driver().gpus[0].identity
    machine.simulated.set_loaded(False)
    machine.close_drivers()
    assert restore_from(journal.directory).ok
    journal.record(uuid, "memory-clock", 405)
    with pytest.raises(DriverUnavailable):
        restore_from(journal.directory)
    assert len(journal.entries()) == 1


def test_broken_entry_resets_every_lever(simulate: Simulate, journal: Journal) -> None:
    """Where nobody knows what was applied, everything is undone."""
    machine = simulate("a40")
    driver = machine.driver()
    for lever in choose(driver.gpus[0]).levers:
        lever.apply()
    assert all((machine.boards[0].memory_lock, machine.boards[0].graphics_lock, machine.boards[0].forced_pstate))
    journal.directory.mkdir()
    (journal.directory / f"{driver.gpus[0].identity.uuid}.json").write_text("{")
    assert restore(journal, driver).ok
    assert not machine.boards[0].locks
    assert journal.entries() == ()


def test_of_one_process_only(simulate: Simulate, journal: Journal) -> None:
    """Who watches over one process leaves alone what another one has parked."""
    machine = simulate("a40")
    driver = machine.driver()
    gpu = driver.gpus[0]
    lever = choose(gpu).levers[0]
    entry = journal.record(gpu.identity, lever.name, lever.target)
    lever.apply()
    assert restore(journal, driver, pid=os.getpid() + 1).gpus == ()
    assert machine.boards[0].locks
    assert journal.entries() == (entry,)
    assert restore(journal, driver, pid=os.getpid()).ok
    assert not machine.boards[0].locks


def test_all(simulate: Simulate, journal: Journal) -> None:
    """`--all` resets every lever of every GPU without a journal, and minds no board that lacks one."""
    boards = ("a40", "p40", "a100", "h100", "t4", "v100", "vgpu", "a100-mig")
    machine = simulate(*boards)
    driver = machine.driver()
    for gpu in driver.gpus:
        for lever in choose(gpu).levers[:1]:
            if lever.name != "pstate" or gpu.identity.name == "Tesla P40":
                lever.apply()
    report = restore(journal, driver, all_levers=True)
    assert report.ok, str(report)
    assert len(report.gpus) == len(boards)
    assert not any(board.locks for board in machine.boards)


def test_retries(simulate: Simulate, journal: Journal) -> None:
    """A driver that refuses at first is asked again."""
    machine = simulate("a40")
    crash(machine, journal, 1)
    machine.boards[0].inject(RESET_MEMORY, code=999, times=3)
    assert restore_from(journal.directory).ok


def test_budget(simulate: Simulate, journal: Journal) -> None:
    """A driver that refuses for good costs the budget and no more, and keeps the entry."""
    machine = simulate("a40")
    crash(machine, journal, 1)
    machine.boards[0].inject(RESET_MEMORY, code=999)
    began = time.monotonic()
    report = restore_from(journal.directory, budget_s=0.3)
    assert time.monotonic() - began < 1
    assert [gpu.result for gpu in report.gpus] == [Result.FAILED]
    assert len(journal.entries()) == 1


def test_hung_gpu_does_not_keep_the_others_down(simulate: Simulate, journal: Journal) -> None:
    """One hung driver call costs one GPU."""
    machine = simulate("a40", "a40")
    crash(machine, journal, 2)
    machine.boards[0].inject(RESET_MEMORY, hang=True)
    report = restore(journal, machine.driver(), budget_s=0.3)
    results = {gpu.uuid: gpu.result for gpu in report.gpus}
    assert sorted(results.values()) == [Result.HUNG, Result.RESTORED]
    assert machine.boards[1].memory_lock is None
    assert len(journal.entries()) == 1
    machine.simulated.clear_faults()


def test_lost_gpu_keeps_its_entry(simulate: Simulate, journal: Journal) -> None:
    """A GPU that is gone is reported, and undone when it is back."""
    machine = simulate("a40", "p40")
    crash(machine, journal, 2)
    machine.boards[0].lose()
    report = restore_from(journal.directory, budget_s=0.3)
    assert sorted(gpu.result for gpu in report.gpus) == [Result.LOST, Result.RESTORED]
    assert not report.ok
    assert len(journal.entries()) == 1


def test_lost_gpu_that_comes_back_is_restored(simulate: Simulate, journal: Journal) -> None:
    """A GPU that is off the bus when everything ends is looked up again until the time is over."""
    machine = simulate("a40")
    crash(machine, journal, 1)
    machine.boards[0].lose()
    threading.Timer(0.2, machine.boards[0].restore).start()
    assert restore_from(journal.directory).ok
    assert not machine.boards[0].locks


def test_gpu_that_hangs_when_it_is_looked_up_does_not_keep_the_others_down(
    simulate: Simulate, journal: Journal
) -> None:
    """The other one is awake long before the time is up."""
    machine = simulate("a40", "a40")
    crash(machine, journal, 2)
    machine.boards[0].inject("nvmlDeviceGetHandleByUUID", hang=True)
    driver = machine.driver(look=False)
    waiting = threading.Thread(target=restore, args=(journal, driver), kwargs={"budget_s": 0.5})
    waiting.start()
    eventually(lambda: not machine.boards[1].locks, within_s=0.4)
    waiting.join()
    machine.simulated.clear_faults()
    eventually(lambda: not machine.boards[0].locks)


def test_nvapi_that_fails_is_not_taken_for_a_card_without_it(simulate: Simulate, journal: Journal) -> None:
    """Nobody knows what was applied, and NVAPI cannot be opened just now: the entry stays until it can."""
    machine = simulate("p40")
    crash(machine, journal, 1)
    (entry,) = journal.directory.glob("GPU-*")
    entry.write_text("{")
    machine.simulated.inject("NvAPI_Initialize", code=-1)
    assert not restore_from(journal.directory, budget_s=0.2).ok
    assert len(journal.entries()) == 1
    machine.simulated.clear_faults()
    assert restore_from(journal.directory).ok
    assert not machine.boards[0].locks


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_permission(simulate: Simulate, journal: Journal, tmp_path: Path) -> None:
    """An ordinary user is told what is missing, and the entry stays."""
    machine = simulate("a40")
    crash(machine, journal, 1)
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == os.getuid() and str(directory).startswith("/tmp/"):
            directory.chmod(0o755)
    done = run_python(machine, UNPRIVILEGED, journal.directory)
    assert done.returncode == 4, done.stderr
    assert "ermission" in done.stdout
    assert len(journal.entries()) == 1


def test_import_is_light() -> None:
    """The guardian imports it: nothing heavy comes along."""
    code = "import sys, memscaler.gpu.restore; print({'structlog', 'aiohttp', 'typer', 'msgspec', 'asyncio'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True, timeout=20
    )
    assert done.stdout.strip() == "set()"
