"""A fresh simulated driver for each test, and pynvml bound to it."""

import subprocess
import sys

import pynvml
import pytest

from memscaler.simulator import SimulatedDriver, build, load


@pytest.fixture
def make(tmp_path):
    """Make a driver with boards; closed after the test."""
    made = []

    def make(*boards, **options):
        options = {"settle_ms": 0, "permission": "allow", **options}
        made.append(SimulatedDriver.create(tmp_path / f"state{len(made)}", boards, **options))
        return made[-1]

    yield make
    for driver in made:
        driver.clear_faults()
        driver.close()


@pytest.fixture
def nvml(make):
    """Make a driver, and initialise pynvml against it."""
    started = []

    def start(*boards, **options):
        driver = make(*boards, **options)
        load(build(), driver.state_path)
        started.append(driver)
        pynvml.nvmlInit()
        return driver

    yield start
    if started:
        started[-1].clear_faults()
        started[-1].set_loaded(True)
    while True:
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError:
            break


@pytest.fixture
def run(tmp_path):
    """Run Python code in another process under a driver; returns what it printed."""

    def run(driver, code, **options):
        command = [sys.executable, "-c", "import pynvml as n, time, os, sys\n" + code]
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **driver.environment}
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, **options).stdout

    return run
