"""Whether host memory has room for what leaves a GPU: that of the machine, and that of the server's own cgroup."""

from __future__ import annotations

import contextlib
from pathlib import Path

from memscaler.kernel.processes import parse_cgroups

MARGIN_BYTES = 1 << 30
MARGIN_SHARE = 0.05


class Room:
    """root: where the system is."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def refusal(self, needed_bytes: int, pid: int, server: str) -> str:
        """Why so much of this process's has no room, a sentence; else "" is the answer."""
        wanted = needed_bytes + max(MARGIN_BYTES, int(needed_bytes * MARGIN_SHARE))
        free = self.available_bytes()
        if free is None:
            return "how much memory is free cannot be told"
        if free < wanted:
            return f"{server} needs {_gib(wanted)} of free memory for what is on its GPU, and {_gib(free)} are free"
        limited = self._limit_bytes(pid)
        if limited is not None and limited < wanted:
            return f"{server} needs {_gib(wanted)} for what is on its GPU, and its cgroup has {_gib(limited)} left"
        return ""

    def available_bytes(self) -> int | None:
        """MemAvailable of proc(5); swap does not count."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            for line in (self._root / "proc/meminfo").read_text().splitlines():
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        return None

    def _limit_bytes(self, pid: int) -> int | None:
        """What the cgroups (version 2) of this process leave it; None: they do not limit it."""
        try:
            paths = parse_cgroups(Path(f"/proc/{pid}/cgroup").read_text())
        except OSError:
            return None
        left: list[int] = []
        for path in paths[:1]:
            folder = self._root / "sys/fs/cgroup" / path.lstrip("/")
            while folder != self._root / "sys/fs/cgroup" and folder != folder.parent:
                with contextlib.suppress(OSError, ValueError):  # "max" is no number
                    most = int((folder / "memory.max").read_text())
                    left.append(max(0, most - int((folder / "memory.current").read_text())))
                folder = folder.parent
        return min(left, default=None)


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"
