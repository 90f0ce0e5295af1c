"""Freezing without GVM: by cgroup v2 (cgroup.freeze), else by SIGSTOP; and cpu.weight, which is a cgroup's too.

Both freezes are the CPU's: what a process has handed to the GPU already runs to its end there, and a process inside of
a driver's call stands still only when that returns. A frozen cgroup holds all of its processes, those of the cgroups
below it included, so it is frozen only if all of them may be.
"""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self

from memscaler.core.gpuctl import Knob
from memscaler.gvm.errors import Gone, NotAllowed, Refused, Unsupported
from memscaler.gvm.processes import is_alive
from memscaler.kernel.processes import PROC

FILES = {Knob.COMPUTE_FREEZE: "cgroup.freeze", Knob.CPU_WEIGHT: "cpu.weight"}

_OCTAL = re.compile(r"\\([0-7]{3})")
_READ_BYTES = 64
_NAMED = 3  # in a sentence
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


@dataclass(frozen=True, slots=True)
class Cgroups:
    """The mount of cgroup v2."""

    mount: Path

    @classmethod
    def find(cls, proc: Path = PROC) -> Cgroups | None:
        """None if the whole of version 2 is mounted nowhere that we see."""
        try:
            text = (proc / "self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return None
        mount = mounted(text)
        return None if mount is None else cls(Path(mount))

    def at(self, path: str) -> Path:
        """The directory of a path as /proc/PID/cgroup has it."""
        return self.mount / path.lstrip("/")

    def members(self, path: str) -> frozenset[int] | None:
        """Who is in there and below; None if that cannot be told (a threaded cgroup, or it is gone)."""
        found: set[int] = set()

        def cannot(error: OSError) -> NoReturn:
            raise error

        try:
            for folder, _, _ in os.walk(self.at(path), onerror=cannot):
                found.update(int(word) for word in Path(folder, "cgroup.procs").read_text(encoding="ascii").split())
        except (OSError, ValueError):
            return None
        return frozenset(found)

    def why_not(self, path: str, pids: Collection[int], may: Callable[[int], bool] | None = None) -> str:
        """Why this cgroup is not for these processes alone, a sentence; "" if it is. may: who else may be in it."""
        if path in ("", "/"):
            return "it is in no cgroup of its own"
        members = self.members(path)
        if not members:
            return f"nobody can tell who is in its cgroup {path}"
        others = [pid for pid in sorted(members) if pid not in pids and not (may is not None and may(pid))]
        if others:
            who = ", ".join(map(str, others[:_NAMED])) + ", ..." * (len(others) > _NAMED)
            return f"others are in its cgroup {path} (pid {who})"
        return ""


def mounted(mountinfo: str) -> str | None:
    """Where version 2 is, its root and not a part of it: proc(5), /proc/PID/mountinfo."""
    for line in mountinfo.splitlines():
        before, dash, after = line.partition(" - ")
        fields = before.split(" ")
        if dash and after.split(" ")[0] == "cgroup2" and fields[3:4] == ["/"]:
            return _OCTAL.sub(lambda found: chr(int(found[1], 8)), fields[4])
    return None


class CgroupFile:
    """One file of one cgroup, kept open: the cgroup of that inode, not a later one of the same name."""

    def __init__(self, path: str, inode: int, knob: Knob, flags: int = os.O_RDONLY) -> None:
        """Raise KnobError. inode 0: whichever is there."""
        self.name = f"{path}/{FILES[knob]}"
        try:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            self._raise(error)
        try:
            self.inode = os.fstat(folder).st_ino
            if inode not in (0, self.inode):
                raise Gone(f"cgroup {path} is another one now")
            self._fd = os.open(FILES[knob], flags | os.O_CLOEXEC, dir_fd=folder)
        except FileNotFoundError as error:
            why = "it is the root" if knob is Knob.COMPUTE_FREEZE else "the cpu controller is not enabled for it"
            raise Unsupported(f"cgroup {path} has no {FILES[knob]}: {why}") from error
        except OSError as error:
            self._raise(error)
        finally:
            os.close(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """What was written stays."""
        os.close(self._fd)

    def read(self) -> int:
        """Raise KnobError."""
        try:
            return int(os.pread(self._fd, _READ_BYTES, 0))
        except OSError as error:
            self._raise(error)
        except ValueError as error:
            raise Refused(f"{self.name} holds no number") from error

    def write(self, value: int) -> None:
        """Raise KnobError."""
        try:
            os.pwrite(self._fd, b"%d" % value, 0)
        except OSError as error:
            self._raise(error)

    def _raise(self, error: OSError) -> NoReturn:
        code = error.errno or 0
        if code in (errno.ENOENT, errno.ENODEV, errno.ENOTDIR):
            raise Gone(f"{self.name} is there no more") from error
        if code in _DENIED:
            raise NotAllowed(f"{self.name}: {error.strerror}", code=code) from error
        raise Refused(f"{self.name}: {error.strerror}", code=code) from error


class Signals:
    """To one process, by a descriptor that no later process of the same pid has."""

    def __init__(self, pid: int, started: int, proc: Path = PROC) -> None:
        """Raise KnobError."""
        self._pid = pid
        try:
            self._fd = os.pidfd_open(pid)
        except ProcessLookupError as error:
            raise Gone(f"process {pid} has ended") from error
        except OSError as error:
            raise Refused(f"process {pid}: {error.strerror}", code=error.errno or 0) from error
        if not is_alive(pid, started, proc):  # after it is open: whom it means does not change any more
            self.close()
            raise Gone(f"process {pid} has ended")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """It stays as it is."""
        os.close(self._fd)

    def freeze(self, value: int) -> None:
        """SIGSTOP, or SIGCONT for 0. Raise KnobError."""
        self._send(signal.SIGSTOP if value else signal.SIGCONT)

    def check(self) -> None:
        """Raise Gone if it has ended."""
        try:
            self._send(0)
        except NotAllowed:
            return

    def _send(self, number: int) -> None:
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError as error:
            raise Gone(f"process {self._pid} has ended") from error
        except PermissionError as error:
            message = f"process {self._pid} belongs to somebody else: it takes no signal"
            raise NotAllowed(message, code=error.errno or 0) from error
        except OSError as error:
            raise Refused(f"process {self._pid}: {error.strerror}", code=error.errno or 0) from error
