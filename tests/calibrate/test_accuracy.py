"""What calibrate says against what the simulated boards are."""

import subprocess

import pytest

from memscaler.core.calibration import Calibration
from memscaler.history.calibration import load
from tests.calibrate.bench import QUICK, SHORT, calibrate
from tests.doctor.bench import clean_environment, command
from tests.governor import eventually

PARK_S, WAKE_S = 1.0, 0.7
LATE_S = 0.5  # a busy machine looks late, never early


def measured(runtime_dir, driver, names) -> tuple[Calibration, float, float]:
    """What is written of the first board; and its watts awake and parked, as the board itself has them."""
    board = driver.boards[0]
    board.set_settle(park_ms=PARK_S * 1000, wake_ms=WAKE_S * 1000)
    awake_w = board.power_w
    words = ("calibrate", "gpu0", "--rounds", "2", "--hold", "2s", "--simulate", names)
    running = subprocess.Popen(
        command(*words, "--runtime-dir", str(runtime_dir)), env=clean_environment(), stdout=subprocess.PIPE, cwd="/"
    )
    eventually(lambda: board.parked or running.poll() is not None, within_s=60)
    parked_w = board.power_w
    out, _ = running.communicate(timeout=100)
    assert running.returncode == 0, out
    return load(runtime_dir)[board.uuid], awake_w, parked_w


@pytest.mark.parametrize(
    ("name", "lever", "energy_source"),
    [
        ("a40", "memory-clock", "counter"),
        ("p40", "pstate", "power"),
        ("a100", "graphics-clock", "counter"),
    ],
)
def test_the_truth_is_found(runtime_dir, boards, name, lever, energy_source):
    """Watts to 1 %; times never too short and at most half a second too long; joules within what is said of them."""
    found, awake_w, parked_w = measured(runtime_dir, boards(name), name)
    assert (found.lever, found.energy_source, found.rounds) == (lever, energy_source, 2)
    assert found.awake_w.median == pytest.approx(awake_w, rel=0.01)
    assert found.parked_w.median == pytest.approx(parked_w, rel=0.01)
    assert PARK_S <= found.down_s.low <= found.down_s.median < PARK_S + LATE_S
    assert PARK_S <= found.settled_s.median < PARK_S + LATE_S
    assert WAKE_S <= found.up_s.median <= found.back_s.median < WAKE_S + LATE_S
    assert 0 < found.resolution_s < LATE_S
    true_j = (awake_w - parked_w) * PARK_S  # this board draws its awake watts until its clocks are down
    assert abs(found.switch_j.median - true_j) <= found.switch_error_j + 0.01 * true_j
    assert found.switch_error_j < 0.2 * true_j
    costs = found.costs()
    assert costs.source == "measured"
    assert costs.break_even_s == pytest.approx(PARK_S, rel=0.2)


def test_power_that_is_an_average(runtime_dir, boards):
    """Where no reading of the moment is to be had, it says so; the calm end of each round is right all the same."""
    driver = boards("a40")
    driver.boards[0].inject("nvmlDeviceGetFieldValues", code=3)
    found, awake_w, parked_w = measured(runtime_dir, driver, "a40")
    assert (found.power_source, found.energy_source) == ("average", "counter")
    assert found.awake_w.median == pytest.approx(awake_w, rel=0.01)
    assert found.parked_w.median == pytest.approx(parked_w, rel=0.01)
    assert found.settled_s.median > PARK_S + 0.5  # the average lags behind
    assert found.costs().break_even_s == pytest.approx(PARK_S, rel=0.2)


def test_a_board_that_tells_no_power(runtime_dir, boards):
    """Times are measured; watts are unknown, not zero, and decisions go by assumed ones."""
    driver = boards("a40")
    for symbol in ("nvmlDeviceGetPowerUsage", "nvmlDeviceGetFieldValues", "nvmlDeviceGetTotalEnergyConsumption"):
        driver.boards[0].inject(symbol, code=3)
    told = calibrate(runtime_dir, "a40", "gpu0", *SHORT).gpu()["calibration"]
    assert (told["awake_w"], told["parked_w"], told["switch_j"], told["break_even_s"]) == (None, None, None, None)
    assert told["down_s"]["median"] > 0
    costs = load(runtime_dir)[driver.boards[0].uuid].costs()
    assert (costs.source, costs.settle_s) == ("assumed", told["down_s"]["median"])


def test_without_a_model_only_bare_watts(runtime_dir, boards):
    """Without a context the clocks are low by themselves: the rest is asked for, and neither forgets the other."""
    driver = boards("a40")
    board = driver.boards[0]
    board.set_context(False)
    eventually(lambda: not board.settling)
    bare_w = board.power_w
    told = calibrate(runtime_dir, "a40", "gpu0", *SHORT)
    assert (told.code, told.gpu()["problem"].partition(":")[0]) == (
        1,
        "no model is loaded, so its clocks are low by themselves",
    )
    assert told.gpu()["remedy"].startswith("load a model")
    assert told.gpu()["calibration"]["bare_w"] == pytest.approx(bare_w, rel=0.01)
    assert driver.call_log("nvmlDeviceSetMemoryLockedClocks") == []
    board.set_context(True)
    eventually(lambda: not board.settling)
    told = calibrate(runtime_dir, "a40", "gpu0", *SHORT)
    assert (told.code, told.gpu()["calibration"]["bare_w"]) == (0, pytest.approx(bare_w, rel=0.01))
    board.set_context(False)
    eventually(lambda: not board.settling)
    told = calibrate(runtime_dir, "a40", "gpu0", *SHORT)
    assert (told.code, told.gpu()["calibration"]["rounds"]) == (0, 1)


def test_a_board_that_is_low_with_a_model(runtime_dir, boards):
    """Some cards fall by themselves: there is nothing to park, and those watts are not the bare ones."""
    driver = boards("rtx3090")
    eventually(lambda: not driver.boards[0].settling)
    told = calibrate(runtime_dir, "rtx3090", "gpu0", *SHORT)
    assert (told.code, told.gpu()["calibration"]) == (1, None)
    assert "as low as it gets already" in told.gpu()["problem"]


def test_the_next_lever(runtime_dir, boards):
    """One that reports success and does nothing is passed over."""
    driver = boards("a40")
    driver.boards[0].inject("nvmlDeviceSetMemoryLockedClocks", ignore=True)
    told = calibrate(runtime_dir, "a40", "gpu0", *SHORT, env=QUICK)
    assert (told.code, told.gpu()["calibration"]["lever"]) == (0, "pstate")
