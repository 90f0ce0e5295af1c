"""The edge to NVAPI's Linux library, for one call: SetForcePstate, the only lever on cards like the P40.

The call is undocumented (facts/nvml.md section 2). It takes 0..15 to force a state and 16 to let the driver decide.
Its handles carry a PCI bus number but no domain, so a handle is used only where the bus number is unique.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from memscaler.core.errors import GpuCallFailed, GpuError, GpuLost, GpuPermission, GpuUnsupported
from memscaler.gpu.session import Session

SESSION = Session("NVAPI")
LIBRARY = "libnvidia-api.so.1"
AUTOMATIC = 16
MAX_GPUS = 64
MOST_USERS = 64  # of NVAPI in this process
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


class Handle(NamedTuple):
    """A GPU in one session with NVAPI. pointer: opaque."""

    pointer: ctypes.c_void_p
    generation: int


class Nvapi:
    """The opened library. Raise GpuUnsupported, with the reason, if it cannot be used here; GpuError if it fails."""

    def __init__(self) -> None:
        try:
            self._query = ctypes.CDLL(LIBRARY).nvapi_QueryInterface
        except (OSError, AttributeError) as error:
            raise GpuUnsupported(f"{LIBRARY} cannot be loaded (Debian: package libnvidia-api1)") from error
        self._query.restype = ctypes.c_void_p
        self._query.argtypes = [ctypes.c_uint]
        self._set_force_pstate = self._function(SET_FORCE_PSTATE, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        self._enumerate_gpus = self._function(ENUM_PHYSICAL_GPUS, ctypes.c_void_p, ctypes.c_void_p)
        self._get_bus_id = self._function(GET_BUS_ID, ctypes.c_void_p, ctypes.c_void_p)
        self.initialise()

    def initialise(self) -> None:
        """Open it, again after `close`."""
        self._by_bus: list[tuple[int, Handle]] = []
        if code := _inside("NvAPI_Initialize", self._function(INITIALIZE)):
            raise failure(code, "NvAPI_Initialize")
        try:
            self.enumerate()
        except GpuError:
            self.close()
            raise

    def enumerate(self) -> None:
        """Get a fresh handle of each GPU. Raise GpuError if they cannot be listed."""
        self._by_bus = []  # handles that may be stale are better not used
        generation, pointers, found = SESSION.generation, _Handles(), ctypes.c_uint(0)
        code = _inside("NvAPI_EnumPhysicalGPUs", self._enumerate_gpus, ctypes.byref(pointers), ctypes.byref(found))
        if code:
            raise failure(code, "NvAPI_EnumPhysicalGPUs")
        by_bus = []
        for address in pointers[: min(found.value, MAX_GPUS)]:
            bus = ctypes.c_uint(0)
            if _inside("NvAPI_GPU_GetBusId", self._get_bus_id, address, ctypes.byref(bus)) == 0:
                by_bus.append((bus.value, Handle(ctypes.c_void_p(address), generation)))
        self._by_bus = by_bus

    def match(self, bus: int, nvml_buses: Sequence[int]) -> Handle:
        """The handle of the GPU on this bus. Raise GpuUnsupported unless it is the only one, here and in NVML."""
        here = [handle for known, handle in self._by_bus if known == bus]
        if not here:
            raise GpuUnsupported(f"NVAPI has no GPU on PCI bus {bus:02X}")
        if len(here) > 1 or nvml_buses.count(bus) != 1:
            raise GpuUnsupported(f"several GPUs have PCI bus number {bus:02X}, NVAPI cannot tell them apart")
        return here[0]

    def forcing(self, handle: Handle, pstate: int) -> Callable[[], None]:
        """A call, bound beforehand, that forces this state (AUTOMATIC: lets the driver decide)."""
        act = partial(self._set_force_pstate, handle.pointer, pstate, NO_FALLBACK)
        return partial(_checked, act, handle.generation)

    def close(self) -> None:
        """Let go of it. NVAPI counts, too, and a call that failed once has left one too many."""
        unload = self._function(UNLOAD)
        for _ in range(MOST_USERS):
            if _inside("NvAPI_Unload", unload):
                return

    def _function(self, number: int, *argtypes: Any) -> Callable[..., int]:
        address = self._query(number)
        if not address:
            raise GpuUnsupported(f"{LIBRARY} lacks the call {number:#010x}", code=-3)
        return ctypes.CFUNCTYPE(ctypes.c_int, *argtypes)(address)


def _inside(name: str, call: Callable[..., int], *arguments: Any) -> int:
    SESSION.enter(name)
    try:
        return call(*arguments)
    finally:
        SESSION.leave()


def _checked(call: Callable[[], int], generation: int) -> None:
    SESSION.enter("NvAPI_GPU_SetForcePstate", generation)
    try:
        code = call()
    finally:
        SESSION.leave()
    if code:
        raise failure(code, "NvAPI_GPU_SetForcePstate")
