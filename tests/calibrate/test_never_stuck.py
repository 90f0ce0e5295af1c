"""However a calibration ends, its board is awake afterwards."""

import os
import signal

import pytest

from memscaler.history.calibration import load
from tests.calibrate.bench import QUICK, RESET, SET, SHORT, calibrate, calibrating, is_clean, parked_by_it, words_of
from tests.governor import connect, eventually, listener, port_of


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_while_parked(runtime_dir, boards, number):
    """Ctrl-C, a kill, the end of the terminal: woken before the process ends, and nothing is written."""
    driver = boards("a40")
    with parked_by_it(runtime_dir, driver) as running:
        running.send_signal(number)
        assert words_of(running) == (130, "memscaler: interrupted; gpu0 is awake, nothing was written")
        assert is_clean(runtime_dir, driver.boards[0])
    assert load(runtime_dir) == {}


def test_killed_while_parked(runtime_dir, boards):
    """Kill -9: the guardian wakes the board within a second."""
    driver = boards("a40")
    with parked_by_it(runtime_dir, driver) as running:
        running.kill()
        eventually(lambda: not driver.boards[0].locks, within_s=1)
        eventually(lambda: is_clean(runtime_dir, driver.boards[0]))


def test_standing_still(runtime_dir, boards):
    """SIGSTOP: the guardian wakes the board, and calibrate knows it when it goes on."""
    driver = boards("a40")
    with parked_by_it(runtime_dir, driver) as running:
        os.kill(running.pid, signal.SIGSTOP)
        eventually(lambda: not driver.boards[0].locks)
        eventually(lambda: not (runtime_dir / "journal" / f"{driver.boards[0].uuid}.json").exists())
        os.kill(running.pid, signal.SIGCONT)
        code, words = words_of(running)
        assert (code, "this process stood still" in words) == (1, True)
    assert is_clean(runtime_dir, driver.boards[0])


def test_a_client_comes_while_parked(runtime_dir, boards):
    """It is woken at once, what was measured so far does not count, and that is said."""
    driver = boards("a40")
    with (
        listener() as server,
        parked_by_it(runtime_dir, driver, env={"MEMSCALER_WATCH": f"{port_of(server)}:gpu0"}) as running,
        connect(server),
    ):
        eventually(lambda: not driver.boards[0].locks, within_s=1)
        code, words = words_of(running)
        assert (code, "a client came in between; it is awake again" in words) == (1, True)
    assert is_clean(runtime_dir, driver.boards[0])
    assert load(runtime_dir) == {}


def test_work_comes_while_parked(runtime_dir, boards):
    """The first sign of it wakes the board."""
    driver = boards("a40")
    with parked_by_it(runtime_dir, driver) as running:
        driver.boards[0].set_utilization(30)
        code, words = words_of(running)
        assert (code, "work came in between; it is awake again" in words) == (1, True)
    assert is_clean(runtime_dir, driver.boards[0])


def test_a_client_before_the_first_round(runtime_dir, boards):
    """Between rounds, too, somebody who comes ends it: what he does would be measured."""
    driver = boards("a40", log_everything=True)
    with listener() as server, calibrating(runtime_dir, env={"MEMSCALER_WATCH": f"{port_of(server)}:gpu0"}) as running:
        eventually(lambda: driver.call_log("nvmlDeviceGetTotalEnergyConsumption"), within_s=60)
        with connect(server):
            code, words = words_of(running)
    assert (code, "a client came in between; it is awake" in words) == (1, True)
    assert driver.call_log([SET, RESET]) == []


def test_at_work_or_with_a_client_nothing_is_touched(runtime_dir, boards):
    """Neither is parked under anybody."""
    driver = boards("a40")
    driver.boards[0].set_utilization(40)
    told = calibrate(runtime_dir, "a40", "gpu0", *SHORT)
    assert (told.code, told.gpu()["problem"]) == (1, "it is at work (40%)")
    driver.boards[0].set_utilization(0)
    with listener() as server, connect(server):
        told = calibrate(runtime_dir, "a40", "gpu0", *SHORT, env={"MEMSCALER_WATCH": f"{port_of(server)}:gpu0"})
        assert (told.code, told.gpu()["problem"]) == (1, f"a client is connected to port {port_of(server)}")
    assert driver.call_log([SET, RESET]) == []


