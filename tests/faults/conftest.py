"""Machines whose drivers fail fast: settle times and pauses of milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memscaler.gpu import actuator, nvapi, nvml_calls, parking, session
from memscaler.gpu.inventory import Driver, open_driver
from memscaler.simulator import SimulatedDriver, load

SERVER_PID = 4242
Machine = Callable[..., tuple[SimulatedDriver, Driver]]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter pauses than on a real machine, in the same order."""
    monkeypatch.setattr(parking, "RETRY_PAUSE_S", (0.001, 0.002))
    monkeypatch.setattr(actuator, "WAKE_FIRST_LOOK_S", 0.003)
    monkeypatch.setattr(session, "PATIENCE_S", 0.1)
    monkeypatch.setattr(session, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(session, "LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr(session, "LONGEST_PAUSE_CLOSED_S", 0.05)
    for each in (nvml_calls.SESSION, nvapi.SESSION):
        each.start_afresh()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Build a machine with a server on each board, as in `machine("a40", "a40")`, and open its driver."""
    monkeypatch.setenv("MEMSCALER_SIM_STATE", "")  # so that it is put back afterwards
    opened: list[tuple[SimulatedDriver, Driver]] = []

    def build(*boards: str) -> tuple[SimulatedDriver, Driver]:
        path = tmp_path / f"machine{len(opened)}"
        simulated = SimulatedDriver.create(path, boards, settle_ms=0.5)
        for board in simulated.boards:
            board.add_process(SERVER_PID)
        load(simulated.library_dir, path)
        opened.append((simulated, open_driver()))
        return opened[-1]

    yield build
    for simulated, driver in opened:
        simulated.clear_faults()
        driver.close()
        simulated.close()
