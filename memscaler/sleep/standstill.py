"""Processes that stand still (SIGSTOP, a debugger), and who holds a lock: nobody waits for those for ever."""

from __future__ import annotations

import os
from pathlib import Path

PROC = Path("/proc")
_STOPPED = frozenset("Tt")  # proc(5), field 3 of stat: by a signal, by a debugger


def stands_still(pid: int) -> bool:
    """Whether it is stopped now. No, if it is gone."""
    try:
        return (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[0] in _STOPPED
    except (OSError, IndexError):
        return False


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
