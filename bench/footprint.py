"""What the daemon takes while it has nothing to do: memory after use, CPU time and wake-ups while parked."""

from __future__ import annotations

import socket
import time

from bench.figures import Figure
from bench.governors import governor_on, park_and_wake, wait_parked
from bench.processes import resident_mb, usage
from tests.governor import Governor, listener

RESIDENT_MB = 60.0
CPU_PERCENT = 0.05
SETTLE_S = 4.0  # a state's beginning is followed by one more sample 2 s later


def bench(*, quick: bool) -> list[Figure]:
    """Memory after each kind of use, then the quiet time."""
    scrapes, parks, quiet_s = (20, 20, 10) if quick else (100, 200, 60)
    with listener() as server, governor_on(server, "a40", "--metrics", "127.0.0.1:0") as governor:
        return [*memory(governor, server, scrapes, parks), *quiet(governor, quiet_s)]


def memory(governor: Governor, server: socket.socket, scrapes: int, parks: int) -> list[Figure]:
    """Resident memory of daemon and guardian, and the daemon's growth over the second half of the parks."""
    wait_parked(governor)
    found = [Figure("daemon: resident after start", resident_mb(governor.pid), "MB", RESIDENT_MB)]
    for _ in range(scrapes):
        governor.metrics()
    found.append(Figure(f"daemon: resident after {scrapes} scrapes", resident_mb(governor.pid), "MB", RESIDENT_MB))
    for _ in range(parks // 2):
        park_and_wake(governor, server)
    half_mb = resident_mb(governor.pid)
    for _ in range(parks - parks // 2):
        park_and_wake(governor, server)
    full_mb = resident_mb(governor.pid)
    return [
        *found,
        Figure(f"daemon: resident after {parks} parks", full_mb, "MB", RESIDENT_MB),
        Figure(f"daemon: growth over the last {parks - parks // 2} parks", max(0.0, full_mb - half_mb), "MB", 0.5),
        Figure("guardian: resident", resident_mb(governor.guardian_pid), "MB"),
    ]


def quiet(governor: Governor, seconds: float) -> list[Figure]:
    """CPU time (user and system) and wake-ups while everything is parked and nobody comes."""
    wait_parked(governor)
    time.sleep(SETTLE_S)
    pids = {"daemon": governor.pid, "guardian": governor.guardian_pid}
    before = {name: usage(pid) for name, pid in pids.items()}
    started_ns = time.monotonic_ns()
    time.sleep(seconds)
    spent_ns = time.monotonic_ns() - started_ns
    after = {name: usage(pid).since(before[name]) for name, pid in pids.items()}
    share = sum(each.cpu_ns for each in after.values()) / spent_ns * 100
    return [
        Figure(f"CPU time over {seconds:.0f} s parked, both processes", share, "%", CPU_PERCENT),
        Figure(f"daemon: wake-ups of threads over {seconds:.0f} s parked", after["daemon"].switches),
        Figure(f"guardian: wake-ups over {seconds:.0f} s parked", after["guardian"].switches, limit=0),
    ]
