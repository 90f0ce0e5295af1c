"""`memscaler serve` as a process, what it says, and what of it is alive."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from functools import cached_property
from pathlib import Path

from memscaler.simulator import SimulatedDriver
from tests.governor import REPOSITORY, alive, eventually

START_S = 180.0  # a machine with two cores may be shared by many


class Served:
    """One. SERVED_IN stands in the environment of everything that belongs to it."""

    def __init__(self, folder, arguments, environment, user=None, terminal=None):
        self.folder = folder
        self.runtime_dir = folder / "run"
        self.out, self.err = folder / "out", folder / "err"
        self.process = subprocess.Popen(
            [*(["setsid", "--ctty"] if terminal else []), sys.executable, "-m", "memscaler", "serve", *arguments],
            stdin=terminal or subprocess.DEVNULL,
            stdout=self.out.open("wb"),
            stderr=terminal or self.err.open("wb"),
            cwd=REPOSITORY,
            env={**environment, "PYTHONPATH": str(REPOSITORY), "SERVED_IN": str(folder)},
            user=user,
            group=user,
            extra_groups=[] if user else None,
            start_new_session=terminal is None,
        )

    @property
    def told(self):
        return self.out.read_text()

    @property
    def said(self):
        return self.err.read_text() if self.err.exists() else ""

    @cached_property
    def board(self):
        return SimulatedDriver.attach(self.runtime_dir / "simulator" / "state").boards[0]

    @cached_property
    def port(self):
        return int(re.search(r"at https?://\S+?:(\d+)/v1", self.told)[1])

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}"

    def wait_ready(self):
        eventually(lambda: "Serving" in self.told or self.ended, within_s=START_S, what=lambda: self.said)
        assert "Serving" in self.told, self.said

    def wait_said(self, text):
        eventually(lambda: text in self.said or self.ended, within_s=START_S, what=text)
        assert text in self.said, self.said

    @property
    def ended(self):
        return self.process.poll() is not None

    def stop(self, number=signal.SIGINT, within_s=30.0):
        """Signal it; the exit status."""
        self.process.send_signal(number)
        return self.process.wait(within_s)

    def wait(self, within_s=START_S):
        return self.process.wait(within_s)

    def pids(self, part):
        """Of living processes of this test whose command line has this part."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):
                    words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if part in words and self._is_ours(entry) and alive(int(entry.name)):
                        found.append(int(entry.name))
        return found

    def _is_ours(self, entry):
        return f"SERVED_IN={self.folder}\0".encode() in (entry / "environ").read_bytes()

    @property
    def server(self):
        """Not we, and not its keeper: its flags stand in their command lines, too."""
        return eventually(
            lambda: set(self.pids(" --port ")) - {self.process.pid, *self.pids("keep.py")}, what="it"
        ).pop()

    @property
    def keeper(self):
        return eventually(lambda: self.pids("keep.py"), what="a keeper")[0]

    @property
    def governor(self):
        return eventually(lambda: self.pids("govern.py"), what="a governor")[0]

    def assert_nothing_is_left(self):
        """No server, no keeper, no governor, no guardian; nothing parked, and nobody at the socket."""
        eventually(lambda: not self.pids(""), within_s=20, what="everything has ended")
        if (self.runtime_dir / "simulator" / "state").exists():
            assert not self.board.locks
        assert not list((self.runtime_dir / "journal").glob("*"))


@contextlib.contextmanager
def serving(folder, arguments, environment, **more):
    """One that is gone afterwards, whatever the test did; what it said is shown if the test failed."""
    served = Served(folder, arguments, environment, **more)
    try:
        yield served
    except BaseException:
        print(served.told, served.said[-8000:], sep="\n")
        raise
    finally:
        if not served.ended:
            served.process.kill()
        served.process.wait()
        for pid in served.pids(""):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
