"""What a GPU can do, asked of the driver: what it refuses to say, and what it fails to say, are two things."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from memscaler.core.errors import GpuError, GpuLost, GpuPermission, GpuUnsupported
from memscaler.gpu import nvml, nvml_calls

LOW_PSTATE = 8
# May have changed together with the handle: MIG is switched on by a GPU reset.
NEVER_AS_BEFORE = frozenset({"mig", "virtualization_mode"})


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the driver says about a GPU and what does not change while it runs. None: it does not say.

    switch_type: how the memory clock switches: 0 not at all, 1 after a driver reload, 2 at run time.
    switch_interval_ms: the least time between two switches of the memory clock.
    doubts: (what, failure) of calls whose failure says nothing about the GPU; asking again may tell more.
    """

    architecture: int | None
    virtualization_mode: int | None
    mig: bool
    memory_clocks_mhz: tuple[int, ...]
    graphics_clocks_mhz: tuple[int, ...]
    pstates: tuple[int, ...]
    switch_type: int | None
    switch_interval_ms: int
    doubts: tuple[tuple[str, str], ...] = ()

    @property
    def has_low_pstate(self) -> bool:
        """True if there is a slower performance state to go to."""
        return len(self.memory_clocks_mhz) > 1 or LOW_PSTATE in self.pstates


def probe_capabilities(handle: nvml_calls.Handle, known: Capabilities | None = None) -> Capabilities:
    """Ask. Where the driver fails to say, what was `known` before counts; else the doubt is noted. Raise GpuLost."""
    doubts: dict[str, str] = {}

    def told(what: str, ask: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return ask(handle, *arguments)
        except (GpuUnsupported, GpuPermission):
            return None
        except GpuLost:
            raise
        except GpuError as error:
            if known is not None and what not in dict(known.doubts) and what not in NEVER_AS_BEFORE:
                return getattr(known, what)
            doubts[what] = str(error)
            return None

    memory_clocks_mhz = told("memory_clocks_mhz", nvml.memory_clocks_mhz) or ()
    highest = memory_clocks_mhz[:1]
    return Capabilities(
        architecture=told("architecture", nvml.architecture),
        virtualization_mode=told("virtualization_mode", nvml.virtualization_mode),
        mig=bool(told("mig", nvml.mig_enabled)),
        memory_clocks_mhz=memory_clocks_mhz,
        graphics_clocks_mhz=(told("graphics_clocks_mhz", nvml.graphics_clocks_mhz, *highest) or ()) if highest else (),
        pstates=told("pstates", nvml.pstates) or (),
        switch_type=told("switch_type", nvml.field, nvml.FIELD_MEMORY_SWITCH_TYPE),
        switch_interval_ms=told("switch_interval_ms", nvml.field, nvml.FIELD_MEMORY_SWITCH_INTERVAL_MS) or 0,
        doubts=tuple(doubts.items()),
    )


def prove(handle: nvml_calls.Handle) -> None:
    """Raise what the driver answers if it knows this handle but not the GPU behind it. A refusal is an answer, too."""
    failed: GpuError | None = None
    for ask in (partial(nvml.clock_mhz, kind=nvml.MEMORY), nvml.pstate, nvml.power_w):
        try:
            ask(handle)
        except (GpuUnsupported, GpuPermission):
            return
        except GpuLost:
            raise
        except GpuError as error:
            failed = error
        else:
            return
    if failed is not None:
        raise failed
