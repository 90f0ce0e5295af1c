"""Who belongs to a server beside what it has started: its launcher, and what that has started with it. Real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memscaler.gvm.processes import untouchable
from memscaler.kernel.processes import Processes
from tests.governor import eventually

# Starts a listener, an engine with a worker, and a job in a group of its own; writes who they are, and waits.
LAUNCHER = """
import subprocess, sys, time
sleep = [sys.executable, "-c", "import time; time.sleep(999)"]
below = [sys.executable, "-c", "import subprocess, sys, time; print(subprocess.Popen([sys.executable, '-c', "
         "'import time; time.sleep(999)'], start_new_session=True).pid, flush=True); time.sleep(999)"]
listener = subprocess.Popen(sleep)
engine = subprocess.Popen(below, stdout=subprocess.PIPE, text=True)
job = subprocess.Popen(sleep, process_group=0)
print(listener.pid, engine.pid, int(engine.stdout.readline()), job.pid, flush=True)
time.sleep(999)
"""


@contextlib.contextmanager
def launched(*command: str, **more: object) -> Iterator[tuple[int, list[int]]]:
    """The launcher in a session of its own, and what it says."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, **more) as process:  # type: ignore[call-overload]
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        try:
            yield process.pid, pids
        finally:
            for pid in (process.pid, *pids):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def test_a_launcher_and_what_it_has_started_with_the_listener_are_left_alone() -> None:
    """An engine beside an API server, as several servers have it, and the engine's own."""
    with launched(sys.executable, "-c", LAUNCHER) as (launcher, (listener, engine, worker, job)):
        found = untouchable(Processes.look(), listeners=[listener])
        assert "serves" in found[listener]
        assert "has started" in found[launcher]
        for pid in (engine, worker):
            assert "belongs to a server of a watched port" in found[pid]
        assert job not in found, "in a group of its own it is a job of its own"
        assert os.getpid() not in found


def test_a_launcher_above_the_launcher() -> None:
    """As long as it is in the same group."""
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {LAUNCHER!r}])"
    with launched(sys.executable, "-c", code) as (above, (listener, engine, _, job)):
        found = untouchable(Processes.look(), listeners=[listener])
        assert "has started" in found[above]
        assert engine in found
        assert job not in found


def test_a_shell_is_no_launcher(tmp_path: Path) -> None:
    """Whoever starts a server and a job from one script, or in one terminal, means two things."""
    script = tmp_path / "both.sh"
    script.write_text("sleep 999 & one=$!\nsleep 999 & echo $one $!\nwait\n")
    with launched("/bin/sh", str(script)) as (shell, (server, job)):
        eventually(lambda: Processes.look().comm(job) == "sleep", what="both to be there")
        found = untouchable(Processes.look(), listeners=[server])
        assert server in found
        assert job not in found
        assert shell not in found


@pytest.mark.parametrize("name", ["sh", "supervisord"])
def test_what_calls_itself_a_shell_changes_nothing_for_others(name: str) -> None:
    """A launcher is told by its executable, not by what it calls itself."""
    code = f"import ctypes; ctypes.CDLL(None).prctl(15, {name.encode()!r})\n" + LAUNCHER
    with launched(sys.executable, "-c", code) as (_, (listener, engine, _, _)):
        assert engine in untouchable(Processes.look(), listeners=[listener])
