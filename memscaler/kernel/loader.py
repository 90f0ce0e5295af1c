"""The loader: compiles and attaches the BPF program with bcc, hands the descriptors over, and is gone.

Stand-alone: it imports only the standard library and bcc, so that it runs under the distribution's python3 (the one
that has bcc) while the daemon lives in any virtual environment. Nobody imports this file; `attachment.py` runs it:

    python3 -I loader.py SOCKET_FD BPF_DIR OPTIONS_JSON

It answers with one message on the socket: JSON, and with SCM_RIGHTS the descriptors in the order of "fds". On failure
the JSON holds "error" (a stable id), "message" and "hint". bcc's messages go to "detail". Python >= 3.9.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import json
import os
import platform
import re
import resource
import socket
import struct
import sys
import tempfile
from typing import Any, NamedTuple

TRACEPOINT = "sock:inet_sock_set_state"
FORMAT = "events/sock/inet_sock_set_state/format"
TRACEPOINT_NEEDS = "it needs CONFIG_INET, CONFIG_FTRACE and CONFIG_ENABLE_DEFAULT_TRACERS or CONFIG_FUNCTION_TRACER"
TRACEFS = "/sys/kernel/tracing"
DEBUGFS_TRACING = "/sys/kernel/debug/tracing/events"
PARANOID = "/proc/sys/kernel/perf_event_paranoid"
BTF = "/sys/kernel/btf/vmlinux"
OLDEST_KERNEL = (4, 16)  # the tracepoint
PROBE_READ_KERNEL = (5, 5)
RING_BUFFER = (5, 8)
COMPARE_AND_EXCHANGE = (5, 12)  # in BPF
SYS_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
SO_NETNS_COOKIE = 71
BPF_LINK_CREATE = 28
BPF_CGROUP_SOCK_OPS = 3
BPF_PROG_TYPE_CGROUP_SKB, BPF_PROG_TYPE_SOCK_OPS = 8, 13
CAN_MISS = "a connection can be missed for up to a second while a GPU is parked"
STRICTEST_UPSTREAM = 2  # of kernel.perf_event_paranoid; Debian's kernels know 3
ONE_NAMESPACE = "network namespaces are not told apart"
NO_DATA = "an open connection keeps its GPU awake even if nothing is said on it"
NO_TOUCHES = "a health check counts like any other connection"
NO_RING = "counters are polled while a GPU is parked, and a connection wakes it up to 20 ms late"
MAPS = ("ports", "watches", "ignore", "connections", "silent", "slots", "work")
RINGS = ("doorbell", "bulletin")
BTF_MAGIC, BTF_STRUCT = 0xEB9F, 4
# Bytes that follow the 12-byte record of a BTF type, by kind: fixed, or per member.
BTF_FIXED = {1: 4, 3: 12, 14: 4, 17: 4}
BTF_PER_MEMBER = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}


class LoadError(Exception):
    """Something that the user can mend: id, one line, and what to do."""

    def __init__(self, error: str, message: str, hint: str, detail: str = "") -> None:
        super().__init__(message)
        self.answer = {"error": error, "message": message, "hint": hint, "detail": detail}


def main(arguments: list[str]) -> None:
    """Load, answer, leave without bcc's clean-up (it would disable the perf event that was just handed over)."""
    channel = socket.socket(fileno=int(arguments[0]))
    try:
        answer, fds = load(arguments[1], json.loads(arguments[2]))
    except LoadError as error:
        answer, fds = error.answer, []
    except Exception as error:  # noqa: BLE001  # whatever it is: the daemon turns it into one line
        message = f"the BPF program could not be loaded: {error}".replace("\n", " ")
        answer, fds = {"error": "failed", "message": message, "hint": "", "detail": ""}, []
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    with contextlib.suppress(OSError):  # whoever asked is gone: so are we
        channel.sendmsg([json.dumps(answer).encode()], rights)
    os._exit(0)


