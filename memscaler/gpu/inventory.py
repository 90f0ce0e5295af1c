"""Which GPUs there are, what each can do, and what each does now."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from memscaler.core.errors import GpuError, GpuLost, GpuUnsupported, UsageError
from memscaler.core.snapshot import GpuReading, Identity
from memscaler.gpu import nvapi, nvml

Value = TypeVar("Value")

_READINGS: dict[str, Callable[[nvml.Handle], Any]] = {
    "power_w": nvml.power_w,
    "energy_j": nvml.energy_j,
    "memory_clock_mhz": partial(nvml.clock_mhz, kind=nvml.MEMORY),
    "graphics_clock_mhz": partial(nvml.clock_mhz, kind=nvml.GRAPHICS),
    "pstate": nvml.pstate,
    "utilization_ratio": nvml.utilization_ratio,
    "temperature_c": nvml.temperature_c,
}

LOW_PSTATE = 8

SHORTEST_UUID = len("GPU-0000")

_PCI = re.compile(r"(?:([0-9a-f]{1,8}):)?([0-9a-f]{1,2}:[0-9a-f]{1,2}\.[0-7])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the driver says about a GPU and what does not change while it runs. None: it does not say.

    switch_type: how the memory clock switches: 0 not at all, 1 after a driver reload, 2 at run time.
    switch_interval_ms: the least time between two switches of the memory clock.
    """

    architecture: int | None
    virtualization_mode: int | None
    mig: bool
    memory_clocks_mhz: tuple[int, ...]
    graphics_clocks_mhz: tuple[int, ...]
    pstates: tuple[int, ...]
    switch_type: int | None
    switch_interval_ms: int

    @property
    def has_low_pstate(self) -> bool:
        """True if there is a slower performance state to go to."""
        return len(self.memory_clocks_mhz) > 1 or LOW_PSTATE in self.pstates


@dataclass(frozen=True, slots=True)
class PstateControl:
    """A GPU as NVAPI knows it: bound calls that force a performance state and let go of it."""

    nvapi: nvapi.Nvapi
    handle: object

    def forcing(self, pstate: int) -> Callable[[], None]:
        return self.nvapi.forcing(self.handle, pstate)  # type: ignore[arg-type]  # opaque to everybody but nvapi

    def releasing(self) -> Callable[[], None]:
        return self.forcing(nvapi.AUTOMATIC)


@dataclass(frozen=True, slots=True, eq=False)
class Device:
    """One GPU. `pstate_control()` raises GpuUnsupported, with the reason, where NVAPI cannot be used for it."""

    identity: Identity
    handle: nvml.Handle
    capabilities: Capabilities
    pstate_control: Callable[[], PstateControl]

    def reading(self) -> GpuReading:
        """What the GPU does now. Raise GpuLost if it is gone."""
        reading = self.reading_unless(lambda: False)
        assert reading is not None  # noqa: S101  # nothing interrupts it
        return reading

    def reading_unless(self, interrupted: Callable[[], bool]) -> GpuReading | None:
        """Like `reading`, but given up between two driver calls as soon as `interrupted`: a wake is not to wait."""
        at_ns, values = time.monotonic_ns(), {}
        for name, ask in _READINGS.items():
            if interrupted():
                return None
            values[name] = _or_none(ask, self.handle)
        return GpuReading(at_ns, **values)

    def utilization_ratio(self) -> float | None:
        """The GPU's utilisation, whoever causes it; None where it is not told (MIG)."""
        return _or_none(nvml.utilization_ratio, self.handle)

    def processes(self) -> frozenset[int]:
        """The pids that have a compute context on the GPU; none where the driver does not tell."""
        return _or_none(nvml.compute_processes, self.handle) or frozenset()

    def memory_used_bytes(self) -> int | None:
        return _or_none(nvml.memory_used_bytes, self.handle)

    def in_use(self) -> bool:
        """True if a process is seen to have a context, which is what keeps the clocks of an idle GPU up.

        False says little: to a container the driver may list no processes at all.
        """
        return bool(self.processes()) or bool(self.utilization_ratio())


@dataclass(frozen=True, slots=True)
class LostDevice:
    """A GPU that NVML counts but that does not answer."""

    index: int
    reason: str


