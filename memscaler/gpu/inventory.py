"""Which GPUs there are, what each can do, and what each does now."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from memscaler.core.errors import (
    DriverUnavailable,
    GpuCallFailed,
    GpuError,
    GpuLost,
    GpuPermission,
    GpuUnsupported,
    UsageError,
)
from memscaler.core.snapshot import GpuReading, Identity
from memscaler.gpu import nvapi, nvml, nvml_calls
from memscaler.gpu.probe import Capabilities, probe_capabilities, prove
from memscaler.gpu.session import Attempt

Value = TypeVar("Value")

_READINGS: dict[str, Callable[[nvml_calls.Handle], Any]] = {
    "power_w": nvml.power_w,
    "energy_j": nvml.energy_j,
    "memory_clock_mhz": partial(nvml.clock_mhz, kind=nvml.MEMORY),
    "graphics_clock_mhz": partial(nvml.clock_mhz, kind=nvml.GRAPHICS),
    "pstate": nvml.pstate,
    "utilization_ratio": nvml.utilization_ratio,
    "temperature_c": nvml.temperature_c,
}

OPEN_DEADLINE_S = 5.0  # for one GPU's answers, or NVAPI's, at the start
SUSPICION_S = 60.0  # GPUs that failed within this time of each other may have one cause: a stale session

SHORTEST_UUID = len("GPU-0000")

_PCI = re.compile(r"(?:([0-9a-f]{1,8}):)?([0-9a-f]{1,2}:[0-9a-f]{1,2}\.[0-7])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PstateControl:
    """A GPU as NVAPI knows it: bound calls that force a performance state and let go of it."""

    library: nvapi.Nvapi
    handle: nvapi.Handle

    def forcing(self, pstate: int) -> Callable[[], None]:
        return self.library.forcing(self.handle, pstate)

    def releasing(self) -> Callable[[], None]:
        return self.forcing(nvapi.AUTOMATIC)


@dataclass(frozen=True, slots=True, eq=False)
class Device:
    """One GPU. `pstate_control()` raises GpuUnsupported where NVAPI cannot be used for it, GpuError where it fails."""

    identity: Identity
    handle: nvml_calls.Handle
    capabilities: Capabilities
    pstate_control: Callable[[], PstateControl]

    def reading(self) -> GpuReading:
        """What the GPU does now, as far as the driver tells. Raise GpuLost if it is gone."""
        try:
            reading = self.reading_unless(lambda: False)
        except GpuCallFailed:
            reading = None
        return reading or GpuReading(time.monotonic_ns(), **dict.fromkeys(_READINGS))

    def reading_unless(self, interrupted: Callable[[], bool]) -> GpuReading | None:
        """Like `reading`, but given up between two driver calls as soon as `interrupted`: a wake is not to wait.

        Raise GpuCallFailed if the driver tells nothing at all.
        """
        at_ns, values, failed = time.monotonic_ns(), dict.fromkeys(_READINGS), None
        for name, ask in _READINGS.items():
            if interrupted():
                return None
            try:
                values[name] = ask(self.handle)
            except GpuLost:
                raise
            except GpuError as error:
                failed = error
        if isinstance(failed, GpuCallFailed) and not any(value is not None for value in values.values()):
            raise failed
        return GpuReading(at_ns, **values)

    def utilization_ratio(self) -> float | None:
        """The GPU's utilisation, whoever causes it; None where it is not told (MIG).

        Raise GpuCallFailed where it should be told: then nobody knows.
        """
        try:
            return nvml.utilization_ratio(self.handle)
        except (GpuUnsupported, GpuPermission):
            return None

    def processes(self) -> frozenset[int]:
        """The pids that have a compute context on the GPU; none where the driver does not tell."""
        return _or_none(nvml.compute_processes, self.handle) or frozenset()

    def persistence_mode(self) -> bool | None:
        """None: the driver does not tell."""
        return _or_none(nvml.persistence_mode, self.handle)

    def display_active(self) -> bool | None:
        """None: the driver does not tell."""
        return _or_none(nvml.display_active, self.handle)

    def memory_used_bytes(self) -> int | None:
        return _or_none(nvml.memory_used_bytes, self.handle)

    def in_use(self) -> bool:
        """True if a process is seen to have a context, which is what keeps the clocks of an idle GPU up.

        False says little: to a container the driver may list no processes at all.
        """
        return bool(self.processes()) or bool(_or_none(nvml.utilization_ratio, self.handle))


@dataclass(frozen=True, slots=True)
class LostDevice:
    """A GPU that NVML counts but that does not answer."""

    index: int
    reason: str


class Driver:
    """The opened driver: `gpus` that answer, `lost` ones with the reason. One broken GPU does not stop the others."""

    def __init__(self, *, look: bool = True) -> None:
        """look: find out which GPUs there are. Without it only `reopen` knows any."""
        nvml.initialise()
        nvml_calls.SESSION.start_afresh()
        nvapi.SESSION.start_afresh()
        self.driver_version = nvml.driver_version()
        self.outdated = ""
        """What to do if only a new process can use the driver again; "" as long as this one can."""
        self._lock = threading.Lock()  # never held during a driver call
        self._nvapi: nvapi.Nvapi | None = None
        self._nvapi_attempt: Attempt[nvapi.Nvapi] | None = None
        self._users: set[str] = set()  # GPUs that say so when the session seems stale to them
        self._suspected_s: dict[str, float] = {}
        self.gpus: tuple[Device, ...] = ()
        self.lost: tuple[LostDevice, ...] = ()
        if look:
            self._look()

    def find(self, uuid: str) -> Device | None:
        return next((gpu for gpu in self.gpus if gpu.identity.uuid == uuid), None)

    def use(self, uuid: str) -> None:
        """This GPU is reopened when it fails: as long as it has not failed, the session does not count as stale."""
        self._users.add(uuid)

    def disuse(self, uuid: str) -> None:
        """Nobody minds any more whether this GPU fails."""
        self._users.discard(uuid)

    def reopen(self, uuid: str, *, probe: bool = False) -> Device:
        """The GPU with a fresh handle, in a new session if the old one is stale. probe: ask what it can do, too.

        Raise GpuLost if it is not there, and DriverUnavailable if the driver as a whole is not.
        """
        seen, known = nvml_calls.SESSION.generation, self.find(uuid)
        try:
            device = self._afresh(uuid, known, probe=probe)
        except (GpuUnsupported, GpuPermission):
            raise
        except GpuError as error:
            if not self._is_stale(uuid):
                raise
            self._renew(seen, error)
            device = self._afresh(uuid, known, probe=probe)
        self._suspected_s.pop(uuid, None)
        with self._lock:
            others = [gpu for gpu in self.gpus if gpu.identity.uuid != uuid]
            self.gpus = tuple(sorted([*others, device], key=lambda gpu: gpu.identity.index))
        return device

    def close(self) -> None:
        if self._nvapi is not None:
            self._nvapi.close()
        nvml.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _look(self) -> None:
        """Ask every GPU in a thread of its own: one that hangs the driver is lost to us, the others are not."""
        try:
            count = nvml.count()
        except GpuError as error:
            nvml.shutdown()
            raise nvml.unusable(error) from error
        attempts = [Attempt(partial(self._open, index)) for index in range(count)]
        end_s = time.monotonic() + OPEN_DEADLINE_S
        gpus: list[Device] = []
        lost: list[LostDevice] = []
        for index, attempt in enumerate(attempts):
            try:
                gpus.append(attempt.result(end_s - time.monotonic(), nvml_calls.SESSION))
            except GpuError as error:
                lost.append(LostDevice(index, str(error)))
        self.gpus = tuple(gpus)
        self.lost = tuple(lost)

    def _open(self, index: int) -> Device:
        handle = nvml.handle(index)
        return self._device(handle, index, nvml.uuid(handle))

    def _device(self, handle: nvml_calls.Handle, index: int, uuid: str) -> Device:
        if not uuid:
            raise GpuCallFailed("nvmlDeviceGetUUID: it has no UUID, although the driver reports success")
        bus_id, name = _or_none(nvml.pci_bus_id, handle) or "", _or_none(nvml.name, handle) or "unnamed GPU"
        identity = Identity(index, uuid, bus_id, name)
        return Device(identity, handle, probe_capabilities(handle), partial(self._pstate_control, identity))

    # ---- after a failure ------------------------------------------------------------------------------------------

    def _afresh(self, uuid: str, known: Device | None, *, probe: bool) -> Device:
        handle = nvml.handle_of(uuid)
        prove(handle)
        if known is None:
            return self._device(handle, nvml.index(handle), uuid)
        capabilities = probe_capabilities(handle, known.capabilities) if probe else known.capabilities
        control = partial(self._pstate_control, known.identity, afresh=True)
        return replace(known, handle=handle, capabilities=capabilities, pstate_control=control)

    def _is_stale(self, uuid: str) -> bool:
        """True if it is not this GPU that fails but the session: it answers nothing, or every GPU has failed lately.

        What other GPUs do is what their own threads found out: asking them from here might hang.
        """
        now_s = time.monotonic()
        self._suspected_s[uuid] = now_s
        if not nvml.is_alive():
            return True
        return all(now_s - self._suspected_s.get(user, -SUSPICION_S) < SUSPICION_S for user in set(self._users))

    def _renew(self, seen: int, because: GpuError) -> None:
        try:
            nvml_calls.SESSION.renew(seen, nvml.initialise_anew)
        except GpuCallFailed:  # not now
            if isinstance(because, GpuLost):
                raise because from None
            raise
        except DriverUnavailable as error:
            if error.code == nvml_calls.MISMATCH:
                self.outdated = f"{error}; {error.hint}"
            raise
        self.outdated = ""

    # ---- NVAPI ----------------------------------------------------------------------------------------------------

    def _pstate_control(self, identity: Identity, *, afresh: bool = False) -> PstateControl:
        """Opens NVAPI at the first use: most machines never need it."""
        bus, seen = _bus(identity), nvapi.SESSION.generation
        others = [gpu.identity for gpu in self.gpus if gpu.identity.uuid != identity.uuid and gpu.identity.pci_bus_id]
        buses = [bus, *map(_bus, others)]
        library = self._open_nvapi(retry=afresh)
        try:
            if afresh:
                library.enumerate()
            return PstateControl(library, library.match(bus, buses))
        except GpuError:
            if not afresh:
                raise
        nvapi.SESSION.renew(seen, partial(_close_and_initialise, library))
        return PstateControl(library, library.match(bus, buses))

    def _open_nvapi(self, *, retry: bool) -> nvapi.Nvapi:
        """The library. What it failed with is its answer for ever, unless `retry`; it is not tried twice at a time."""
        with self._lock:
            attempt, patience_s = self._nvapi_attempt, 0.0
            if attempt is None or (retry and self._nvapi is None and not attempt.pending):
                attempt, patience_s = Attempt(nvapi.Nvapi), OPEN_DEADLINE_S
                self._nvapi_attempt = attempt
        self._nvapi = attempt.result(patience_s, nvapi.SESSION)
        return self._nvapi


def open_driver(*, look: bool = True) -> Driver:
    """Open the driver. Raise DriverUnavailable, with the remedy as its hint. look: as for Driver."""
    return Driver(look=look)


def resolve(spec: str, devices: Iterable[Device], lost: Iterable[LostDevice] = ()) -> Device:
    """The device that an operator means: "gpu0", "0", "GPU-9a1c" (a unique beginning) or "0000:3b:00.0".

    Raise UsageError, which lists the known ones.
    """
    known = tuple(devices)
    matching = [device for device in known if means(spec.strip().lower(), device.identity)]
    if len(matching) == 1:
        return matching[0]
    listed = [f"gpu{gpu.identity.index} {gpu.identity.pci_bus_id} {gpu.identity.uuid}" for gpu in known]
    listed += [f"gpu{gpu.index} (lost: {gpu.reason})" for gpu in lost]
    problem = "means several GPUs" if matching else "is no GPU of this machine"
    raise UsageError(f"{spec!r} {problem}", hint=f"known: {'; '.join(listed) or 'none'}")


def means(spec: str, gpu: Identity) -> bool:
    """True if an operator may mean this GPU by `spec`, in small letters."""
    if spec in (str(gpu.index), f"gpu{gpu.index}"):
        return True
    if spec.startswith("gpu-") and len(spec) >= SHORTEST_UUID:
        return gpu.uuid.lower().startswith(spec)
    known = _pci_key(gpu.pci_bus_id)
    return bool(known) and _PCI.fullmatch(spec) is not None and _pci_key(spec, gpu.pci_bus_id) == known


def _pci_key(bus_id: str, default: str = "0:0:0.0") -> tuple[int, ...]:
    """Domain, bus, device and function as numbers: NVML writes 8 digits for the domain, lspci 4 or none."""
    found = _PCI.fullmatch(bus_id)
    if found is None:
        return ()
    domain = found[1] or default.split(":", 1)[0]
    return (int(domain, 16), *(int(part, 16) for part in re.split(r"[:.]", found[2])))


def _bus(identity: Identity) -> int:
    key = _pci_key(identity.pci_bus_id)
    if not key:
        raise GpuUnsupported("the driver does not tell the PCI bus of this GPU, by which NVAPI would know it")
    return key[1]


def _close_and_initialise(library: nvapi.Nvapi) -> None:
    library.close()
    library.initialise()


def _or_none(ask: Callable[[nvml_calls.Handle], Value], handle: nvml_calls.Handle) -> Value | None:
    try:
        return ask(handle)
    except GpuLost:
        raise
    except GpuError:
        return None
