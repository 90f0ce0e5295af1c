"""From a client's connect() returning to the driver call that wakes the GPU, beside the floor of this machine.

The floor is a process that waits on the same doorbell and does nothing but read the clock. Both are measured in turns
in the same run, because these machines are shared. Client, daemon and floor are different processes. Two views:
 - from connect() returning in the client (what a user feels) to the entry of the driver call (the simulator's call
   log), or to the floor's first instruction;
 - from the kernel's own timestamp of the connection to the same, and to the return of the driver call: what the
   metric memscaler_reset_latency_seconds and the log event gpu.woken tell.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import select
import socket
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from bench.figures import Figure, percentile
from bench.governors import governor_on
from memscaler import resources
from memscaler.kernel import attachment
from memscaler.kernel.doorbell import Doorbell
from memscaler.kernel.ledger import Ledger, own_namespace
from tests.governor import Governor, connect, eventually, listener, port_of

RESET = "nvmlDeviceResetMemoryLockedClocks"
SETTLE_S = 0.02  # the client sleeps: on two cores it would take one that the daemon needs
IDLE_S = 0.05  # as idle as a daemon is when it is woken
ROUND = 50  # wakes measured in a row, before it is the other's turn
MEDIAN_US, P99_US = 100.0, 1000.0
ENOUGH_FOR_P99 = 500


@dataclass
class Latencies:
    """Nanoseconds, of every wake."""

    from_connect: list[int] = field(default_factory=list)
    from_kernel: list[int] = field(default_factory=list)


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


@contextlib.contextmanager
def floor_on(server: socket.socket) -> Iterator[multiprocessing.connection.Connection]:
    """A floor process that waits for connections to `server`."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=floor_process, args=(port_of(server), theirs))
    process.start()
    theirs.close()  # so that its death ends our waiting
    try:
        ours.recv()
        yield ours
        ours.send("stop")
        process.join()
    finally:
        process.kill()


def measure_floor(
    pipe: multiprocessing.connection.Connection, server: socket.socket, wakes: int, found: Latencies
) -> None:
    """To the waiting process running."""
    for _ in range(wakes):
        pipe.send("arm")
        pipe.recv()
        time.sleep(IDLE_S)
        with connect(server):
            returned_ns = time.monotonic_ns()
            time.sleep(SETTLE_S)
            woke_ns, rang_ns = pipe.recv()
        found.from_connect.append(woke_ns - returned_ns)
        found.from_kernel.append(woke_ns - rang_ns)
        server.accept()[0].close()


def measure_governor(governor: Governor, server: socket.socket, wakes: int, found: Latencies) -> None:
    """To the entry of the driver call."""
    driver = governor.driver
    board = driver.boards[0]
    for _ in range(wakes):
        eventually(lambda: board.memory_lock is not None, within_s=10, what="park")
        time.sleep(IDLE_S)
        mark = driver.log_mark()
        with connect(server):
            returned_ns = time.monotonic_ns()
            time.sleep(SETTLE_S)
            calls = eventually(partial(driver.call_log, [RESET], after=mark), within_s=5, what="wake")
        found.from_connect.append(calls[0].entry_ns - returned_ns)
        server.accept()[0].close()


def reported_ns(governor: Governor) -> tuple[list[int], list[int]]:
    """What the governor itself says: kernel timestamp to entry (to a us), and to return of the driver call."""
    told = [event for event in governor.events("gpu.woken") if "latency_us" in event]
    entered = [(event["latency_us"] - event["driver_call_us"]) * 1000 for event in told]
    return entered, [event["latency_us"] * 1000 for event in told]


def figures(name: str, values_ns: list[int], floor_ns: list[int] | None = None) -> list[Figure]:
    """Median, 99th percentile and maximum in us, beside the floor's."""
    values = [value / 1000 for value in values_ns]
    floors = [value / 1000 for value in floor_ns or []]
    return [
        Figure(
            f"{name}: median of {len(values)}",
            statistics.median(values),
            "us",
            baseline=statistics.median(floors) if floors else None,
        ),
        Figure(f"{name}: p99", percentile(values, 99), "us", baseline=percentile(floors, 99) if floors else None),
        Figure(f"{name}: maximum", max(values), "us", baseline=max(floors) if floors else None),
    ]


def promised(name: str, values_ns: list[int], floor_ns: list[int]) -> list[Figure]:
    """The same with the promise. floor_ns: from the kernel's timestamp, because connect() may return after the wake."""
    floors = [value / 1000 for value in floor_ns]
    median, p99, maximum = figures(name, values_ns)
    p99_limit = P99_US if len(values_ns) >= ENOUGH_FOR_P99 else None
    return [
        dataclasses.replace(median, limit=MEDIAN_US, machine=statistics.median(floors)),
        dataclasses.replace(p99, limit=p99_limit, machine=percentile(floors, 99)),
        maximum,
    ]


def bench(*, quick: bool) -> list[Figure]:
    """In turns: so many wakes of the governor's, so many of the floor's."""
    wakes = 60 if quick else 500
    floor, governed = Latencies(), Latencies()
    with contextlib.ExitStack() as kept:
        server, floor_server = kept.enter_context(listener()), kept.enter_context(listener())
        pipe = kept.enter_context(floor_on(floor_server))
        governor = kept.enter_context(governor_on(server, "a40"))
        while (done := len(governed.from_connect)) < wakes:
            count = min(ROUND, wakes - done)
            measure_governor(governor, server, count, governed)
            measure_floor(pipe, floor_server, count, floor)
        governed.from_kernel, metric_ns = reported_ns(governor)
    return [
        *figures("floor: connect() returns -> waiter runs", floor.from_connect),
        *promised("connect() returns -> driver call", governed.from_connect, floor.from_kernel),
        *figures("floor: kernel's timestamp -> waiter runs", floor.from_kernel),
        *figures("kernel's timestamp -> driver call", governed.from_kernel, floor.from_kernel),
        *figures("kernel's timestamp -> driver call returned (the metric)", metric_ns),
    ]
