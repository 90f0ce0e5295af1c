"""The edge to NVML: plain numbers out, memscaler's errors up; nothing above this module sees pynvml.

First the driver as a whole, which is opened once for all who use it in this process, then the questions about one GPU.
Every call here may block (nvml_calls.py). Only actuator threads, the start and the short commands call.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pynvml

from memscaler.core.errors import DriverUnavailable, GpuCallFailed, GpuError, GpuLost, GpuPermission, GpuUnsupported
from memscaler.gpu.nvml_calls import (
    FUNCTION_NOT_FOUND,
    MISMATCH,
    NOT_FOUND,
    REMEDIES,
    SESSION,
    Handle,
    ask,
    code_of,
    failure,
)
from memscaler.gpu.session import PATIENCE_S

OK = 0  # nvmlReturn_t of a field
MOST_USERS = 64  # of NVML in this process

GRAPHICS, MEMORY = 0, 2  # nvmlClockType_t
TEMPERATURE_GPU = 0
PSTATE_UNKNOWN = 32

# Asked by number: bindings before 13.610 lack the names (facts/nvml.md 0.2).
FIELD_MEMORY_SWITCH_TYPE = 298
FIELD_MEMORY_SWITCH_INTERVAL_MS = 299
FIELD_POWER_INSTANT_MW = 186

# nvmlValueType_t -> the member of the union that holds the value.
_FIELD_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")

# ---- the driver ---------------------------------------------------------------------------------------------------


class _Users:
    """How many in this process have initialised NVML and not shut it down. lock: around both, of whichever thread.

    Otherwise the last one out closes the session that the next one has just opened.
    """

    count = 0
    lock = threading.Lock()


@contextlib.contextmanager
def _one_by_one(call: str) -> Iterator[None]:
    """Raise GpuCallFailed if another thread's call does not return."""
    if not _Users.lock.acquire(timeout=PATIENCE_S):
        raise GpuCallFailed(f"{call}: another thread's nvmlInit or nvmlShutdown does not return")
    try:
        yield
    finally:
        _Users.lock.release()


def initialise() -> None:
    """Load and initialise NVML. Raise DriverUnavailable with the remedy; GpuPermission if this user may not."""
    try:
        with _one_by_one("nvmlInit"):
            _initialise()
            _Users.count += 1
    except GpuCallFailed as error:
        raise unusable(error) from error


def _initialise() -> None:
    SESSION.enter("nvmlInit")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise unusable(failure(code_of(error), "nvmlInit")) from error
    except pynvml.NVMLLibraryMismatchError as error:  # not an NVMLError
        raise unusable(GpuCallFailed(str(error), code=MISMATCH)) from error
    finally:
        SESSION.leave()


def unusable(error: GpuError) -> GpuError:
    """What to raise when the driver as a whole fails so: DriverUnavailable, or the same if rights are missing."""
    if isinstance(error, GpuPermission):
        return error
    hint = REMEDIES.get(error.code, "see `dmesg | grep -i nvrm` for what the driver says")
    return DriverUnavailable(f"no usable NVIDIA driver: {error}", code=error.code, hint=hint)


def initialise_anew() -> None:
    """Shut down and initialise, for as many users as there are. Raise as `initialise` does."""
    _drain()
    for _ in range(max(_Users.count, 1)):
        _initialise()


def shutdown() -> None:
    """Let go of the driver; the last one out leaves nothing open. It does not matter if it is gone already."""
    with contextlib.suppress(GpuCallFailed), _one_by_one("nvmlShutdown"):
        _Users.count = max(0, _Users.count - 1)
        if _Users.count:
            _shutdown()
        else:
            _drain()


def _drain() -> None:
    """NVML counts how often it was initialised, and a shutdown that failed once has left one too many."""
    for _ in range(MOST_USERS):
        if not _shutdown():
            return


def _shutdown() -> bool:
    try:
        ask("nvmlShutdown")
    except GpuError:
        return False
    return True


