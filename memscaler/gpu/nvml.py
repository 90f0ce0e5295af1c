"""The edge to NVML: plain numbers out, memscaler's errors up; nothing above this module sees pynvml.

Every call here may block for as long as the driver likes. Only actuator threads, the start and the short commands call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

import pynvml

from memscaler.core.errors import DriverUnavailable, GpuCallFailed, GpuError, GpuLost, GpuPermission, GpuUnsupported

Handle = Any  # pynvml's opaque pointer

OK = 0
NO_PERMISSION = 4
FUNCTION_NOT_FOUND = 13
UNSUPPORTED = frozenset({3, FUNCTION_NOT_FOUND})
LOST = frozenset({15, 16})  # fallen off the bus; reset required

GRAPHICS, MEMORY = 0, 2  # nvmlClockType_t
TEMPERATURE_GPU = 0
PSTATE_UNKNOWN = 32

# Asked by number: bindings before 13.610 lack the names (facts/nvml.md 0.2).
FIELD_MEMORY_SWITCH_TYPE = 298
FIELD_MEMORY_SWITCH_INTERVAL_MS = 299

# nvmlValueType_t -> the member of the union that holds the value.
_FIELD_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")

_REMEDIES = {
    9: "load the kernel module (`modprobe nvidia`); after installing the driver, reboot",
    12: "install the NVIDIA driver; without a GPU: `memscaler gpus --simulate a40`",
    17: "this process may not open /dev/nvidia*: give the container the GPU, or allow the device in the unit",
    18: "the driver was upgraded while in use: reboot, or reload its kernel module, then start memscaler again",
    999: "if this runs in a container, restart it: `systemctl daemon-reload` on the host can take its GPUs away",
}


def failure(code: int, call: str) -> GpuError:
    """The error that stands for this NVML code."""
    message = f"{call}: {pynvml.NVMLError(code)} (NVML {code})"
    if code in UNSUPPORTED:
        return GpuUnsupported(message, code=code)
    if code == NO_PERMISSION:
        return GpuPermission(message, code=code)
    return (GpuLost if code in LOST else GpuCallFailed)(message, code=code)


def _code(error: pynvml.NVMLError) -> int:
    return int(vars(error)["value"])  # set in __new__, out of the sight of type checkers


def ask(name: str, *arguments: Any) -> Any:
    """Call pynvml's wrapper of this name. A wrapper or a symbol that is missing counts as unsupported."""
    wrapper = getattr(pynvml, name, None)
    if wrapper is None:
        raise failure(FUNCTION_NOT_FOUND, name)
    try:
        return wrapper(*arguments)
    except pynvml.NVMLError as error:
        raise failure(_code(error), name) from error


def told(name: str, *arguments: Any) -> Any | None:
    """Like `ask`, but None where this GPU or driver does not tell. Raise GpuLost only."""
    try:
        return ask(name, *arguments)
    except GpuLost:
        raise
    except GpuError:
        return None


class Setter:
    """One driver call with its arguments, bound beforehand: the wake path runs nothing but this.

    ctypes lets other threads run during the call.
    """

    __slots__ = ("_call", "symbol")

    def __init__(self, symbol: str, handle: Handle, *values: int) -> None:
        self.symbol = symbol
        self._call = _bind(symbol, handle, *values)

    def __call__(self) -> None:
        if code := self._call():
            raise failure(code, self.symbol)


def _bind(symbol: str, handle: Handle, *values: int) -> Callable[[], int]:
    try:
        function = pynvml._nvmlGetFunctionPointer(symbol)  # noqa: SLF001  # the wrappers cost more and vary by release
    except pynvml.NVMLError:
        return lambda: FUNCTION_NOT_FOUND
    return partial(function, handle, *(ctypes.c_uint(value) for value in values))


# ---- the driver ---------------------------------------------------------------------------------------------------


