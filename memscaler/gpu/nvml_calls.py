"""How NVML is called: a session, a handle of one of its GPUs, codes that become memscaler's errors.

Two ways lead in: `ask`, for questions, and `Setter`, a write whose arguments are bound beforehand. Both tell the
session that they are inside, and both refuse a handle of an earlier one: after SESSION was opened anew, the driver
never sees it. Every call may block for as long as the driver likes. What is asked is in nvml.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pynvml

from memscaler.core.errors import GpuCallFailed, GpuError, GpuLost, GpuPermission, GpuUnsupported
from memscaler.gpu.session import Session

SESSION = Session("NVML")

NO_PERMISSION = 4
NOT_FOUND = 6
FUNCTION_NOT_FOUND = 13
UNSUPPORTED = frozenset({3, FUNCTION_NOT_FOUND})
LOST = frozenset({15, 16})  # fallen off the bus; reset required
MISMATCH = 18  # library and kernel module are of different versions

REMEDIES = {
    9: "load the kernel module (`modprobe nvidia`); after installing the driver, reboot",
    12: "install the NVIDIA driver; without a GPU: `memscaler gpus --simulate a40`",
    15: "it has fallen off the bus: see `dmesg | grep -i xid`; it comes back after a reboot, if at all",
    16: "reset it: `memscaler release`, `nvidia-smi --gpu-reset -i INDEX`, `memscaler resume`; or reboot",
    17: "this process may not open /dev/nvidia*: give the container the GPU, or allow the device in the unit",
    18: "the driver was upgraded while in use: reboot, or reload its kernel module, then start memscaler again",
    999: "if this runs in a container, restart it: `systemctl daemon-reload` on the host can take its GPUs away",
}


@dataclass(frozen=True, slots=True)
class Handle:
    """A GPU in one session with NVML. pointer: pynvml's, opaque."""

    pointer: Any
    generation: int


def failure(code: int, call: str) -> GpuError:
    """The error that stands for this NVML code, with what to do about it where that is known."""
    message = f"{call}: {pynvml.NVMLError(code)} (NVML {code})"
    if code in UNSUPPORTED:
        return GpuUnsupported(message, code=code)
    if code == NO_PERMISSION:
        return GpuPermission(message, code=code)
    return (GpuLost if code in LOST else GpuCallFailed)(message, code=code, hint=REMEDIES.get(code, ""))


def code_of(error: pynvml.NVMLError) -> int:
    """NVML's number for it."""
    return int(vars(error)["value"])  # set in __new__, out of the sight of type checkers


def ask(name: str, *arguments: Any) -> Any:
    """Call pynvml's wrapper of this name. A wrapper or a symbol that is missing counts as unsupported."""
    wrapper = getattr(pynvml, name, None)
    if wrapper is None:
        raise failure(FUNCTION_NOT_FOUND, name)
    if arguments and isinstance(arguments[0], Handle):
        SESSION.enter(name, arguments[0].generation)
        arguments = (arguments[0].pointer, *arguments[1:])
    else:
        SESSION.enter(name)
    try:
        return wrapper(*arguments)
    except pynvml.NVMLError as error:
        raise failure(code_of(error), name) from error
    except (pynvml.NVMLLibraryMismatchError, UnicodeDecodeError) as error:  # an older library; bytes that are no text
        raise GpuUnsupported(f"{name}: {error}") from error
    finally:
        SESSION.leave()


class Setter:
    """One driver call with its arguments, bound beforehand: the wake path runs nothing but this.

    ctypes lets other threads run during the call.
    """

    __slots__ = ("_call", "_generation", "symbol")

    def __init__(self, symbol: str, handle: Handle, *values: int) -> None:
        self.symbol = symbol
        self._generation = handle.generation
        self._call = _bind(symbol, handle.pointer, *values)

    def __call__(self) -> None:
        SESSION.enter(self.symbol, self._generation)
        try:
            code = self._call()
        finally:
            SESSION.leave()
        if code:
            raise failure(code, self.symbol)


def _bind(symbol: str, pointer: Any, *values: int) -> Callable[[], int]:
    try:
        function = pynvml._nvmlGetFunctionPointer(symbol)  # noqa: SLF001  # the wrappers cost more and vary by release
    except pynvml.NVMLError:
        return lambda: FUNCTION_NOT_FOUND
    return partial(function, pointer, *(ctypes.c_uint(value) for value in values))