def load(bpf_dir: str, options: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    """Check what can be checked, then try the variants from best to least."""
    check_kernel()
    mounted = ensure_tracefs()
    notices = [f"mounted tracefs on {TRACEFS}"] if mounted else []
    resource_limit()
    offsets = {} if options.get("without_btf") else kernel_offsets()
    wanted = Variant(
        None if options.get("without_sockops") else cgroup2_root(),
        netns_offsets(offsets),
        byte_offsets(offsets),
    )
    if not has_rings(options):
        notices.append("a kernel before 5.8 (no BPF ring buffer): " + NO_RING)
    if wanted.cgroup is None:
        notices += ["no root of cgroup v2: " + CAN_MISS, "no root of cgroup v2: " + NO_DATA]
    if wanted.netns is None:
        notices.append("no kernel BTF, or a kernel before 5.14: " + ONE_NAMESPACE)
    if wanted.byte_counts is None:
        notices.append("no kernel BTF: " + NO_TOUCHES)
    failures = []
    with Quiet() as quiet:
        bpf_class = import_bcc()
        for variant in variants(wanted):
            try:
                fds = compile_and_attach(bpf_class, bpf_dir, options, variant)
            except Exception as error:  # noqa: BLE001  # bcc raises bare ones
                failures.append(f"{variant}: {error}")
                continue
            notices += lost_abilities(wanted, variant, fds)
            able = {"netns": variant.netns is not None, "touches": variant.byte_counts is not None}
            answer = {"fds": list(fds), "notices": notices, "headers": variant.headers, **able}
            return {**answer, "detail": quiet.text()}, list(fds.values())
        check_permission()
        hint = "run `memscaler run --log-level debug` and report the output"
        if not os.path.isdir(DEBUGFS_TRACING):
            hint = "an older bcc finds tracefs in debugfs only: mount -t debugfs none /sys/kernel/debug"
        message = f"the kernel does not accept the BPF program ({failures[0]})".replace("\n", " ")
        raise LoadError("rejected", message, hint, quiet.text())


class Variant(NamedTuple):
    """What to attach and how: None for what is left out. netns, byte_counts: offsets in the kernel's structs."""

    cgroup: str | None
    netns: tuple[int, int] | None
    byte_counts: tuple[int, int] | None
    headers: str = "stubs"

    def __str__(self) -> str:
        hooks = "both hooks" if self.cgroup else "tracepoint"
        return f"{hooks}, {'' if self.netns else 'no '}namespaces, {self.headers}"


def variants(wanted: Variant) -> list[Variant]:
    """Best first: not losing an open matters more than telling namespaces apart."""
    fewer = [(wanted.cgroup, wanted.netns), (wanted.cgroup, None), (None, wanted.netns), (None, None)]
    return [
        Variant(cgroup, netns, wanted.byte_counts, headers)
        for cgroup, netns in dict.fromkeys(fewer)
        for headers in ("stubs", "kernel")
    ]


def lost_abilities(wanted: Variant, got: Variant, fds: dict[str, int]) -> list[str]:
    """What a lesser variant than hoped for costs, one line each."""
    lost = []
    if wanted.cgroup and not got.cgroup:
        lost.append("the sockops program was refused: " + CAN_MISS)
    if wanted.cgroup and "data_program" not in fds:
        lost.append("the filter of incoming packets was refused: " + NO_DATA)
    if wanted.netns and not got.netns:
        lost.append("this kernel tells sockops no namespace (before 5.15): " + ONE_NAMESPACE)
    if got.headers == "kernel":
        lost.append("compiled with the installed kernel headers: this bcc does not take the stub headers")
    return lost


def import_bcc() -> Any:
    """bcc.BPF, or the advice where to get it."""
    try:
        from bcc import BPF  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        hint = "apt install python3-bpfcc (Fedora, Arch: python3-bcc, python-bcc), or name a python that has it"
        message = f"{sys.executable} cannot import bcc ({error})"
        raise LoadError("no-bcc", message, hint + ": --loader-python PATH") from error
    return BPF


def kernel_version(release: str = "") -> tuple[int, int]:
    """(major, minor) of "6.1.0-56-amd64" or "6.18-rc2+"; of the running kernel."""
    major, minor, *_ = re.findall(r"\d+", release or platform.release())
    return int(major), int(minor)


def has_rings(options: dict[str, Any]) -> bool:
    """Whether the kernel can wake somebody up from a BPF program."""
    return kernel_version() >= RING_BUFFER and not options.get("without_ringbuf")


def check_kernel() -> None:
    """Raise if the kernel is too old or the machine unknown."""
    if kernel_version() < OLDEST_KERNEL:
        hint = "memscaler needs Linux 4.16 or newer (tracepoint " + TRACEPOINT + ")"
        raise LoadError("old-kernel", f"kernel {platform.release()} is too old", hint)
    if platform.machine() not in SYS_BPF:
        hint = "memscaler knows " + ", ".join(SYS_BPF)
        raise LoadError("machine", f"unknown machine type {platform.machine()}", hint)


def check_permission() -> None:
    """Raise if the capabilities explain the failure."""
    with open("/proc/self/status") as status:
        effective = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff"))
    has = {name for name, bit in CAPABILITIES.items() if effective >> bit & 1}
    if "CAP_SYS_ADMIN" in has:
        return
    if {"CAP_BPF", "CAP_PERFMON"} <= has:
        with open(PARANOID) as file:
            level = int(file.read())
        if level > STRICTEST_UPSTREAM:
            hint = "run as root, or: sysctl kernel.perf_event_paranoid=2"
            message = f"kernel.perf_event_paranoid is {level}: this kernel wants CAP_SYS_ADMIN for tracepoints"
            raise LoadError("no-permission", message, hint)
        return
    raise LoadError(
        "no-permission",
        "not permitted to load BPF programs",
        "run as root (sudo memscaler run ...), or grant CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_DAC_READ_SEARCH",
    )


def tracepoint_state(root: str = "/") -> str:
    """Whether its format can be read: "ready"; else "absent" (from tracefs), "denied" or "unmounted"."""
    folders = [os.path.join(root, path[1:]) for path in (TRACEFS, os.path.dirname(DEBUGFS_TRACING))]
    if any(os.path.exists(os.path.join(folder, FORMAT)) for folder in folders):
        return "ready"
    if any(os.path.isdir(os.path.join(folder, "events")) for folder in folders):
        return "absent"
    denied = os.path.isdir(folders[0]) and not os.access(folders[0], os.R_OK | os.X_OK)
    return "denied" if denied else "unmounted"


def ensure_tracefs() -> bool:
    """True if tracefs had to be mounted. bcc reads the tracepoint's format from it."""
    state = tracepoint_state()
    if state == "ready":
        return False
    if state == "absent":
        raise LoadError("no-tracepoint", f"this kernel has no tracepoint {TRACEPOINT}", TRACEPOINT_NEEDS)
    check_permission()
    if state == "denied":
        hint = "run as root, or grant CAP_DAC_READ_SEARCH"
        raise LoadError("no-permission", f"not permitted to read {TRACEFS}", hint)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"nodev", TRACEFS.encode(), b"tracefs", 0, None) != 0:
        why = os.strerror(ctypes.get_errno())
        hint = f"run: mount -t tracefs nodev {TRACEFS}"
        raise LoadError("no-tracefs", f"tracefs is not mounted and cannot be ({why})", hint)
    if tracepoint_state() != "ready":
        hint = "it needs CONFIG_INET and tracing support"
        raise LoadError("no-tracepoint", f"this kernel has no tracepoint {TRACEPOINT}", hint)
    return True


