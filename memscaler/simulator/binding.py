"""ctypes over the remote-control library: one function per C export, errors as exceptions. Nothing is computed here."""

from __future__ import annotations

import ctypes
import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memscaler.core.errors import MemscalerError
from memscaler.simulator.builder import REMOTE_LIBRARY

_NO_CODE = -(2**31)
_LOG_SIZE = 16384  # SIM_LOG_SIZE in driver/state.h


class SimulatorError(MemscalerError):
    """The remote control of the simulated driver was asked for something impossible."""


class RawRecord(ctypes.Structure):
    """sim_record in driver/state.h."""

    _fields_ = (
        ("sequence", ctypes.c_uint64),
        ("entry_ns", ctypes.c_int64),
        ("return_ns", ctypes.c_int64),
        ("pid", ctypes.c_uint32),
        ("tid", ctypes.c_uint32),
        ("symbol", ctypes.c_int32),
        ("gpu", ctypes.c_int32),
        ("argument0", ctypes.c_uint32),
        ("argument1", ctypes.c_uint32),
        ("code", ctypes.c_int32),
        ("finished", ctypes.c_uint32),
    )


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One call into the simulated driver, in CLOCK_MONOTONIC time.

    `return_ns` and `code` are None while it is inside.
    """

    number: int
    symbol: str
    gpu: int | None
    arguments: tuple[int, int]
    code: int | None
    entry_ns: int
    return_ns: int | None
    pid: int
    tid: int


@functools.cache
def library(folder: Path) -> ctypes.CDLL:
    """The remote-control library of a build folder."""
    loaded = ctypes.CDLL(str(folder / REMOTE_LIBRARY))
    for name in ("memscaler_sim_symbol_name", "memscaler_sim_board_key"):
        getattr(loaded, name).restype = ctypes.c_char_p
    loaded.memscaler_sim_log_head.restype = ctypes.c_uint64
    loaded.memscaler_sim_sizeof.restype = ctypes.c_uint
    return loaded


def board_keys(folder: Path) -> tuple[str, ...]:
    """The names of the boards in the catalogue."""
    keys: list[str] = []
    while (key := library(folder).memscaler_sim_board_key(len(keys))) is not None:
        keys.append(key.decode())
    return tuple(keys)


class Remote:
    """A mapped state file. gpu -1 means the driver itself."""

    def __init__(self, folder: Path, path: Path, *, create: bool) -> None:
        self._library = library(folder)
        call = self._library.memscaler_sim_create if create else self._library.memscaler_sim_attach
        self._remote = _checked(call(os.fsencode(path)), f"open {path}")

    def close(self) -> None:
        """Unmap. Nothing else may be called afterwards."""
        if self._remote >= 0:
            self._library.memscaler_sim_close(self._remote)
            self._remote = -1

    def _call(self, name: str, *arguments: Any) -> int:
        if self._remote < 0:
            raise SimulatorError("this remote control is closed")
        result = getattr(self._library, f"memscaler_sim_{name}")(self._remote, *arguments)
        return _checked(result, f"{name} {arguments[:2]}")

    def add_board(self, key: str) -> int:
        """Returns the index of the new board."""
        return self._call("add_board", key.encode())

    def get(self, gpu: int, key: str) -> float:
        """One number, as a client of the driver would see it now."""
        value = ctypes.c_double()
        self._call("get", gpu, key.encode(), ctypes.byref(value))
        return value.value

    def set(self, gpu: int, key: str, value: int) -> None:
        """Change one input; clocks and power follow."""
        self._call("set", gpu, key.encode(), ctypes.c_int64(int(value)))

    def text(self, gpu: int, key: str) -> str:
        """One text: uuid, name, key of a board; driver_version of the driver."""
        out = ctypes.create_string_buffer(128)
        self._call("get_text", gpu, key.encode(), out)
        return out.value.decode()

    def set_driver_version(self, version: str) -> None:
        """What nvmlSystemGetDriverVersion answers."""
        self._call("set_driver_version", version.encode())

    def memory_bytes(self, gpu: int) -> int:
        """The size of a board's memory."""
        value = ctypes.c_uint64()
        self._call("memory_bytes", gpu, ctypes.byref(value))
        return value.value

    def put_process(self, gpu: int, pid: int, used_bytes: int, sm_percent: int, kind: int, name: str) -> None:
        """Add a process, or change it. kind: 0 compute, 1 graphics, 2 MPS."""
        self._call("put_process", gpu, pid, ctypes.c_uint64(used_bytes), sm_percent, kind, name.encode())

    def drop_process(self, gpu: int, pid: int) -> None:
        """Remove a process."""
        self._call("drop_process", gpu, pid)

    def reload(self) -> None:
        """As rmmod and modprobe: locks and energy counters gone, handles and sessions stale."""
        self._call("reload")

    def symbol(self, name: str) -> int:
        """The number of a driver function; aliases share it. Raise SimulatorError for a name no library has."""
        found: int = self._library.memscaler_sim_symbol(name.encode())
        if found < 0:
            raise SimulatorError(f"the simulated driver has no function {name!r}")
        return found

    def inject(
        self, gpu: int, symbol: int, code: int | None, delay_ms: int, flags: tuple[bool, bool], span: tuple[int, int]
    ) -> None:
        """Add a fault. flags: hang, ignore. span: calls let through first, calls struck (0 = all)."""
        number = _NO_CODE if code is None else code
        self._call("inject", gpu, symbol, number, delay_ms, int(flags[0]), int(flags[1]), span[0], span[1])

    def clear(self, gpu: int, symbol: int) -> None:
        """Remove faults; -1 = any."""
        self._call("clear", gpu, symbol)

    def event(self, gpu: int, kind: int, data: int) -> None:
        """Deliver an NVML event to whoever registered for it."""
        self._call("event", gpu, ctypes.c_uint64(kind), ctypes.c_uint64(data))

    def log_head(self) -> int:
        """The number of the newest record in the call log."""
        head: int = self._library.memscaler_sim_log_head(self._remote)
        return head

    def log(self, after: int) -> list[CallRecord]:
        """The records numbered above `after` that are still in the ring, oldest first."""
        room = (RawRecord * min(_LOG_SIZE, max(self.log_head() - after + 64, 1)))()
        count = self._call("log", ctypes.c_uint64(after), room, len(room))
        return [self._record(room[i]) for i in range(count)]

    def _record(self, raw: RawRecord) -> CallRecord:
        return CallRecord(
            number=raw.sequence,
            symbol=self._library.memscaler_sim_symbol_name(raw.symbol).decode(),
            gpu=raw.gpu if raw.gpu >= 0 else None,
            arguments=(raw.argument0, raw.argument1),
            code=raw.code if raw.finished else None,
            entry_ns=raw.entry_ns,
            return_ns=raw.return_ns if raw.finished else None,
            pid=raw.pid,
            tid=raw.tid,
        )


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise SimulatorError(f"simulated driver: cannot {what}: {os.strerror(-result)}")
    return result
