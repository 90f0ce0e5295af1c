"""Processes that stand still (SIGSTOP, a debugger), and who holds a lock: nobody waits for those for ever."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from memscaler.kernel.processes import PROC

_STAT_BYTES = 4096
_STOPPED = frozenset("Tt")  # proc(5), field 3 of stat: by a signal, by a debugger


def stands_still(pid: int, proc: Path = PROC) -> bool:
    """Whether it is stopped now. No, if it is gone."""
    return state(pid, proc) in _STOPPED


def state(pid: int, proc: Path = PROC) -> str:
    """proc(5), field 3 of stat, of its first thread: "R", "T", "Z"; "" if it is gone. A client may wait for it."""
    try:
        fd = os.open(f"{proc}/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, _STAT_BYTES).rpartition(b")")[2].split(None, 1)[0].decode("ascii", "replace")
    except (OSError, IndexError):
        return ""
    finally:
        os.close(fd)


def is_stop_pending(pid: int, proc: Path = PROC) -> bool:
    """Whether SIGSTOP was sent to it, and waits: who is frozen by its cgroup stops when that lets it go on."""
    try:
        lines = (proc / str(pid) / "status").read_text(errors="replace").splitlines()
        pending = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
    except (OSError, IndexError, ValueError):
        return False
    return any(each >> (signal.SIGSTOP - 1) & 1 for each in pending)


def holder(lock: Path) -> int | None:
    """Who has locked this file with flock(2), as the kernel says; None if nobody has, or nobody that can be seen."""
    try:
        found = lock.stat()
        lines = (PROC / "locks").read_text().splitlines()
    except OSError:
        return None
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    for line in lines:
        words = line.split()  # 1: FLOCK  ADVISORY  WRITE 1234 00:1a:5678 0 EOF; "->" is before those who wait
        if words[1:2] == ["FLOCK"] and words[5:6] == [place] and int(words[4]) > 0:
            return int(words[4])
    return None
