"""Where a server with gpus = "auto" goes: the planner's answer for the GPUs as they are now."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from memscaler.core.errors import GpuError, MemscalerError
from memscaler.planner import devices, words
from memscaler.planner.placement import Shortfall
from memscaler.planner.plan import plan_for
from memscaler.servers.layout import lines
from memscaler.servers.state import Given

WAIT_S = 60.0
_driver = threading.Lock()  # opening and closing it is for one thread at a time


@dataclass(frozen=True, slots=True)
class Placed:
    """Variables, and what else the planner gives."""

    environment: Mapping[str, str]
    given: Given


def _survey() -> devices.Survey:
    """Raise GpuError at once more if the driver has left another thread waiting: no more are to wait for ever."""
    if not _driver.acquire(timeout=WAIT_S):
        raise GpuError(f"the driver has not answered an earlier question within {WAIT_S:g} s", hint="see dmesg")
    try:
        return devices.survey()
    finally:
        _driver.release()


def place(model: Path, options: Sequence[str], environment: Mapping[str, str]) -> Placed:
    """On any GPU that the variables show, with the memory that is free now.

    Raise MemscalerError, with what would help, if it does not fit.
    """
    wanted = words.read(options, environment)
    there = devices.choose(_survey(), environment).devices
    budget = devices.Budget()
    devices.require_room(there, budget)
    found = plan_for(model, wanted.demand, budget, there, projector=wanted.projector)
    if isinstance(found, Shortfall):
        sentence = f"{model.name} does not fit: {found}"
        hint = f"would fit: {found.remedies[0].text}" if found.remedies else "see memscaler plan"
        raise MemscalerError(sentence, hint=hint)
    names = tuple(f"gpu{share.device.index}" for share in found.shares)
    return Placed(found.environment, Given(found.uuids, names, found.arguments, tuple(lines(found))))


def uuids(names: Sequence[str]) -> tuple[str, ...]:
    """Of GPUs as operators name them. Raise MemscalerError for one that is not there."""
    return tuple(gpu.uuid for gpu in devices.choose(_survey(), {}, names).devices)
