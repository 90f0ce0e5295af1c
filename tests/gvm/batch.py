"""A batch job on a GPU: a real process, of which one can see to some 100 us when it stood still.

python -m tests.gvm.batch WORK [--board STATE INDEX] [--gvm CONTROL UUID] [--in-a-thread] [--bytes N] [--counted]

It ends a kernel every 0.1 ms or so, and says when in the mapped file WORK (fake/model.py). It stands still when it is
stopped, and its kernels do when GVM keeps its channels off the GPU. --board: it is on that board's list of processes,
as NVML tells it. --in-a-thread: a thread, not the main one, opens the device, so GVM calls it by the thread's number. --counted: GVM's
layer sees its kernels; one is pending nearly all the time.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from memscaler.simulator import SimulatedDriver
from tests.governor import REPOSITORY, eventually
from tests.gvm.fake.client import own_device
from tests.gvm.fake.model import Work
from tests.patience import patience

NAME = "render-batch"
KERNEL_S = 1e-4
PR_SET_NAME = 15


def main() -> None:
    """Work until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--board", nargs=2, metavar=("STATE", "INDEX"))
    parser.add_argument("--gvm", nargs=2, metavar=("CONTROL", "UUID"))
    parser.add_argument("--in-a-thread", action="store_true")
    parser.add_argument("--bytes", type=int, default=0)
    parser.add_argument("--counted", action="store_true")
    parser.add_argument("--name", default=NAME)
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_NAME, options.name.encode())
    if options.board:
        board = SimulatedDriver.attach(Path(options.board[0])).boards[int(options.board[1])]
        board.add_process(os.getpid(), 1 << 30)
    if options.in_a_thread:
        worker = threading.Thread(target=_work, args=(options,))
        worker.start()
        worker.join()
    else:
        _work(options)


def _work(options: argparse.Namespace) -> None:
    work = Work(options.work)
    if options.gvm:
        device = own_device(Path(options.gvm[0]))
        number = device.ask("register", uuid=options.gvm[1])
        device.ask("channel", number=number, work=str(options.work))
        if options.bytes:
            device.ask("allocate", number=number, bytes=options.bytes)
    work.put("counted", options.counted)
    work.put("ready", threading.get_native_id())
    ended = 0
    while True:
        work.put("submitted", ended + 1)
        while work.off:
            time.sleep(KERNEL_S)
        time.sleep(KERNEL_S)
        if work.off:
            continue  # taken off the GPU in the middle of it
        ended += 1
        work.put("ended", ended)
        work.put("last_ns", time.monotonic_ns())


class Batch:
    """One such process, in a test's hands."""

    def __init__(self, folder: Path, *arguments: str, cgroup: Path | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.work = Work.create(folder / "work")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.gvm.batch", str(folder / "work"), *arguments],
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # as who starts a job beside a server: else it would be taken for a part of it
        )
        if cgroup is not None:
            (cgroup / "cgroup.procs").write_text(str(self.pid))
        eventually(self._ready, within_s=60, what="the batch job works")

    def _ready(self) -> int:
        assert self.process.poll() is None, "it has ended"
        return self.work.ready

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def tid(self) -> int:
        """Of the thread that uses the GPU."""
        return self.work.ready

    def works(self, within_s: float = 20.0) -> None:
        """It goes on from here."""
        ended = self.work.ended
        eventually(lambda: self.work.ended > ended + 5, within_s=within_s, what="the batch job works")

    def stands_still(self, within_s: float = 20.0) -> int:
        """Wait until it does. Returns when it ended its last kernel, ns of the monotonic clock."""
        eventually(self._still, within_s=within_s, what="the batch job stands still")
        return self.work.last_ns

    def _still(self) -> bool:
        """No word of the state that somebody put it into: nothing has ended for long enough."""
        last = self.work.last_ns
        time.sleep(0.25 * patience())
        return self.work.last_ns == last

    def stopped(self) -> bool:
        """As SIGSTOP leaves it."""
        return "State:\tT" in Path(f"/proc/{self.pid}/status").read_text()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def batching(folder: Path, *arguments: str, cgroup: Path | None = None) -> Iterator[Batch]:
    """A batch job that is gone afterwards."""
    batch = Batch(folder, *arguments, cgroup=cgroup)
    try:
        yield batch
    finally:
        batch.end()


def cgroup_mount() -> Path:
    """Where cgroup v2 is, on this machine."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, kind = line.partition(" - ")
        if kind.startswith("cgroup2 "):
            return Path(fields.split()[4])
    raise AssertionError("no cgroup2 is mounted")


@contextlib.contextmanager
def own_cgroup(name: str) -> Iterator[Path]:
    """A group of our own; what is in it is killed, and it is removed."""
    folder = cgroup_mount() / name
    folder.mkdir()
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            (folder / "cgroup.kill").write_text("1")
        eventually(lambda: not (folder / "cgroup.procs").read_text().strip())
        folder.rmdir()


if __name__ == "__main__":
    main()
