"""The levers: how a GPU is put into its low-power setting, and how that is undone.

Undoing is always a reset. Locking to the maximum instead would cost an RTX 5090 up to 32 % (facts/nvml.md 0.5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from memscaler.core.errors import GpuError, GpuUnsupported
from memscaler.gpu import nvml, nvml_calls
from memscaler.gpu.inventory import Device
from memscaler.gpu.probe import LOW_PSTATE

MEMORY_CLOCK = "memory-clock"
GRAPHICS_CLOCK = "graphics-clock"
PSTATE = "pstate"
NAMES = (MEMORY_CLOCK, PSTATE, GRAPHICS_CLOCK)


class Lever(Protocol):
    """One way to park one GPU. Calls raise the Gpu* errors and may block for as long as the driver likes."""

    @property
    def name(self) -> str: ...

    @property
    def target(self) -> int:
        """MHz, or the number of a performance state."""
        ...

    def apply(self) -> None: ...

    def undo(self) -> None: ...

    def is_down(self) -> bool:
        """True if what this lever moves is as low as it gets, read back from the card."""
        ...

    def describe(self) -> str: ...


@dataclass(frozen=True, slots=True)
class ClockLever:
    """Locks one clock of a GPU at `target` MHz."""

    name: str
    target: int
    set_lock: Callable[[], None]
    reset_lock: Callable[[], None]
    clock_mhz: Callable[[], int]

    def apply(self) -> None:
        self.set_lock()

    def undo(self) -> None:
        self.reset_lock()

    def is_down(self) -> bool:
        return self.clock_mhz() <= self.target * 1.01  # cards report a clock some kHz off

    def describe(self) -> str:
        return f"{self.name.replace('-', ' ')} locked to {self.target} MHz"


@dataclass(frozen=True, slots=True)
class PstateLever:
    """Forces a performance state through NVAPI."""

    name: str
    target: int
    force: Callable[[], None]
    release: Callable[[], None]
    pstate: Callable[[], int | None]

    def apply(self) -> None:
        self.force()

    def undo(self) -> None:
        self.release()

    def is_down(self) -> bool:
        state = self.pstate()
        return state is not None and state >= self.target

    def describe(self) -> str:
        return f"performance state forced to P{self.target}"


@dataclass(frozen=True, slots=True)
class EveryLever:
    """Undoes whatever could have been applied, where nobody knows what was: the journal is unreadable, or `--all`."""

    device: Device
    name: str = "unknown"
    target: int = 0

    def apply(self) -> None:
        raise GpuUnsupported("this lever only undoes")

    def undo(self) -> None:
        """Reset every lever that this GPU has; raise the last failure after all were tried."""
        failed: GpuError | None = None
        able = self.device.capabilities
        builders = (memory_clock, graphics_clock, *([pstate] if able.has_low_pstate or able.doubts else []))
        for build in builders:
            try:
                build(self.device).undo()
            except GpuUnsupported:
                continue
            except GpuError as error:
                failed = error
        if failed is not None:
            raise failed

    def is_down(self) -> bool:
        return False

    def describe(self) -> str:
        return "every lever reset"


class DryRunLever:
    """Says what the lever would do, and does nothing."""

    def __init__(self, lever: Lever, note: Callable[[str], None]) -> None:
        self.name, self.target, self.describe = lever.name, lever.target, lever.describe
        self._lever, self._note = lever, note
        self._pretending = False

    def apply(self) -> None:
        self._pretending = True
        self._note(f"would apply: {self.describe()}")

    def undo(self) -> None:
        self._pretending = False
        self._note(f"would undo: {self.describe()}")

    def is_down(self) -> bool:
        return self._pretending or self._lever.is_down()


def memory_clock(device: Device) -> Lever:
    """The lever on the lowest supported memory clock."""
    clocks_mhz = device.capabilities.memory_clocks_mhz
    return _clock_lever(device, MEMORY_CLOCK, "Memory", nvml.MEMORY, min(clocks_mhz, default=0))


def graphics_clock(device: Device) -> Lever:
    """The lever on the lowest supported graphics clock."""
    clocks_mhz = device.capabilities.graphics_clocks_mhz
    return _clock_lever(device, GRAPHICS_CLOCK, "Gpu", nvml.GRAPHICS, min(clocks_mhz, default=0))


def pstate(device: Device) -> Lever:
    """The lever on performance state 8. Raise as `Device.pstate_control`."""
    control = device.pstate_control()
    read = partial(nvml.pstate, device.handle)
    return PstateLever(PSTATE, LOW_PSTATE, control.forcing(LOW_PSTATE), control.releasing(), read)


def rebuild(device: Device, name: str) -> Lever:
    """The lever of this name, to undo it; every lever if the name is none. Raise GpuError if it cannot be had."""
    builders = {MEMORY_CLOCK: memory_clock, GRAPHICS_CLOCK: graphics_clock, PSTATE: pstate}
    return builders.get(name, EveryLever)(device)


def recall(device: Device, name: str) -> Lever:
    """Like `rebuild`; where the lever cannot be had, undoing it says so."""
    try:
        return rebuild(device, name)
    except GpuError as error:
        refuse = partial(_raise, error)
        return PstateLever(name, LOW_PSTATE, refuse, refuse, lambda: None)


def _raise(error: GpuError) -> None:
    raise error


def _clock_lever(device: Device, name: str, symbol: str, kind: int, target_mhz: int) -> ClockLever:
    return ClockLever(
        name,
        target_mhz,
        nvml_calls.Setter(f"nvmlDeviceSet{symbol}LockedClocks", device.handle, target_mhz, target_mhz),
        nvml_calls.Setter(f"nvmlDeviceReset{symbol}LockedClocks", device.handle),
        partial(nvml.clock_mhz, device.handle, kind),
    )