def driver_version() -> str:
    """For example "580.95.05"; "" if the driver does not tell."""
    try:
        return str(ask("nvmlSystemGetDriverVersion"))
    except GpuError:
        return ""


def library_version() -> str:
    """Of NVML itself, for example "12.580.95.05"; "" if it does not tell."""
    try:
        return str(ask("nvmlSystemGetNVMLVersion"))
    except GpuError:
        return ""


def count() -> int:
    """How many GPUs the driver knows, the lost ones included."""
    return int(ask("nvmlDeviceGetCount"))


def is_alive() -> bool:
    """True if the session as a whole answers, whatever it says about single GPUs."""
    try:
        count()
    except (GpuUnsupported, GpuPermission):
        return True
    except GpuError:
        return False
    return True


def handle(index: int) -> Handle:
    """The GPU with this index. Raise GpuLost if it does not answer."""
    return _handle("nvmlDeviceGetHandleByIndex", index)


def handle_of(uuid: str) -> Handle:
    """The GPU with this UUID. Raise GpuLost if it is not there."""
    try:
        return _handle("nvmlDeviceGetHandleByUUID", uuid)
    except GpuCallFailed as error:
        if error.code != NOT_FOUND:
            raise
        raise GpuLost(str(error), code=NOT_FOUND) from error


def _handle(lookup: str, key: int | str) -> Handle:
    generation = SESSION.generation
    pointer = ask(lookup, key)
    if not pointer:  # success, and nothing to show for it
        raise GpuCallFailed(f"{lookup}: no handle, although it reports success")
    return Handle(pointer, generation)


# ---- one GPU ------------------------------------------------------------------------------------------------------


def name(gpu: Handle) -> str:
    """The product, for example "NVIDIA A40"; for people only."""
    return str(ask("nvmlDeviceGetName", gpu))


def uuid(gpu: Handle) -> str:
    """What stays the same over reboots and changes of slots."""
    return str(ask("nvmlDeviceGetUUID", gpu))


def pci_bus_id(gpu: Handle) -> str:
    """For example "00000000:3B:00.0"."""
    return str(ask("nvmlDeviceGetPciInfo", gpu).busId)


def architecture(gpu: Handle) -> int:
    """NVML's number: 4 Pascal, 5 Volta, 6 Turing, 7 Ampere, 8 Ada, 9 Hopper, 10 Blackwell."""
    return int(ask("nvmlDeviceGetArchitecture", gpu))


def virtualization_mode(gpu: Handle) -> int:
    """0 none, 1 passed through, 2 guest of a vGPU, 3 host of vGPUs."""
    return int(ask("nvmlDeviceGetVirtualizationMode", gpu))


def mig_enabled(gpu: Handle) -> bool:
    """True if the GPU is cut into instances now."""
    return bool(ask("nvmlDeviceGetMigMode", gpu)[0])


def memory_clocks_mhz(gpu: Handle) -> tuple[int, ...]:
    """The supported memory clocks in MHz, highest first; none if the card does not tell."""
    return _descending(ask("nvmlDeviceGetSupportedMemoryClocks", gpu))


def graphics_clocks_mhz(gpu: Handle, memory_mhz: int) -> tuple[int, ...]:
    """The graphics clocks in MHz that go with this memory clock, highest first."""
    return _descending(ask("nvmlDeviceGetSupportedGraphicsClocks", gpu, memory_mhz))


def pstates(gpu: Handle) -> tuple[int, ...]:
    """The supported performance states, 0 the fastest."""
    known = ask("nvmlDeviceGetSupportedPerformanceStates", gpu)
    return tuple(sorted({int(state) for state in known if state < PSTATE_UNKNOWN}))


def field(gpu: Handle, number: int) -> int | None:
    """The value of an NVML field, None if this driver does not know it."""
    values = ask("nvmlDeviceGetFieldValues", gpu, [number])
    # Type 0, a floating point number, is also what a structure looks like that the driver has not touched.
    if values[0].nvmlReturn != OK or not 0 < values[0].valueType < len(_FIELD_MEMBERS):
        return None
    return int(getattr(values[0].value, _FIELD_MEMBERS[values[0].valueType]))


