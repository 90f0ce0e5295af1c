"""From a client's connect() or send() returning to the driver call that wakes the GPU, beside this machine's floor.

Two ways to wake one: a new connection, and (with the default options) a request on a pooled connection that was open
and silent when the GPU parked. The floor of each is a process that waits on the same doorbell, rung by the same hook,
and does nothing but read the clock. Governor and floor are measured in turns in the same run, because these machines
are shared. Client, daemon and floor are different processes. Two views:
 - from connect() or send() returning in the client (what a user feels) to the entry of the driver call (the simulator's
   call log), or to the floor's first instruction;
 - from the kernel's own timestamp of the event to the same, and to the return of the driver call: what the metric
   memscaler_reset_latency_seconds and the log event gpu.woken tell.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import select
import socket
import statistics
import struct
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

SO_COOKIE = 57
RESET = "nvmlDeviceResetMemoryLockedClocks"
SETTLE_S = 0.02  # the client sleeps: on two cores it would take one that the daemon needs
IDLE_S = 0.05  # as idle as a daemon is when it is woken
ROUND = 50  # wakes measured in a row, before it is the other's turn
# A GPU that a request has woken is looked at every 2 s: several governors, each with a GPU, take turns meanwhile.
POOLS = 4
REQUEST = bytes(2048)  # more than a touch, after which a GPU may park later than after work
MEDIAN_US, P99_US = 100.0, 1000.0
ENOUGH_FOR_P99 = 500


@dataclass
class Latencies:
    """Nanoseconds, of every wake."""

    from_client: list[int] = field(default_factory=list)
    from_kernel: list[int] = field(default_factory=list)


def floor_process(port: int, pipe: multiprocessing.connection.Connection, cookie: int) -> None:
    """Arms, waits, reads the clock, says it. cookie: of the socket on which data rings, if not 0."""
    attached = attachment.load(resources.bpf_dir())
    ledger = Ledger(attached)
    watch = ledger.watch(port, own_namespace())
    doorbell = Doorbell(attached.fds["doorbell"])
    epoll = select.epoll()
    epoll.register(doorbell.fd, select.EPOLLIN)
    if cookie:
        ledger.data_hook.attach()
        ledger.data_hook.listen_to(watch.slot, [cookie])
    pipe.send("ready")
    while pipe.recv() == "arm":
        ledger.counters.arm(watch.slot)
        pipe.send("armed")
        epoll.poll()
        woke_ns = time.monotonic_ns()
        doorbell.silence()
        pipe.send((woke_ns, ledger.counters.read(watch.slot).rang_ns))


@contextlib.contextmanager
def floor_on(server: socket.socket, cookie: int = 0) -> Iterator[multiprocessing.connection.Connection]:
    """A floor process that waits for connections to `server`, or for data on one of them."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=floor_process, args=(port_of(server), theirs, cookie))
    process.start()
    theirs.close()  # so that its death ends our waiting
    try:
        ours.recv()
        yield ours
        ours.send("stop")
        process.join()
    finally:
        process.kill()


class Opening:
    """Wakes by a new connection."""

    def __init__(self, server: socket.socket) -> None:
        self._server = server

    @contextlib.contextmanager
    def event(self) -> Iterator[None]:
        """It has happened; at the end it is over."""
        with connect(self._server):
            yield
        self._server.accept()[0].close()


class Asking:
    """Wakes by a request on an open connection, which is answered when what it did has been seen."""

    def __init__(self, server: socket.socket) -> None:
        self._client = connect(server)
        self._server, _ = server.accept()
        self.cookie = struct.unpack("=Q", self._server.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0]

    @contextlib.contextmanager
    def event(self) -> Iterator[None]:
        """It has happened; at the end it is over."""
        self._client.sendall(REQUEST)
        yield
        self._server.recv(len(REQUEST), socket.MSG_WAITALL)
        self._server.sendall(REQUEST)
        self._client.recv(len(REQUEST), socket.MSG_WAITALL)

    def close(self) -> None:
        """Both ends."""
        self._client.close()
        self._server.close()


