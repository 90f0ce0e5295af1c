"""The edge to NVAPI's Linux library, for one call: SetForcePstate, the only lever on cards like the P40.

The call is undocumented (facts/nvml.md section 2). It takes 0..15 to force a state and 16 to let the driver decide.
Its handles carry a PCI bus number but no domain, so a handle is used only where the bus number is unique.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

from memscaler.core.errors import GpuCallFailed, GpuError, GpuLost, GpuPermission, GpuUnsupported

LIBRARY = "libnvidia-api.so.1"
AUTOMATIC = 16
MAX_GPUS = 64
# 0: answer with an error if the state is not available, instead of taking another one.
NO_FALLBACK = 0

INITIALIZE = 0x0150E828
UNLOAD = 0xD22BDD7E
ENUM_PHYSICAL_GPUS = 0xE5AC921F
GET_BUS_ID = 0x1BE0B8E5
SET_FORCE_PSTATE = 0x025BFB10

# -8 about a handle that NVAPI itself listed is how an H100 NVL refuses the call (facts/nvml.md section 2).
_UNSUPPORTED = {
    -3: "not implemented",
    -8: "invalid handle",
    -104: "not supported",
    -107: "no such performance state",
}
_OTHER = {-1: "error", -4: "not initialized", -5: "invalid argument", -6: "device not found"}
_PERMISSION = -137
_LOST = -10  # handle invalidated

_Handles = ctypes.c_void_p * MAX_GPUS


def failure(code: int, call: str) -> GpuError:
    """The error that stands for this NVAPI status."""
    if code in _UNSUPPORTED:
        return GpuUnsupported(f"{call}: {_UNSUPPORTED[code]} (NVAPI {code})", code=code)
    if code == _PERMISSION:
        return GpuPermission(f"{call}: no permission (NVAPI {code})", code=code)
    if code == _LOST:
        return GpuLost(f"{call}: handle invalidated (NVAPI {code})", code=code)
    return GpuCallFailed(f"{call}: {_OTHER.get(code, 'failed')} (NVAPI {code})", code=code)


class Nvapi:
    """The opened library. Raise GpuUnsupported, with the reason, if it cannot be used here."""

    def __init__(self) -> None:
        try:
            self._query = ctypes.CDLL(LIBRARY).nvapi_QueryInterface
        except (OSError, AttributeError) as error:
            raise GpuUnsupported(f"{LIBRARY} cannot be loaded (Debian: package libnvidia-api1)") from error
        self._query.restype = ctypes.c_void_p
        self._query.argtypes = [ctypes.c_uint]
        self._set_force_pstate = self._function(SET_FORCE_PSTATE, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        if code := self._function(INITIALIZE)():
            raise GpuUnsupported(str(failure(code, "NvAPI_Initialize")), code=code)
        self._by_bus = self._enumerate()

    def match(self, bus: int, nvml_buses: list[int]) -> ctypes.c_void_p:
        """The handle of the GPU on this bus. Raise GpuUnsupported unless it is the only one, here and in NVML."""
        here = [handle for known, handle in self._by_bus if known == bus]
        if not here:
            raise GpuUnsupported(f"NVAPI has no GPU on PCI bus {bus:02X}")
        if len(here) > 1 or nvml_buses.count(bus) != 1:
            raise GpuUnsupported(f"several GPUs have PCI bus number {bus:02X}, NVAPI cannot tell them apart")
        return here[0]

    def forcing(self, handle: ctypes.c_void_p, pstate: int) -> Callable[[], None]:
        """A call, bound beforehand, that forces this state (AUTOMATIC: lets the driver decide)."""
        return partial(_checked, partial(self._set_force_pstate, handle, pstate, NO_FALLBACK))

    def close(self) -> None:
        self._function(UNLOAD)()

    def _function(self, number: int, *argtypes: Any) -> Callable[..., int]:
        address = self._query(number)
        if not address:
            raise GpuUnsupported(f"{LIBRARY} lacks the call {number:#010x}", code=-3)
        return ctypes.CFUNCTYPE(ctypes.c_int, *argtypes)(address)

    def _enumerate(self) -> list[tuple[int, ctypes.c_void_p]]:
        handles, found = _Handles(), ctypes.c_uint(0)
        enumerate_gpus = self._function(ENUM_PHYSICAL_GPUS, ctypes.c_void_p, ctypes.c_void_p)
        if code := enumerate_gpus(ctypes.byref(handles), ctypes.byref(found)):
            raise GpuUnsupported(str(failure(code, "NvAPI_EnumPhysicalGPUs")), code=code)
        get_bus_id = self._function(GET_BUS_ID, ctypes.c_void_p, ctypes.c_void_p)
        by_bus = []
        for address in handles[: min(found.value, MAX_GPUS)]:
            bus = ctypes.c_uint(0)
            if get_bus_id(address, ctypes.byref(bus)) == 0:
                by_bus.append((bus.value, ctypes.c_void_p(address)))
        return by_bus


def _checked(call: Callable[[], int]) -> None:
    if code := call():
        raise failure(code, "NvAPI_GPU_SetForcePstate")