def test_the_driver_refuses(runtime_dir, boards):
    """Without the right to, that is the exit code."""
    driver = boards("a100", permission="deny")
    told = calibrate(runtime_dir, "a100", "gpu0", *SHORT)
    assert (told.code, "NVML 4" in told.gpu()["problem"]) == (4, True)
    assert is_clean(runtime_dir, driver.boards[0])


def test_success_without_effect(runtime_dir, boards):
    """No lever works: each is undone."""
    driver = boards("a100")
    driver.inject("nvmlDeviceSetGpuLockedClocks", ignore=True)
    told = calibrate(runtime_dir, "a100", "gpu0", *SHORT, env=QUICK)
    assert (told.code, "nothing moved within 0.3 s" in told.gpu()["problem"]) == (1, True)
    assert is_clean(runtime_dir, driver.boards[0])


def test_an_undo_that_fails_at_first(runtime_dir, boards):
    """It is tried again until it succeeds."""
    driver = boards("a40")
    driver.inject(RESET, code=999, times=6)
    told = calibrate(runtime_dir, "a40", "gpu0", *SHORT)
    assert told.code == 0, told
    assert is_clean(runtime_dir, driver.boards[0])


@pytest.mark.parametrize(("times", "by"), [(1, "a second undo"), (2, "the reset of every lever")])
def test_an_undo_without_effect(runtime_dir, boards, times, by):
    """It is repeated, then everything is reset; a wake that took that is no figure."""
    driver = boards("a40")
    driver.boards[0].inject(RESET, ignore=True, times=times)
    told = calibrate(runtime_dir, "a40", "gpu0", *SHORT, env=QUICK)
    assert (told.code, told.gpu()["problem"].endswith(f"without effect; {by} has woken it")) == (1, True)
    assert is_clean(runtime_dir, driver.boards[0])
    assert load(runtime_dir) == {}


def test_every_undo_in_vain(runtime_dir, boards):
    """The guardian is left the journal, and the rest."""
    driver = boards("a40")
    driver.boards[0].inject(RESET, ignore=True, times=3)
    told = calibrate(runtime_dir, "a40", "gpu0", *SHORT, env=QUICK)
    assert (told.code, told.gpu()["remedy"].startswith("sudo memscaler restore --all")) == (1, True)
    eventually(lambda: is_clean(runtime_dir, driver.boards[0]))


def test_lost_while_parked(runtime_dir, boards):
    """Fallen off the bus: said so; should it come back, the guardian wakes it."""
    driver = boards("a40")
    with parked_by_it(runtime_dir, driver, env=QUICK) as running:
        driver.boards[0].lose()
        assert running.wait(60) == 1
        driver.boards[0].restore()
        eventually(lambda: is_clean(runtime_dir, driver.boards[0]), within_s=30)
        told = words_of(running)[1]  # by the reading that it was lost in, or by the next one
        assert "it does not answer any more" in told or "GPU is lost" in told


def test_a_driver_call_that_hangs_while_parked(runtime_dir, boards):
    """It is given up, and the guardian wakes the board; as long as that cannot be seen, the journal keeps it."""
    driver = boards("a40")
    with parked_by_it(runtime_dir, driver) as running:
        driver.boards[0].inject("nvmlDeviceGetUtilizationRates", hang=True)
        assert running.wait(60) == 1
        eventually(lambda: not driver.boards[0].locks, within_s=30)
        driver.boards[0].clear_faults()
        eventually(lambda: is_clean(runtime_dir, driver.boards[0]), within_s=30)
        assert "a driver call has not returned" in words_of(running)[1]
