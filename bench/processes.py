"""What processes cost, by the kernel's own accounts in /proc: CPU time, context switches, resident memory."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import NamedTuple


class Usage(NamedTuple):
    """Of all threads together, since they began."""

    cpu_ns: int
    switches: int  # voluntary ones: each is a sleep, so each was followed by a wake-up

    def since(self, before: Usage) -> Usage:
        """What came on top."""
        return Usage(self.cpu_ns - before.cpu_ns, self.switches - before.switches)


def usage(*pids: int) -> Usage:
    """Of these processes' living threads. CPU time is the scheduler's, in ns, user and system together."""
    cpu_ns = switches = 0
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                cpu_ns += int((thread / "schedstat").read_text().split()[0])
                switches += _field(thread / "status", "voluntary_ctxt_switches")
    return Usage(cpu_ns, switches)


def resident_mb(pid: int) -> float:
    """VmRSS in 10^6 bytes."""
    return _field(Path(f"/proc/{pid}/status"), "VmRSS") * 1024 / 1e6


def _field(status: Path, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+)", status.read_text(), re.MULTILINE)
    assert found, f"no {name} in {status}"
    return int(found[1])
