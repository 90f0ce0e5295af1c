"""A simulated machine for the drivers of stages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from memscaler.simulator import SimulatedDriver, load


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedDriver]:
    """An A40 and a P40, persistence mode on, nobody there."""
    monkeypatch.setenv("MEMSCALER_SIM_STATE", "")  # so that it is put back afterwards
    made = SimulatedDriver.create(tmp_path / "boards", ("a40", "p40"), context=False, persistence=True)
    load(made.library_dir, made.state_path)
    yield made
    made.clear_faults()
    made.close()
