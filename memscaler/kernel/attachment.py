"""Runs the loader and keeps what it hands over: the kernel side lives exactly as long as these descriptors."""

from __future__ import annotations

import array
import contextlib
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from memscaler.core.errors import KernelUnavailable, MemscalerError, PermissionMissing
from memscaler.kernel.bpf import is_attached, link_create, program_info
from memscaler.kernel.counters import MAX_WATCHES
from memscaler.kernel.loader import BPF_CGROUP_SOCK_OPS

DISTRIBUTION_PYTHON = "/usr/bin/python3"
LOADER = Path(__file__).with_name("loader.py")
CLEAN = {"PATH": os.defpath, "LANG": "C.UTF-8"}  # the loader's environment
LOAD_TIMEOUT_S = 60.0  # 0.2 s here; 4 s in an emulated machine
_MESSAGE_BYTES = 64 * 1024
_MAX_FDS = 32


@dataclass(slots=True)
class Attachment:
    """Descriptors of maps, programs and attachments; close() detaches everything."""

    fds: dict[str, int]
    notices: tuple[str, ...]
    headers: str
    python: str
    tells_netns: bool
    tells_touches: bool
    _open: bool = field(default=True)
    _lost: bool = field(default=False)

    @property
    def sees_every_open(self) -> bool:
        """True if the sockops hook is attached, so that no open can be lost."""
        return "sockops" in self.fds

    @property
    def rings(self) -> bool:
        """True if the kernel can wake us (Linux 5.8); else the counters have to be polled."""
        return "doorbell" in self.fds

    @property
    def hears_data(self) -> bool:
        """True if the first byte on a silent connection can ring."""
        return "data_program" in self.fds

    def recursion_misses(self) -> dict[str, int]:
        """Per hook: events that the kernel skipped because another tracing program was running on that CPU."""
        hooks = {"tracepoint": "tracepoint_program", "sockops": "sockops_program", "data": "data_program"}
        return {
            hook: program_info(self.fds[name])["recursion_misses"] for hook, name in hooks.items() if name in self.fds
        }

    def mend(self) -> str | None:
        """Attach the sockops hook again if somebody has detached it. None: nobody has.

        The answer is why that failed, "" if it did not.
        """
        link = self.fds.get("sockops", -1)
        if link >= 0:
            if is_attached(link):
                return None
            os.close(self.fds.pop("sockops"))
            self._lost = True
        if not self._lost:
            return None
        try:
            self.fds["sockops"] = link_create(self.fds["sockops_program"], self.fds["cgroup"], BPF_CGROUP_SOCK_OPS)
        except OSError as error:
            return str(error)
        self._lost = False
        return ""

    def close(self) -> None:
        """Detach. Idempotent."""
        if self._open:
            self._open = False
            for fd in self.fds.values():
                os.close(fd)


def load(
    bpf_dir: Path,
    *,
    loader_python: str = "",
    max_connections: int = 65536,
    without: Sequence[str] = (),
) -> Attachment:
    """Compile and attach, in a child that is gone when this returns.

    loader_python: the interpreter that has bcc; "" tries this one, then the distribution's.
    without: "sockops", "btf" or "ringbuf", to run as on a machine that lacks them.
    Raise PermissionMissing (exit 4) or KernelUnavailable (exit 69), each with what to do.
    """
    _check_clock()
    options = {"max_connections": max_connections, "max_watches": MAX_WATCHES}
    options |= {f"without_{name}": True for name in without}
    failure: MemscalerError = KernelUnavailable("no python to run the BPF loader with")
    for python in pythons(loader_python):
        try:
            answer, fds = _run(python, bpf_dir, options)
        except OSError as error:
            hint = "name a python: --loader-python PATH"
            failure = KernelUnavailable(f"cannot run {python}: {error.strerror}", hint=hint)
            continue
        if "error" not in answer:
            return Attachment(
                dict(zip(answer["fds"], fds, strict=True)),
                tuple(answer["notices"]),
                answer["headers"],
                python,
                bool(answer["netns"]),
                bool(answer["touches"]),
            )
        failure = _error(answer)
        if answer["error"] != "no-bcc":
            break
    raise failure


def pythons(loader_python: str = "") -> tuple[str, ...]:
    """The interpreters that may have bcc, in the order in which they are tried."""
    return (loader_python,) if loader_python else tuple(dict.fromkeys([sys.executable, DISTRIBUTION_PYTHON]))


def bcc_version(python: str, timeout_s: float) -> str:
    """Of the bcc that this interpreter imports when it runs the loader. Raise KernelUnavailable with the reason."""
    command = [python, "-I", "-c", "import bcc; print(bcc.__version__)"]
    try:
        tried = subprocess.run(  # noqa: S603  # an interpreter that the operator chose
            command, capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL, env=CLEAN
        )
    except subprocess.TimeoutExpired as error:
        raise KernelUnavailable(f"{python} does not import bcc within {timeout_s:.0f} s") from error
    except OSError as error:
        raise KernelUnavailable(f"cannot run {python}: {error.strerror}") from error
    if tried.returncode:
        last = (tried.stderr.strip().splitlines() or [f"status {tried.returncode}"])[-1]
        raise KernelUnavailable(f"{python} cannot import bcc ({last})")
    return tried.stdout.strip()


def _check_clock() -> None:
    """In a time namespace our CLOCK_MONOTONIC is not that of bpf_ktime_get_ns (time_namespaces(7), Linux 5.6)."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/timens_offsets").read_text().splitlines():
            clock, seconds, nanoseconds = line.split()
            if clock == "monotonic" and (int(seconds) or int(nanoseconds)):
                hint = "start memscaler outside of it"
                raise KernelUnavailable(f"the clock of this time namespace is shifted by {seconds} s", hint=hint)


def _error(answer: Mapping[str, str]) -> MemscalerError:
    kind = PermissionMissing if answer["error"] == "no-permission" else KernelUnavailable
    return kind(answer["message"], hint=answer["hint"])


def _run(python: str, bpf_dir: Path, options: Mapping[str, object]) -> tuple[dict[str, str], list[int]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        command = [python, "-I", str(LOADER), str(theirs.fileno()), str(bpf_dir), json.dumps(options)]
        child = subprocess.Popen(  # noqa: S603  # our own script, an interpreter that the operator chose
            command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=CLEAN
        )
        theirs.close()
        try:
            return _receive(ours, child)
        finally:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            child.wait()


def _receive(channel: socket.socket, child: subprocess.Popen[bytes]) -> tuple[dict[str, str], list[int]]:
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    if not poll.poll(LOAD_TIMEOUT_S * 1000):
        raise KernelUnavailable(f"the BPF loader did not answer within {LOAD_TIMEOUT_S:.0f} s")
    space = socket.CMSG_SPACE(_MAX_FDS * 4)
    message, ancillary, _, _ = channel.recvmsg(_MESSAGE_BYTES, space, socket.MSG_CMSG_CLOEXEC)
    if not message:
        status = child.wait()
        raise KernelUnavailable(
            f"the BPF loader died (status {status})", hint="start memscaler again; see the log above"
        )
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    answer = json.loads(message)
    if len(fds) != len(answer.get("fds", ())):  # the kernel drops what does not fit under the limit
        for fd in fds:
            os.close(fd)
        hint = "raise the limit: ulimit -n 1024"
        raise KernelUnavailable("too few file descriptors are allowed for the BPF maps", hint=hint)
    return answer, list(fds)
