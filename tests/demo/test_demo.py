"""The demo as a user starts it, and as it ends when reality does not play along."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from memscaler.simulator import SimulatedDriver

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def demo(tmp_path, *arguments):
    """The demo, with its folder below tmp_path."""
    process = subprocess.Popen(
        [sys.executable, "-m", "demo", *arguments], cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(20)
        process.stdout.close()


def boards(tmp_path):
    """The simulated boards of the running demo."""
    end = time.monotonic() + 30
    while not (found := list(tmp_path.glob("*/run/simulator/state"))):
        assert time.monotonic() < end
        time.sleep(0.01)
    return SimulatedDriver.attach(found[0])


@pytest.mark.timeout(120)
def test_everything_holds(tmp_path):
    """Exit status 0, every expectation with its mark, plain lines of at most 80 columns, and a picture."""
    with demo(tmp_path, "--short", "--svg", str(tmp_path / "power.svg")) as process:
        told, _ = process.communicate(timeout=100)
    assert process.returncode == 0, told
    assert "✘" not in told
    assert told.count("✔") == 13
    assert "all 13 expectations held" in told
    assert "Simulated: the two\nGPUs" in told
    assert "\x1b" not in told
    assert "\r" not in told
    assert max(len(line) for line in told.splitlines()) <= 80
    assert (tmp_path / "power.svg").read_text().startswith("<svg")
    assert not list(tmp_path.glob("memscaler-demo-*"))


@pytest.mark.timeout(120)
def test_a_gpu_that_does_not_wake_fails_it(tmp_path):
    """The driver reports success for the A40's wake and does nothing: the demo notices, and says which promise broke."""
    with demo(tmp_path, "--short") as process:
        boards(tmp_path).boards[0].inject("nvmlDeviceResetMemoryLockedClocks", ignore=True)
        told, _ = process.communicate(timeout=100)
    assert process.returncode == 1, told
    assert "✘ no GPU was parked while a client waited" in told
    assert "✔ every completion was answered" in told
    assert "did not hold" in told


@pytest.mark.timeout(60)
def test_stopped_in_the_middle_it_leaves_nothing(tmp_path):
    """SIGTERM ends servers and governor, wakes the boards and removes the folder."""
    with demo(tmp_path, "--short") as process:
        driver = boards(tmp_path)
        end = time.monotonic() + 30
        while not all(board.locks for board in driver.boards):
            assert time.monotonic() < end
            time.sleep(0.01)
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 130
    assert not any(board.locks for board in driver.boards)
    assert not list(tmp_path.glob("memscaler-demo-*"))