def index(gpu: Handle) -> int:
    """Its place in the driver's list; may change with the next reboot."""
    return int(ask("nvmlDeviceGetIndex", gpu))


def clock_mhz(gpu: Handle, kind: int) -> int:
    """The clock in MHz that runs now; `kind` is GRAPHICS or MEMORY."""
    mhz = int(ask("nvmlDeviceGetClockInfo", gpu, kind))
    if not mhz:  # taken for a clock it would be the lowest of all, and a proof that every park works and no wake does
        raise GpuCallFailed("nvmlDeviceGetClockInfo: 0 MHz is no clock")
    return mhz


def pstate(gpu: Handle) -> int | None:
    """0 (fastest) to 15; None while the driver does not know."""
    state = int(ask("nvmlDeviceGetPerformanceState", gpu))
    return None if state >= PSTATE_UNKNOWN else state


def power_w(gpu: Handle) -> float:
    """Watts; an average over 1 s on Ampere (except GA100) and newer."""
    return float(ask("nvmlDeviceGetPowerUsage", gpu)) / 1000


def instant_power_w(gpu: Handle) -> float:
    """Watts now, where the driver tells it apart from the average. Raise GpuUnsupported where it does not."""
    mw = field(gpu, FIELD_POWER_INSTANT_MW)
    if not mw:  # 0: not told on some cards, whatever the status says
        raise failure(FUNCTION_NOT_FOUND, "nvmlDeviceGetFieldValues 186")
    return mw / 1000


def energy_j(gpu: Handle) -> float:
    """Joules since the driver was loaded."""
    return float(ask("nvmlDeviceGetTotalEnergyConsumption", gpu)) / 1000


def utilization_ratio(gpu: Handle) -> float:
    """The share of the last sample period in which a kernel ran, of any process: 0 to 1."""
    return float(ask("nvmlDeviceGetUtilizationRates", gpu).gpu) / 100


def temperature_c(gpu: Handle) -> int:
    """Degrees Celsius."""
    return int(ask("nvmlDeviceGetTemperature", gpu, TEMPERATURE_GPU))


def persistence_mode(gpu: Handle) -> bool:
    """True if the driver keeps the GPU initialised while nobody uses it."""
    return bool(ask("nvmlDeviceGetPersistenceMode", gpu))


def display_active(gpu: Handle) -> bool:
    """True if a screen shows what this GPU draws."""
    return bool(ask("nvmlDeviceGetDisplayActive", gpu))


def memory_used_bytes(gpu: Handle) -> int:
    """What all processes and the driver itself take of the card's memory."""
    return int(ask("nvmlDeviceGetMemoryInfo", gpu).used)


def memory_bytes(gpu: Handle) -> tuple[int, int]:
    """The card's memory in bytes: all of it, and what is free. What the driver keeps for itself is not free."""
    told = ask("nvmlDeviceGetMemoryInfo", gpu)
    return int(told.total), int(told.free)


def compute_processes(gpu: Handle) -> frozenset[int]:
    """The pids of those that have a compute context, as the host counts pids."""
    return frozenset(compute_memory(gpu))


def compute_memory(gpu: Handle) -> dict[int, int | None]:
    """The same pids, with the bytes of the card's memory that each uses; None where the driver does not tell."""
    try:
        found = ask("nvmlDeviceGetComputeRunningProcesses_v3", gpu)
    except GpuUnsupported:  # drivers before 510 have the second version only
        found = ask("nvmlDeviceGetComputeRunningProcesses_v2", gpu)
    return {int(process.pid): _bytes(process.usedGpuMemory) for process in found}


def _bytes(told: Any) -> int | None:
    """All ones is "not available"; pynvml says None for it since release 11."""
    return None if told is None or int(told) == (1 << 64) - 1 else int(told)


def _descending(clocks: Any) -> tuple[int, ...]:
    return tuple(sorted({int(clock) for clock in clocks or ()}, reverse=True))