def initialise() -> None:
    """Load and initialise NVML. Raise DriverUnavailable with the remedy; GpuPermission if this user may not."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        code = _code(error)
        if code == NO_PERMISSION:
            raise failure(code, "nvmlInit") from error
        hint = _REMEDIES.get(code, "see `dmesg | grep -i nvrm` for what the driver says")
        raise DriverUnavailable(f"no usable NVIDIA driver: {error} (NVML {code})", code=code, hint=hint) from error
    except pynvml.NVMLLibraryMismatchError as error:  # not an NVMLError
        raise DriverUnavailable(f"no usable NVIDIA driver: {error}", hint=_REMEDIES[18]) from error


def shutdown() -> None:
    """Let go of the driver. It does not matter if it is gone already."""
    told("nvmlShutdown")


def driver_version() -> str:
    """For example "580.95.05"; "" if the driver does not tell."""
    return str(told("nvmlSystemGetDriverVersion") or "")


def count() -> int:
    """How many GPUs the driver knows, the lost ones included."""
    return int(ask("nvmlDeviceGetCount"))


def handle(index: int) -> Handle:
    """The GPU with this index. Raise GpuLost if it does not answer."""
    return ask("nvmlDeviceGetHandleByIndex", index)


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


def architecture(gpu: Handle) -> int | None:
    """NVML's number: 4 Pascal, 5 Volta, 6 Turing, 7 Ampere, 8 Ada, 9 Hopper, 10 Blackwell."""
    return told("nvmlDeviceGetArchitecture", gpu)


def virtualization_mode(gpu: Handle) -> int | None:
    """0 none, 1 passed through, 2 guest of a vGPU, 3 host of vGPUs."""
    return told("nvmlDeviceGetVirtualizationMode", gpu)


def mig_enabled(gpu: Handle) -> bool:
    """True if the GPU is cut into instances now."""
    modes = told("nvmlDeviceGetMigMode", gpu)
    return bool(modes and modes[0])


def memory_clocks_mhz(gpu: Handle) -> tuple[int, ...]:
    """The supported memory clocks in MHz, highest first; none if the card does not tell."""
    return _descending(told("nvmlDeviceGetSupportedMemoryClocks", gpu))


def graphics_clocks_mhz(gpu: Handle, memory_mhz: int) -> tuple[int, ...]:
    """The graphics clocks in MHz that go with this memory clock, highest first."""
    return _descending(told("nvmlDeviceGetSupportedGraphicsClocks", gpu, memory_mhz))


def pstates(gpu: Handle) -> tuple[int, ...]:
    """The supported performance states, 0 the fastest."""
    known = told("nvmlDeviceGetSupportedPerformanceStates", gpu) or ()
    return tuple(sorted({int(state) for state in known if state < PSTATE_UNKNOWN}))


def field(gpu: Handle, number: int) -> int | None:
    """The value of an NVML field, None if this driver does not know it."""
    values = told("nvmlDeviceGetFieldValues", gpu, [number])
    if values is None or values[0].nvmlReturn != OK or not 0 <= values[0].valueType < len(_FIELD_MEMBERS):
        return None
    return int(getattr(values[0].value, _FIELD_MEMBERS[values[0].valueType]))


def clock_mhz(gpu: Handle, kind: int) -> int:
    """The clock in MHz that runs now; `kind` is GRAPHICS or MEMORY."""
    return int(ask("nvmlDeviceGetClockInfo", gpu, kind))


def pstate(gpu: Handle) -> int | None:
    """0 (fastest) to 15; None while the driver does not know."""
    state = int(ask("nvmlDeviceGetPerformanceState", gpu))
    return None if state >= PSTATE_UNKNOWN else state


def power_w(gpu: Handle) -> float:
    """Watts; an average over 1 s on Ampere (except GA100) and newer."""
    return float(ask("nvmlDeviceGetPowerUsage", gpu)) / 1000


def energy_j(gpu: Handle) -> float:
    """Joules since the driver was loaded."""
    return float(ask("nvmlDeviceGetTotalEnergyConsumption", gpu)) / 1000


def utilization_ratio(gpu: Handle) -> float:
    """The share of the last sample period in which a kernel ran, of any process: 0 to 1."""
    return float(ask("nvmlDeviceGetUtilizationRates", gpu).gpu) / 100


def temperature_c(gpu: Handle) -> int:
    """Degrees Celsius."""
    return int(ask("nvmlDeviceGetTemperature", gpu, TEMPERATURE_GPU))


def memory_used_bytes(gpu: Handle) -> int:
    """What all processes and the driver itself take of the card's memory."""
    return int(ask("nvmlDeviceGetMemoryInfo", gpu).used)


def compute_processes(gpu: Handle) -> frozenset[int]:
    """The pids of those that have a compute context, as the host counts pids."""
    try:
        found = ask("nvmlDeviceGetComputeRunningProcesses_v3", gpu)
    except GpuUnsupported:  # drivers before 510 have the second version only
        found = ask("nvmlDeviceGetComputeRunningProcesses_v2", gpu)
    return frozenset(int(process.pid) for process in found)


def _descending(clocks: Any) -> tuple[int, ...]:
    return tuple(sorted({int(clock) for clock in clocks or ()}, reverse=True))
