"""bpf(2) by hand: the few map calls that the daemon needs, without bcc or libbpf in its memory.

Layouts: union bpf_attr and struct bpf_prog_info in the kernel's include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import struct
from collections.abc import Iterator

from memscaler.kernel.loader import SYS_BPF

_MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _MAP_NEXT_KEY = 1, 2, 3, 4
_INFO_BY_FD, _MAP_LOOKUP_BATCH, _LINK_CREATE = 15, 24, 28
NOEXIST, EXIST = 1, 2
_BATCH = 4096
_BATCHES = tuple(map(int, re.findall(r"\d+", platform.release())[:2])) >= (5, 6)
_PROG_INFO_BYTES, _MAP_INFO_BYTES, _LINK_INFO_BYTES = 232, 80, 32
_RUN_TIME_NS, _RUN_COUNT, _RECURSION_MISSES = 192, 200, 208  # offsets in struct bpf_prog_info

_libc = ctypes.CDLL(None, use_errno=True)


def _call(command: int, attributes: bytes | ctypes.Array[ctypes.c_char]) -> int:
    result: int = _libc.syscall(SYS_BPF[platform.machine()], command, attributes, len(attributes))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


class HashMap:
    """A BPF map of fixed key and value sizes, as bytes in and bytes out. Owns nothing: the caller keeps the descriptor.

    Not thread-safe: the buffers that the kernel reads and writes are kept between calls.
    """

    def __init__(self, fd: int, key_bytes: int, value_bytes: int) -> None:
        self._fd = fd
        self._key = ctypes.create_string_buffer(key_bytes)
        self._value = ctypes.create_string_buffer(value_bytes)
        self._many: tuple[ctypes.Array[ctypes.c_char], ...] = ()

    def get(self, key: bytes) -> bytes | None:
        """The value, or None."""
        try:
            self._element(_MAP_LOOKUP, key)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return self._value.raw

    def put(self, key: bytes, value: bytes, flags: int = 0) -> None:
        """Insert or update; with NOEXIST raises FileExistsError. A full map raises OSError(E2BIG)."""
        self._value.raw = value
        self._element(_MAP_UPDATE, key, flags)

    def delete(self, key: bytes) -> bool:
        """True if it was there."""
        try:
            self._element(_MAP_DELETE, key)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """Every entry, in a few system calls. Entries may come and go meanwhile."""
        return self._in_batches() if _BATCHES else self._one_by_one()

    def _one_by_one(self) -> Iterator[tuple[bytes, bytes]]:
        """Before BPF_MAP_LOOKUP_BATCH (Linux 5.6)."""
        following = ctypes.create_string_buffer(len(self._key))
        position = 0  # the first
        while True:
            try:
                _call(_MAP_NEXT_KEY, struct.pack("=IIQQ", self._fd, 0, position, ctypes.addressof(following)))
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return
                raise
            key = following.raw
            value = self.get(key)
            if value is not None:
                yield key, value
            self._key.raw = key  # if it is gone meanwhile, the kernel begins again: keys may come twice
            position = ctypes.addressof(self._key)

    def _in_batches(self) -> Iterator[tuple[bytes, bytes]]:
        key_bytes, value_bytes = len(self._key), len(self._value)
        if not self._many:
            sizes = (_BATCH * key_bytes, _BATCH * value_bytes, max(8, key_bytes))
            self._many = tuple(ctypes.create_string_buffer(size) for size in sizes)
        cursor, more = 0, True
        while more:
            count, more = self._batch(cursor)
            keys, values = (memoryview(buffer).cast("B") for buffer in self._many[:2])
            # Copied out before the first is given away: the next caller uses the same buffers.
            all_keys = keys[: count * key_bytes].tobytes()
            all_values = values[: count * value_bytes].tobytes()
            for index in range(count):
                yield (
                    all_keys[index * key_bytes : (index + 1) * key_bytes],
                    all_values[index * value_bytes : (index + 1) * value_bytes],
                )
            cursor = ctypes.addressof(self._many[2])

    def _batch(self, cursor: int) -> tuple[int, bool]:
        """(how many were read, whether there are more)."""
        keys, values, following = (ctypes.addressof(buffer) for buffer in self._many)
        packed = struct.pack("=QQQQIIQQ", cursor, following, keys, values, _BATCH, self._fd, 0, 0)
        attributes = ctypes.create_string_buffer(packed, len(packed))
        more = True
        try:
            _call(_MAP_LOOKUP_BATCH, attributes)
        except OSError as error:
            if error.errno != errno.ENOENT:  # ENOENT: this was the last batch
                raise
            more = False
        return struct.unpack_from("=I", attributes, 32)[0], more

    def _element(self, command: int, key: bytes, flags: int = 0) -> None:
        if len(key) != len(self._key):
            raise ValueError(f"key of {len(key)} bytes, not {len(self._key)}")
        self._key.raw = key
        value = 0 if command == _MAP_DELETE else ctypes.addressof(self._value)  # EINVAL for what a command does not use
        _call(command, struct.pack("=IIQQQ", self._fd, 0, ctypes.addressof(self._key), value, flags))


def link_create(program_fd: int, target_fd: int, attach_type: int) -> int:
    """Attach a program; it is detached when the descriptor returned is closed. Linux 5.7 for cgroups."""
    return _call(_LINK_CREATE, struct.pack("=IIII", program_fd, target_fd, attach_type, 0).ljust(64, b"\0"))


def is_attached(link_fd: int) -> bool:
    """False if somebody has detached this cgroup link (BPF_LINK_DETACH, Linux 5.9): it has no cgroup then.

    struct bpf_link_info: type, id, prog_id, then for a cgroup its id and the attach type.
    """
    info = ctypes.create_string_buffer(_LINK_INFO_BYTES)
    try:
        _call(_INFO_BY_FD, struct.pack("=IIQ", link_fd, _LINK_INFO_BYTES, ctypes.addressof(info)))
    except OSError:  # before Linux 5.8 links tell nothing, and cannot be detached
        return True
    return bool(struct.unpack_from("=Q", info, 16)[0])


def map_sizes(fd: int) -> tuple[int, int, int]:
    """(key bytes, value bytes, entries) of a map as the kernel has it."""
    info = ctypes.create_string_buffer(_MAP_INFO_BYTES)
    _call(_INFO_BY_FD, struct.pack("=IIQ", fd, _MAP_INFO_BYTES, ctypes.addressof(info)))
    key, value, entries = struct.unpack_from("=III", info, 8)  # after type and id
    return key, value, entries


def program_info(fd: int) -> dict[str, int]:
    """run_time_ns and run_count (with kernel.bpf_stats_enabled), and recursion_misses (0 before Linux 5.12)."""
    info = ctypes.create_string_buffer(_PROG_INFO_BYTES)
    attributes = struct.pack("=IIQ", fd, _PROG_INFO_BYTES, ctypes.addressof(info))
    _call(_INFO_BY_FD, attributes)
    return {
        "run_time_ns": struct.unpack_from("=Q", info, _RUN_TIME_NS)[0],
        "run_count": struct.unpack_from("=Q", info, _RUN_COUNT)[0],
        "recursion_misses": struct.unpack_from("=Q", info, _RECURSION_MISSES)[0],
    }
