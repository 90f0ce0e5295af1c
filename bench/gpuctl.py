"""From a client's connect() to a batch job on the same GPU standing still, beside this machine's floor.

Two ways: the GPU is parked, so its actuator hears the doorbell; or the job keeps it up, so the governor's loop does. By
three means: GVM's file (a FUSE file system stands for its driver), the job's cgroup, SIGSTOP. The floor is a process
that waits on the same doorbell and does the one act itself, knowing on whom; it reads a file before it writes it, as
the governor does, each on a fresh descriptor. The fake driver's time is in both: milliseconds, where a real one takes
microseconds, so the floor's median is added to the promise there. Governor and floor are measured in turns in the same
run. The job ends a kernel every 0.2 ms or so and says when; it is taken to have stood still one such step after the
last.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import select
import signal
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.figures import Figure, percentile
from memscaler import resources
from memscaler.kernel import attachment
from memscaler.kernel.doorbell import Doorbell
from memscaler.kernel.ledger import Ledger, own_namespace
from tests.governor import eventually, listener, port_of
from tests.gvm.batch import Batch
from tests.gvm.scene import Scene, Server, staged

MEANS = ("gvm", "cgroup", "signal")
MEDIAN_MS = 5.0
STILL_S = 0.05
ROUND = 10  # of each in a row, before it is the other's turn
IDLE_S = 0.05  # as idle as a daemon is when it is woken
HEAD = 'idle_after = "100ms"\nmin_dwell = 0\n'


def serving_process(pipe: multiprocessing.connection.Connection) -> None:
    """Accepts whoever comes, and closes when he does. Not of our own process: its children are never touched."""
    with listener() as server:
        pipe.send(port_of(server))
        while True:
            connection, _ = server.accept()
            with connection:
                connection.recv(1)


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """Such a process."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serving_process, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        yield Server(ours.recv(), process.pid or 0)
    finally:
        process.kill()
        process.join()


def floor_process(port: int, pipe: multiprocessing.connection.Connection, path: str, pid: int) -> None:
    """Arms, waits, acts: reads the file and writes 1 to it, each on a fresh descriptor, or stops the process."""
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
        if path:
            Path(path).read_text()
            fd = os.open(path, os.O_WRONLY)
            os.write(fd, b"1\n")
            os.close(fd)
        else:
            os.kill(pid, signal.SIGSTOP)
        doorbell.silence()
        pipe.send("done")


@contextlib.contextmanager
def floor_on(server: Server, made: Scene) -> Iterator[multiprocessing.connection.Connection]:
    """A floor process that waits for connections to `server`."""
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    arguments = (server.port, theirs, str(freeze_file(made) or ""), made.batch.pid)
    process = context.Process(target=floor_process, args=arguments)
    process.start()
    theirs.close()  # so that its death ends our waiting
    try:
        ours.recv()
        yield ours
        ours.send("stop")
        process.join()
    finally:
        process.kill()


def freeze_file(made: Scene) -> Path | None:
    """What to write to; None: a signal."""
    if made.how == "gvm" and made.fake:
        return made.fake.processes / str(made.batch.tid) / "0" / "compute.freeze"
    return made.cgroup / "cgroup.freeze" if made.cgroup else None


def stood_still_ms(batch: Batch, port: int) -> float:
    """Connect, and see. The client stays until it is known."""
    with socket.socket() as client:
        asked_ns = time.monotonic_ns()
        client.connect(("127.0.0.1", port))
        time.sleep(STILL_S)
        last = eventually(lambda: _still(batch), within_s=10, what="the job stands still")
    return max(0.0, (last - asked_ns) / 1e6) + step_ms(batch)


def _still(batch: Batch) -> int:
    last = batch.work.last_ns
    time.sleep(STILL_S)
    return last if batch.work.last_ns == last else 0


_steps: dict[int, float] = {}


def step_ms(batch: Batch) -> float:
    """From one kernel to the next, as measured while it works."""
    return _steps[batch.pid]


def measure_step(batch: Batch) -> None:
    """For `step_ms`."""
    ended, start = batch.work.ended, time.monotonic()
    time.sleep(0.3)
    _steps[batch.pid] = (time.monotonic() - start) * 1000 / max(1, batch.work.ended - ended)


def by_the_floor(made: Scene, server: Server, pipe: multiprocessing.connection.Connection) -> float:
    """One connection to the port that only the floor watches; the job is let go afterwards."""
    pipe.send("arm")
    pipe.recv()
    time.sleep(IDLE_S)
    took_ms = stood_still_ms(made.batch, server.port)
    pipe.recv()
    path = freeze_file(made)
    if path:
        path.write_text("0\n")
    else:
        os.kill(made.batch.pid, signal.SIGCONT)
    made.batch.works()
    return took_ms


def by_the_governor(made: Scene, *, parked: bool) -> float:
    """One connection to the watched port."""
    eventually(lambda: bool(made.board.locks) == parked, within_s=20, what="park" if parked else "wake")
    time.sleep(IDLE_S)
    took_ms = stood_still_ms(made.batch, made.server.port)
    made.batch.works()
    return took_ms


def measure(how: str, times: int) -> list[Figure]:
    """Both ways with one means, and its floor."""
    found: dict[str, list[float]] = {"parked": [], "awake": [], "floor": []}
    with contextlib.ExitStack() as kept:
        folder = Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="memscaler-bench-")))
        server, floor_server = kept.enter_context(serving()), kept.enter_context(serving())
        made = kept.enter_context(staged(folder, server, how, head=HEAD))
        pipe = kept.enter_context(floor_on(floor_server, made))
        made.known()
        measure_step(made.batch)
        while len(found["floor"]) < times:
            count = min(ROUND, times - len(found["floor"]))
            made.board.set_utilization(0)
            found["parked"] += [by_the_governor(made, parked=True) for _ in range(count)]
            made.awake()
            found["awake"] += [by_the_governor(made, parked=False) for _ in range(count)]
            found["floor"] += [by_the_floor(made, floor_server, pipe) for _ in range(count)]
    floor = found.pop("floor")
    fake_ms = statistics.median(floor) if how == "gvm" else 0.0
    return [figure for way, values in found.items() for figure in figures(f"{how}, {way}", values, floor, fake_ms)]


def figures(name: str, values: list[float], floor: list[float], fake_ms: float) -> list[Figure]:
    """Median, with the promise, and 99th percentile."""
    median, limit_ms = statistics.median(values), MEDIAN_MS + fake_ms
    return [
        Figure(f"{name}: median of {len(values)}", median, "ms", limit_ms, baseline=statistics.median(floor)),
        Figure(f"{name}: p99", percentile(values, 99), "ms", baseline=percentile(floor, 99)),
    ]


def bench(*, quick: bool) -> list[Figure]:
    """All three means."""
    return [figure for how in MEANS for figure in measure(how, 15 if quick else 100)]