class Driver:
    """The opened driver: `gpus` that answer, `lost` ones with the reason. One broken GPU does not stop the others."""

    def __init__(self) -> None:
        nvml.initialise()
        self.driver_version = nvml.driver_version()
        self._nvapi: nvapi.Nvapi | GpuError | None = None
        gpus: list[Device] = []
        lost: list[LostDevice] = []
        for index in range(nvml.count()):
            try:
                gpus.append(self._open(index))
            except GpuError as error:
                lost.append(LostDevice(index, str(error)))
        self.gpus = tuple(gpus)
        self.lost = tuple(lost)

    def find(self, uuid: str) -> Device | None:
        return next((gpu for gpu in self.gpus if gpu.identity.uuid == uuid), None)

    def close(self) -> None:
        if isinstance(self._nvapi, nvapi.Nvapi):
            self._nvapi.close()
        nvml.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, index: int) -> Device:
        handle = nvml.handle(index)
        identity = Identity(index, nvml.uuid(handle), nvml.pci_bus_id(handle), nvml.name(handle))
        return Device(identity, handle, _probe(handle), partial(self._pstate_control, identity))

    def _pstate_control(self, identity: Identity) -> PstateControl:
        """Opens NVAPI at the first use: most machines never need it."""
        if self._nvapi is None:
            try:
                self._nvapi = nvapi.Nvapi()
            except GpuUnsupported as error:
                self._nvapi = error
        if isinstance(self._nvapi, GpuError):
            raise self._nvapi
        buses = [_bus(gpu.identity) for gpu in self.gpus]
        return PstateControl(self._nvapi, self._nvapi.match(_bus(identity), buses))


def open_driver() -> Driver:
    """Open the driver. Raise DriverUnavailable, with the remedy as its hint."""
    return Driver()


def resolve(spec: str, devices: Iterable[Device], lost: Iterable[LostDevice] = ()) -> Device:
    """The device that an operator means: "gpu0", "0", "GPU-9a1c" (a unique beginning) or "0000:3b:00.0".

    Raise UsageError, which lists the known ones.
    """
    known = tuple(devices)
    matching = [device for device in known if _means(spec.strip().lower(), device.identity)]
    if len(matching) == 1:
        return matching[0]
    listed = [f"gpu{gpu.identity.index} {gpu.identity.pci_bus_id} {gpu.identity.uuid}" for gpu in known]
    listed += [f"gpu{gpu.index} (lost: {gpu.reason})" for gpu in lost]
    problem = "means several GPUs" if matching else "is no GPU of this machine"
    raise UsageError(f"{spec!r} {problem}", hint=f"known: {'; '.join(listed) or 'none'}")


def _means(spec: str, gpu: Identity) -> bool:
    if spec in (str(gpu.index), f"gpu{gpu.index}"):
        return True
    if spec.startswith("gpu-") and len(spec) >= SHORTEST_UUID:
        return gpu.uuid.lower().startswith(spec)
    return _PCI.fullmatch(spec) is not None and _pci_key(spec, gpu.pci_bus_id) == _pci_key(gpu.pci_bus_id)


def _pci_key(bus_id: str, default: str = "0:0:0.0") -> tuple[int, ...]:
    """Domain, bus, device and function as numbers: NVML writes 8 digits for the domain, lspci 4 or none."""
    found = _PCI.fullmatch(bus_id)
    if found is None:
        return ()
    domain = found[1] or default.split(":", 1)[0]
    return (int(domain, 16), *(int(part, 16) for part in re.split(r"[:.]", found[2])))


def _bus(identity: Identity) -> int:
    return _pci_key(identity.pci_bus_id)[1]


def _probe(handle: nvml.Handle) -> Capabilities:
    memory_clocks_mhz = nvml.memory_clocks_mhz(handle)
    graphics = nvml.graphics_clocks_mhz(handle, memory_clocks_mhz[0]) if memory_clocks_mhz else ()
    return Capabilities(
        architecture=nvml.architecture(handle),
        virtualization_mode=nvml.virtualization_mode(handle),
        mig=nvml.mig_enabled(handle),
        memory_clocks_mhz=memory_clocks_mhz,
        graphics_clocks_mhz=graphics,
        pstates=nvml.pstates(handle),
        switch_type=nvml.field(handle, nvml.FIELD_MEMORY_SWITCH_TYPE),
        switch_interval_ms=nvml.field(handle, nvml.FIELD_MEMORY_SWITCH_INTERVAL_MS) or 0,
    )


def _or_none(ask: Callable[[nvml.Handle], Value], handle: nvml.Handle) -> Value | None:
    try:
        return ask(handle)
    except GpuLost:
        raise
    except GpuError:
        return None