def measure_floor(
    pipe: multiprocessing.connection.Connection, way: Opening | Asking, wakes: int, found: Latencies
) -> None:
    """To the waiting process running."""
    for _ in range(wakes):
        pipe.send("arm")
        pipe.recv()
        time.sleep(IDLE_S)
        with way.event():
            returned_ns = time.monotonic_ns()
            time.sleep(SETTLE_S)
            woke_ns, rang_ns = pipe.recv()
        found.from_client.append(woke_ns - returned_ns)
        found.from_kernel.append(woke_ns - rang_ns)


def measure_governor(governor: Governor, way: Opening | Asking, wakes: int, found: Latencies) -> None:
    """To the entry of the driver call."""
    driver = governor.driver
    board = driver.boards[0]
    for _ in range(wakes):
        eventually(lambda: board.memory_lock is not None, within_s=10, what="park")
        time.sleep(IDLE_S)
        mark = driver.log_mark()
        with way.event():
            returned_ns = time.monotonic_ns()
            time.sleep(SETTLE_S)
            calls = eventually(partial(driver.call_log, [RESET], after=mark), within_s=5, what="wake")
        found.from_client.append(calls[0].entry_ns - returned_ns)


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


def by_connecting(wakes: int) -> tuple[Latencies, Latencies, list[int]]:
    """The floor's, the governor's, and what its metric tells. In turns: so many of the one, so many of the other."""
    floor, governed = Latencies(), Latencies()
    with contextlib.ExitStack() as kept:
        server, floor_server = kept.enter_context(listener()), kept.enter_context(listener())
        pipe = kept.enter_context(floor_on(floor_server))
        governor = kept.enter_context(governor_on(server, "a40"))
        while (done := len(governed.from_client)) < wakes:
            count = min(ROUND, wakes - done)
            measure_governor(governor, Opening(server), count, governed)
            measure_floor(pipe, Opening(floor_server), count, floor)
        governed.from_kernel, metric_ns = reported_ns(governor)
    return floor, governed, metric_ns


def by_asking(wakes: int) -> tuple[Latencies, Latencies, list[int]]:
    """The same for requests on pooled connections."""
    floor, governed, metric_ns = Latencies(), Latencies(), []
    with contextlib.ExitStack() as kept:

        def pooled() -> tuple[socket.socket, Asking]:
            server = kept.enter_context(listener())
            return server, kept.enter_context(contextlib.closing(Asking(server)))

        floor_server, floor_way = pooled()
        pipe = kept.enter_context(floor_on(floor_server, floor_way.cookie))
        pools = []
        for _ in range(POOLS):
            server, way = pooled()
            pools.append((kept.enter_context(governor_on(server, "a40", by_connections=False)), way))
        while len(governed.from_client) < wakes:
            for governor, way in pools:
                measure_governor(governor, way, 1, governed)
                measure_floor(pipe, floor_way, 1, floor)
        for governor, _ in pools:
            entered, returned = reported_ns(governor)
            governed.from_kernel += entered
            metric_ns += returned
    return floor, governed, metric_ns


def bench(*, quick: bool) -> list[Figure]:
    """Both ways."""
    ways = {"connect()": by_connecting(60 if quick else 500), "send()": by_asking(24 if quick else 500)}
    found: list[Figure] = []
    for name, (floor, governed, metric_ns) in ways.items():
        found += [
            *figures(f"{name}: floor: returns -> waiter runs", floor.from_client),
            *promised(f"{name} returns -> driver call", governed.from_client, floor.from_kernel),
            *figures(f"{name}: floor: kernel's timestamp -> waiter runs", floor.from_kernel),
            *figures(f"{name}: kernel's timestamp -> driver call", governed.from_kernel, floor.from_kernel),
            *figures(f"{name}: kernel's timestamp -> driver call returned (the metric)", metric_ns),
        ]
    return found
