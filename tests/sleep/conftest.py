"""Servers that can sleep, and what they need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memscaler.simulator import SimulatedDriver
from tests.sleep.drivers.benches import Vllm


@pytest.fixture
def boards(tmp_path: Path) -> Iterator[SimulatedDriver]:
    """For the processes that a test starts; this one does not load the driver."""
    made = SimulatedDriver.create(tmp_path / "boards", ("a40", "p40"), context=False, persistence=True)
    yield made
    made.clear_faults()
    made.close()


@pytest.fixture
def vllm(tmp_path: Path, boards: SimulatedDriver) -> Iterator[Callable[[], Vllm]]:
    """Makes fake vLLMs that may sleep."""
    made: list[Vllm] = []

    def make() -> Vllm:
        folder = tmp_path / f"vllm{len(made)}"
        folder.mkdir()
        made.append(Vllm(folder, boards, "--enable-sleep-mode"))
        return made[-1]

    yield make
    for each in made:
        each.kill()