def resource_limit() -> None:
    """Before 5.11 maps count against RLIMIT_MEMLOCK."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def cgroup2_root(root: str = "/") -> str | None:
    """Where the root of cgroup v2 is mounted (unified or hybrid), or None."""
    with open(os.path.join(root, "proc/self/mounts")) as mounts:
        for line in mounts:
            _, path, kind = line.split()[:3]
            # Only the true root has no cgroup.events. Attached to the root that a container sees, the hook would miss
            # everybody else's connections, and nobody would know.
            if kind == "cgroup2" and not os.path.exists(os.path.join(root, path[1:], "cgroup.events")):
                return path
    return None


def compile_and_attach(bpf_class: Any, bpf_dir: str, options: dict[str, Any], variant: Variant) -> dict[str, int]:
    """One variant, or whatever exception bcc has for it. Returns name -> descriptor."""
    os.environ.pop("BCC_KERNEL_SOURCE", None)
    flags = [f"-DMAX_CONNECTIONS={int(options['max_connections'])}", f"-DMAX_WATCHES={int(options['max_watches'])}"]
    if variant.headers == "stubs":
        os.environ["BCC_KERNEL_SOURCE"] = os.path.join(bpf_dir, "include")
        flags.append(f"-DPAGE_SIZE={resource.getpagesize()}")
    if variant.cgroup:
        flags.append("-DWITH_SOCKOPS")
    if variant.netns:
        flags += [f"-DOFFSET_SKC_NET={variant.netns[0]}", f"-DOFFSET_NET_COOKIE={variant.netns[1]}"]
    if variant.byte_counts:
        flags += [f"-DOFFSET_BYTES_RECEIVED={variant.byte_counts[0]}", f"-DOFFSET_BYTES_SENT={variant.byte_counts[1]}"]
    if kernel_version() < COMPARE_AND_EXCHANGE:
        flags.append("-DWITHOUT_COMPARE_AND_EXCHANGE")
    if kernel_version() < PROBE_READ_KERNEL:
        flags.append("-DWITHOUT_PROBE_READ_KERNEL")
    if not has_rings(options):
        flags.append("-DWITHOUT_RINGBUF")
    bpf = bpf_class(src_file=os.path.join(bpf_dir, "connections.bpf.c").encode(), cflags=flags)
    maps = (*MAPS, *RINGS) if has_rings(options) else MAPS
    fds = {name: bpf[name.encode()].map_fd for name in maps}
    fds["tracepoint_program"] = bpf.funcs[b"tracepoint__sock__inet_sock_set_state"].fd
    fds["tracepoint"] = bpf.tracepoint_fds[TRACEPOINT.encode()]
    if variant.cgroup:
        program = bpf.load_func(b"passive_open", BPF_PROG_TYPE_SOCK_OPS)
        fds["cgroup"] = os.open(variant.cgroup, os.O_RDONLY | os.O_DIRECTORY)
        fds["sockops_program"] = program.fd
        fds["sockops"] = link(program.fd, fds["cgroup"], BPF_CGROUP_SOCK_OPS)
        with contextlib.suppress(Exception):  # lost_abilities tells what it costs
            arrived = bpf.load_func(b"data_arrived", BPF_PROG_TYPE_CGROUP_SKB).fd
            sent = bpf.load_func(b"data_sent", BPF_PROG_TYPE_CGROUP_SKB).fd
            fds |= {"data_program": arrived, "sent_program": sent}
    return fds


def link(program_fd: int, cgroup_fd: int, attach_type: int) -> int:
    """Attach by bpf_link: it goes when its last descriptor is closed, unlike the legacy attachment."""
    attributes = struct.pack("=IIII", program_fd, cgroup_fd, attach_type, 0).ljust(64, b"\0")
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.syscall(SYS_BPF[platform.machine()], BPF_LINK_CREATE, attributes, len(attributes))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "BPF_LINK_CREATE: " + os.strerror(ctypes.get_errno()))
    return fd


class Quiet:
    """Keeps what bcc and clang print (to descriptor 2, from C) as text instead of showing it."""

    def __enter__(self) -> Quiet:  # noqa: PYI034  # typing.Self is Python 3.11
        self._file = tempfile.TemporaryFile()
        self._saved = os.dup(2)
        os.dup2(self._file.fileno(), 2)
        return self

    def __exit__(self, *_: object) -> None:
        os.dup2(self._saved, 2)

    def text(self) -> str:
        """The end of it."""
        self._file.seek(0)
        return self._file.read().decode(errors="replace")[-4000:]


# ---- offsets from BTF ----------------------------------------------------------------------------------------------


def kernel_offsets(path: str = BTF) -> dict[tuple[bytes, bytes], int]:
    """(struct, member) -> offset in bytes; empty without (usable) BTF.

    Format: Documentation/bpf/btf.rst in the kernel's source.
    """
    try:
        with open(path, "rb") as file:
            structs = btf_structs(file.read(), {b"sock_common", b"net", b"tcp_sock"})
    except (OSError, ValueError, struct.error, IndexError):
        return {}
    return {(name, member): offset for name, members in structs.items() for member, offset in members.items()}


def byte_offsets(offsets: dict[tuple[bytes, bytes], int]) -> tuple[int, int] | None:
    """(offset of tcp_sock.bytes_received, of bytes_sent); the second since Linux 4.19."""
    received, sent = offsets.get((b"tcp_sock", b"bytes_received")), offsets.get((b"tcp_sock", b"bytes_sent"))
    return None if received is None or sent is None else (received, sent)


def netns_offsets(offsets: dict[tuple[bytes, bytes], int]) -> tuple[int, int] | None:
    """(offset of sock.__sk_common.skc_net.net, of net.net_cookie), if user space can ask for that cookie too."""
    skc_net, cookie = offsets.get((b"sock_common", b"skc_net")), offsets.get((b"net", b"net_cookie"))
    if skc_net is None or cookie is None:
        return None
    try:
        with socket.socket() as sock:
            sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)  # Linux 5.14
    except OSError:
        return None
    return skc_net, cookie


def btf_structs(raw: bytes, wanted: set[bytes]) -> dict[bytes, dict[bytes, int]]:
    """Byte offsets of the members of the wanted structs: name -> {member -> offset}."""
    magic, _, _, header_len, type_off, type_len, str_off, _ = struct.unpack_from("=HBBIIIII", raw)
    if magic != BTF_MAGIC:
        raise ValueError("not BTF of this byte order")
    strings, position, end = header_len + str_off, header_len + type_off, header_len + type_off + type_len
    found: dict[bytes, dict[bytes, int]] = {}
    while position < end:
        name_off, info, _ = struct.unpack_from("=III", raw, position)
        kind, count, bitfields = info >> 24 & 0x1F, info & 0xFFFF, bool(info >> 31)
        position += 12
        if kind == BTF_STRUCT and count:
            name = raw[strings + name_off : raw.index(b"\0", strings + name_off)]
            if name in wanted:
                found[name] = btf_members(raw, strings, position, count, bitfields=bitfields)
                if len(found) == len(wanted):
                    break
        position += BTF_FIXED.get(kind, 0) + BTF_PER_MEMBER.get(kind, 0) * count
    return found


def btf_members(raw: bytes, strings: int, position: int, count: int, *, bitfields: bool) -> dict[bytes, int]:
    """Name -> byte offset, of the members listed at `position`."""
    members: dict[bytes, int] = {}
    for index in range(count):
        name_off, _, offset = struct.unpack_from("=III", raw, position + 12 * index)
        bits = offset & 0xFFFFFF if bitfields else offset
        members[raw[strings + name_off : raw.index(b"\0", strings + name_off)]] = bits // 8
    return members


if __name__ == "__main__":
    main(sys.argv[1:])
