"""Real processes that do something one can see, and real cgroups to put them in."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memscaler.gvm.freezing import Cgroups
from tests.governor import eventually
from tests.patience import patience

STILL_S = 0.2  # for so long it must not have done anything
_COUNT = """
import mmap, os, struct, sys, threading, time
with open(sys.argv[1], "r+b") as file:
    board = mmap.mmap(file.fileno(), 8)
def count():
    number = 0
    while True:
        number += 1
        board[:8] = struct.pack("=Q", number)
        time.sleep(0.0005)
for _ in range(int(sys.argv[2]) - 1):
    threading.Thread(target=time.sleep, args=(999,), daemon=True).start()
count()
"""


class Worker:
    """Counts for as long as it may run. threads: how many it has."""

    def __init__(self, folder: Path, name: str = "worker", threads: int = 1) -> None:
        file = folder / f"{name}.count"
        file.write_bytes(bytes(8))
        with file.open("rb") as opened:
            self._board = mmap.mmap(opened.fileno(), 8, prot=mmap.PROT_READ)
        command = [sys.executable, "-c", _COUNT, str(file), str(threads)]
        self.process = subprocess.Popen(command, start_new_session=True)  # a job of its own
        eventually(lambda: self.count, what="the worker to begin")
        task = Path(f"/proc/{self.pid}/task")
        eventually(lambda: len(list(task.iterdir())) == threads, what="all of its threads")

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def count(self) -> int:
        return int(struct.unpack("=Q", self._board[:8])[0])

    def works(self) -> bool:
        """It does so soon."""
        before = self.count
        end_s = time.monotonic() + 10 * patience()
        while time.monotonic() < end_s:
            if self.count != before:
                return True
            time.sleep(0.002)
        return False

    def stands(self) -> bool:
        """It stops soon, and has not counted for a while then."""
        end_s = time.monotonic() + 10 * patience()
        while time.monotonic() < end_s:
            before = self.count
            time.sleep(STILL_S)
            if self.count == before:
                return True
        return False

    def end(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def cgroup(name: str) -> Iterator[Path]:
    """A cgroup of this machine's, below the root; all in it goes back there at the end."""
    cgroups = Cgroups.find()
    assert cgroups is not None, "no cgroup v2 is mounted"
    folder = cgroups.mount / f"memscaler-test-{os.getpid()}-{name}"
    folder.mkdir()
    try:
        yield folder
    finally:
        below = sorted((Path(path) for path, _, _ in os.walk(folder)), reverse=True)
        for each in below:
            (each / "cgroup.freeze").write_text("0")
            for pid in (each / "cgroup.procs").read_text().split():
                with contextlib.suppress(OSError):  # it has just ended
                    (cgroups.mount / "cgroup.procs").write_text(pid)
        for each in below:
            eventually(lambda each=each: _removed(each), what=f"{each} to be empty")


def _removed(folder: Path) -> bool:
    """Not while somebody is on his way out."""
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def join(folder: Path, worker: Worker) -> None:
    (folder / "cgroup.procs").write_text(str(worker.pid))
