"""Drops rights for good: in this process, and in every program that it will start.

`keep_rights` leaves of root's capabilities what governing needs, loading included, as the systemd unit does from the
beginning: it makes a governor that was started by hand as harmless. `refuse_loading` denies the system calls with which
the loader puts the program into the kernel, mounts tracefs and attaches, and a few that nobody here ever needs; what is
left of bpf(2) are maps, and links of programs that are there already. It is for who will never load: it outlasts execv.

Capabilities and filters belong to threads, not to processes, and are inherited: call these before the first thread.
Neither raises: a governor that may do too much is better than none.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import struct
from collections.abc import Iterable
from pathlib import Path

# include/uapi/linux/capability.h
_BITS = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_KILL": 5,
    "CAP_IPC_LOCK": 14,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_NICE": 23,
    "CAP_SYS_RESOURCE": 24,
}
# The unit's three, and two that it does without: CHOWN for the group of the control socket (there SupplementaryGroups=
# sees to that), SYS_RESOURCE for the guardian's protection from the OOM killer (there OOMScoreAdjust= does).
GOVERNING = ("CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "CAP_CHOWN", "CAP_SYS_RESOURCE")
# What [[gpuctl]] rules need for processes of other users: signals, nice, files of a cgroup that is theirs. Nice also to
# give back to root's own what a rule has taken.
CONTROLLING = ("CAP_KILL", "CAP_SYS_NICE", "CAP_DAC_OVERRIDE")

_VERSION_3 = 0x20080522
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 4, 22, 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_SECCOMP_MODE_FILTER = 2

# The calls that are denied, by number: (x86_64, and the table that newer machines share).
_DENIED = {
    "perf_event_open": (298, 241),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "open_tree": (428, 428),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "open_by_handle_at": (304, 265),
    "userfaultfd": (323, 282),
}
_BPF = (321, 280)
# enum bpf_cmd: MAP_CREATE, PROG_LOAD, PROG_ATTACH, RAW_TRACEPOINT_OPEN, BTF_LOAD
_DENIED_BPF = (0, 5, 8, 17, 18)
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # AUDIT_ARCH_*

# struct seccomp_data, and the few instructions of classic BPF that are needed
_NR, _ARCH, _ARG0 = 0, 4, 16
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _DENY = 0x7FFF0000, 0x00050000 | 1  # EPERM
_X32 = 0x40000000

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, k

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def keep_rights(names: Iterable[str] = GOVERNING, *, writes_to: Path | None = None) -> frozenset[str]:
    """Keep these capabilities, of those that there are, and no others. Returns the names of those that are left.

    writes_to: a directory that stays writable, also if it belongs to somebody else.
    """
    wanted = set(names)
    with contextlib.suppress(OSError):
        if writes_to is not None and writes_to.stat().st_uid != os.geteuid():
            wanted.add("CAP_DAC_OVERRIDE")
    if not _lift_memory_limit():
        wanted.add("CAP_IPC_LOCK")
    kept = _effective() & sum(1 << _BITS[name] for name in wanted)
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for bit in range(64):
        if not kept >> bit & 1:
            _prctl(_PR_CAPBSET_DROP, bit)  # needs CAP_SETPCAP, which goes below
    header = struct.pack("=Ii", _VERSION_3, 0)
    low, high = kept & 0xFFFFFFFF, kept >> 32
    _libc.capset(header, struct.pack("=6I", low, low, 0, high, high, 0))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    # No core dumps, and nobody reads our memory who has fewer rights, be it root's process.
    _prctl(_PR_SET_DUMPABLE, 0)
    left = _effective()
    return frozenset(name for name, bit in _BITS.items() if left >> bit & 1)


def lacking(names: Iterable[str]) -> list[str]:
    """Those of these capabilities that we do not have."""
    return [name for name in names if not _effective() >> _BITS[name] & 1]


def refuse_loading() -> bool:
    """Deny what put the programs into the kernel. True if the filter is in force; False on a machine we do not know."""
    if os.uname().machine not in _MACHINES:
        return False
    code = b"".join(struct.pack("=HBBI", *each) for each in program(*_MACHINES[os.uname().machine]))
    memory = ctypes.create_string_buffer(code, len(code))
    filters = _Program(len(code) // 8, ctypes.addressof(memory))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    return _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(filters)) == 0


def program(table: int, architecture: int) -> list[Instruction]:
    """The filter. Calls by another architecture's numbers are denied: they would be taken for others."""
    denied = [numbers[table] for numbers in _DENIED.values()]
    rules: list[Instruction] = [(_LOAD, 0, 0, _ARG0)]
    rules += [(_EQUAL, len(_DENIED_BPF) - at, 0, command) for at, command in enumerate(_DENIED_BPF)]
    rules += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _DENY)]
    deny = len(denied) + 1 + len(rules)  # behind everything, from the first of the list on
    head: list[Instruction] = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _DENY)]
    head += [(_LOAD, 0, 0, _NR)]
    if table == 0:
        head += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _DENY)]
    listed = [(_EQUAL, deny - at - 1, 0, number) for at, number in enumerate(denied)]
    return [*head, *listed, (_EQUAL, 1, 0, _BPF[table]), (_RETURN, 0, 0, _ALLOW), *rules]


def _prctl(option: int, argument: int, more: int = 0) -> int:
    """0, or -1 where the kernel refuses."""
    return int(_libc.prctl(option, argument, more, 0, 0))


def _effective() -> int:
    """This thread's effective capabilities."""
    return int(Path("/proc/thread-self/status").read_text().partition("CapEff:")[2].split()[0], 16)


def _lift_memory_limit() -> bool:
    """The governor locks its pages, also those to come, and without a limit that needs no capability."""
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (OSError, ValueError):
        return resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY
    return True
