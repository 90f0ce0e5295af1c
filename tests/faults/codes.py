"""Everything that a driver call can answer or do instead of working, and which calls there are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

# facts/nvml.md (iii) and nvml.h; 4242 is none of NVIDIA's.
NVML_CODES = (*range(1, 30), 999, 4242)
NVAPI_CODES = (-1, -3, -4, -5, -6, -8, -9, -10, -14, -101, -104, -107, -108, -137, -4242)
DELAY_MS = 60
# The calls that wake a GPU. A fault of any other one must not keep it from waking.
UNDO = frozenset({"nvmlDeviceResetMemoryLockedClocks", "nvmlDeviceResetGpuLockedClocks", "NvAPI_GPU_SetForcePstate"})


@dataclass(frozen=True)
class Fault:
    """One cell's fault: what SimulatedBoard.inject takes."""

    symbol: str
    name: str
    how: dict[str, Any] = field(hash=False)

    @property
    def on_wake_path(self) -> bool:
        """True if nobody could wake the GPU while this lasts: the undo fails, or the GPU's one thread is held."""
        lasts = "times" not in self.how
        return bool(self.how.get("hang")) or (lasts and self.symbol in UNDO and "delay_ms" not in self.how)

    @property
    def delay_s(self) -> float:
        return float(self.how.get("delay_ms", 0)) / 1000

    def __str__(self) -> str:
        return f"{self.symbol}: {self.name}"


def faults(symbol: str) -> Iterator[Fault]:
    """All that can happen to this call, for ever and once."""
    codes = NVAPI_CODES if symbol.startswith("NvAPI") else NVML_CODES
    kinds: list[tuple[str, dict[str, Any]]] = [(f"code {code}", {"code": code}) for code in codes]
    kinds += [("delay", {"delay_ms": DELAY_MS}), ("hang", {"hang": True}), ("no effect", {"ignore": True})]
    for name, how in kinds:
        yield Fault(symbol, name, how)
        yield Fault(symbol, f"{name}, once", {**how, "times": 1})


def main_faults(symbol: str) -> Iterator[Fault]:
    """One of each kind."""
    wanted = {"code 999", "code 15", "code -1", "code -10", "delay", "hang", "no effect"}
    return (fault for fault in faults(symbol) if fault.name in wanted)
