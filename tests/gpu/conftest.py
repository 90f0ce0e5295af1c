"""The fixtures of the GPU tests: a simulated machine, a journal, and actuators on that machine."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memscaler.gpu.actuator import Actuator
from memscaler.gpu.capability import choose
from memscaler.gpu.hands import Means
from memscaler.gpu.inventory import Driver
from memscaler.gpu.journal import Journal
from memscaler.gpu.mailbox import Door
from memscaler.gpu.reports import ActuatorPolicy, Report
from tests.gpu.benches import Bench, Machine, Simulate, Start


@pytest.fixture
def simulate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulate]:
    """Build machines out of boards, as in `simulate("a40", "p40")`."""
    monkeypatch.setenv("MEMSCALER_SIM_STATE", "")  # so that it is put back afterwards
    machines: list[Machine] = []

    def build(*boards: str, **settings: bool) -> Machine:
        machines.append(Machine(tmp_path / f"machine{len(machines)}", boards, **settings))
        return machines[-1]

    yield build
    for machine in machines:
        machine.close()


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """A journal that is empty."""
    return Journal(tmp_path / "run")


@pytest.fixture
def start(journal: Journal) -> Iterator[Start]:
    """Start the actuator of one GPU, as in `start(driver, 0, settle_timeout_s=0.2)`."""
    benches: list[Bench] = []

    def build(
        driver: Driver,
        index: int = 0,
        lever: str = "auto",
        *,
        first: Callable[[str, bool], None] | None = None,
        door: Door | None = None,
        **policy: object,
    ) -> Bench:
        device = driver.gpus[index]
        reports: queue.SimpleQueue[Report] = queue.SimpleQueue()
        settings = ActuatorPolicy(**{"settle_timeout_s": 0.3, **policy})  # type: ignore[arg-type]
        levers = choose(device, lever).levers
        actuator = Actuator(Means(device, levers, journal, reports.put, settings, door, first=first))
        benches.append(Bench(actuator, reports))
        return benches[-1]

    yield build
    for bench in benches:
        bench.actuator.close()
    for bench in benches:
        bench.actuator.join(1)
