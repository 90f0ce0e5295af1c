"""Machines of files, and runtime directories that everybody may enter."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memscaler.simulator import SimulatedDriver
from tests.asked import short_folder
from tests.doctor.bench import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


@pytest.fixture
def boards(runtime_dir: Path) -> Iterator[Callable[..., SimulatedDriver]]:
    """Simulated boards where `--simulate` finds them."""
    drivers = []

    def make(*names: str, **settings: Any) -> SimulatedDriver:
        path = runtime_dir / "simulator" / "state"
        path.parent.mkdir()
        drivers.append(SimulatedDriver.create(path, names, **settings))
        return drivers[-1]

    yield make
    for driver in drivers:
        driver.clear_faults()  # a call that hangs goes on
        driver.close()
