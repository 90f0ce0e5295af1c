"""From a client's connect() returning to the driver call that wakes the GPU, beside the floor of this machine.

The floor is a process that waits on the same doorbell and does nothing but read the clock. Both are measured in turns
in the same run, because these machines are shared. Client, daemon and floor are different processes.

    python -m bench.wake_latency [WAKES]          (as root; 500 by default)
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import select
import socket
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from memscaler import resources
from memscaler.kernel import attachment
from memscaler.kernel.doorbell import Doorbell
from memscaler.kernel.ledger import Ledger, own_namespace
from tests.governor import Governor, connect, eventually, governing, listener, port_of

RESET = "nvmlDeviceResetMemoryLockedClocks"
SETTLE_S = 0.02
ROUND = 50  # wakes measured in a row, before it is the other's turn


def floor_process(port: int, pipe: multiprocessing.connection.Connection) -> None:
    """Arms, waits, reads the clock, says it."""
    attached = attachment.load(resources.bpf_dir())
    ledger = Ledger(attached)
    watch = ledger.watch(port, own_namespace())
    doorbell = Doorbell(attached.fds["doorbell"])
    epoll = select.epoll()
    epoll.register(doorbell.fd, select.EPOLLIN)
    pipe.send("ready")
    while pipe.recv() == "arm":
        ledger.counters.arm(watch.slot)
        pipe.send("armed")
        epoll.poll()
        woke_ns = time.monotonic_ns()
        doorbell.silence()
        pipe.send((woke_ns, ledger.counters.read(watch.slot).rang_ns))


def measure_floor(port: int, server: socket.socket, pipe: multiprocessing.connection.Connection, wakes: int) -> list[int]:
    """Nanoseconds from connect() returning to the waiting process running."""
    latencies_ns = []
    for _ in range(wakes):
        pipe.send("arm")
        pipe.recv()
        time.sleep(0.05)  # as idle as the daemon is when it is woken
        with connect(server):
            returned_ns = time.monotonic_ns()
            time.sleep(SETTLE_S)
            woke_ns, _ = pipe.recv()
            latencies_ns.append(woke_ns - returned_ns)
        server.accept()[0].close()
    return latencies_ns


def measure_governor(governor: Governor, server: socket.socket, wakes: int) -> list[int]:
    """Nanoseconds from connect() returning to the entry of the driver call."""
    driver = governor.driver
    board = driver.boards[0]
    latencies_ns = []
    for _ in range(wakes):
        eventually(lambda: board.memory_lock is not None, within_s=10, what="park")
        time.sleep(0.05)
        mark = driver.log_mark()
        with connect(server):
            returned_ns = time.monotonic_ns()
            time.sleep(SETTLE_S)  # this process would take a CPU that the daemon needs
            calls = eventually(partial(driver.call_log, [RESET], after=mark), within_s=5, what="wake")
            latencies_ns.append(calls[0].entry_ns - returned_ns)
        server.accept()[0].close()
    return latencies_ns


def show(name: str, values_ns: list[int]) -> float:
    """One line; returns the median in us."""
    values_us = sorted(value / 1000 for value in values_ns)
    median = statistics.median(values_us)
    p99 = values_us[int(len(values_us) * 0.99)]
    print(f"{name:28} n={len(values_us):4}  median {median:7.1f} us   p99 {p99:7.1f} us   max {values_us[-1]:7.1f} us")
    return median


def main() -> int:
    """Measure in turns, print, exit 1 if the promise (median 100 us, p99 1 ms) is not kept."""
    wakes = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    ours, theirs = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory() as folder, listener() as server, listener() as floor_server:
        floor = multiprocessing.get_context("spawn").Process(target=floor_process, args=(port_of(floor_server), theirs))
        floor.start()
        ours.recv()
        config = Path(folder) / "config.toml"
        config.write_text('min_dwell = "0s"\n')
        arguments = ["--port", f"{port_of(server)}:gpu0", "--idle-after", "100ms", "--config", str(config)]
        governed_ns: list[int] = []
        floor_ns: list[int] = []
        with governing(Path(folder) / "run", "a40", *arguments) as governor:
            while len(governed_ns) < wakes:
                count = min(ROUND, wakes - len(governed_ns))
                governed_ns += measure_governor(governor, server, count)
                floor_ns += measure_floor(port_of(floor_server), floor_server, ours, count)
        ours.send("stop")
        floor.join()
    floor_us = show("floor: reads the clock", floor_ns)
    governor_us = show("memscaler: driver call", governed_ns)
    p99_us = sorted(governed_ns)[int(len(governed_ns) * 0.99)] / 1000
    print(f"memscaler's median is {governor_us - floor_us:.1f} us above the floor's")
    return 0 if governor_us <= 100 and p99_us <= 1000 else 1


if __name__ == "__main__":
    sys.exit(main())
