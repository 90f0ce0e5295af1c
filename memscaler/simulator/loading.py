"""Put the simulated driver where a real one is looked for: dlopen knows a loaded library by its soname."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

from memscaler.core.errors import SimulatorUnavailable
from memscaler.simulator.binding import SimulatorError
from memscaler.simulator.builder import NVAPI_LIBRARY, NVML_LIBRARY
from memscaler.simulator.remote import SimulatedDriver, check_boards

STATE = Path("simulator/state")  # in the runtime directory


def load(library_dir: Path, state_path: Path) -> None:
    """Load both libraries into this process, so that every later `CDLL("libnvidia-ml.so.1")` gets the simulated one.

    Raise SimulatorUnavailable if a real one is there already: it cannot be replaced.
    """
    os.environ["MEMSCALER_SIM_STATE"] = str(state_path)
    for name in (NVML_LIBRARY, NVAPI_LIBRARY):
        _require_absent(name, library_dir)
        try:
            ctypes.CDLL(str(library_dir / name), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise SimulatorUnavailable(f"cannot load the simulated driver: {error}") from error


def boards_of(runtime_dir: Path) -> tuple[str, ...]:
    """The boards that an earlier or a running `--simulate` has there; none: there are none."""
    try:
        with SimulatedDriver.attach(runtime_dir / STATE) as driver:
            return tuple(board.key for board in driver.boards)
    except SimulatorError:
        return ()


def start(boards: Sequence[str], runtime_dir: Path) -> dict[str, str]:
    """`--simulate`: take the boards in `runtime_dir` if they are the wanted ones, else make new ones; load the driver.

    Returns the environment with which child processes find it too. Raise UsageError for an unknown board.
    """
    path = runtime_dir / STATE
    names = check_boards(boards)
    driver = _existing(path, names)
    if driver is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        driver = SimulatedDriver.create(path, names)
    with driver:
        load(driver.library_dir, driver.state_path)
        return driver.environment


def _existing(path: Path, names: tuple[str, ...]) -> SimulatedDriver | None:
    """The driver that an earlier run left behind, with its locks: the case that `memscaler restore` is for."""
    try:
        driver = SimulatedDriver.attach(path)
    except SimulatorError:
        return None
    if tuple(board.key for board in driver.boards) == names:
        return driver
    driver.close()
    return None


def _require_absent(name: str, library_dir: Path) -> None:
    """A second library with the same soname would not be found by name."""
    with Path("/proc/self/maps").open() as maps:
        for line in maps:
            path = line.rstrip("\n").partition("/")[2]
            if Path(path).name.startswith(name) and Path("/" + path).parent != library_dir:
                raise SimulatorUnavailable(f"/{path} is loaded already", hint="load the simulated driver first")
