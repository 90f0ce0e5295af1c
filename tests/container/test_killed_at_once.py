"""A cgroup that is killed as a whole, as engines kill containers: the guardian inside dies, one outside does not."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.governor import REPOSITORY, eventually, governing, listener, port_of
from tests.kernel.crowd import cgroup

pytestmark = pytest.mark.usefixtures("_quick")
JOIN = 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"'
SLACK_S = 1.0


@pytest.fixture
def _quick(monkeypatch):
    monkeypatch.setenv("MEMSCALER_MIN_DWELL", "0s")


@pytest.fixture
def group():
    """What a container is to the kernel."""
    with cgroup(f"ms-test-{os.getpid()}-container") as path:
        yield path


def killed(group: Path) -> None:
    """All of it at one instant."""
    (group / "cgroup.kill").write_text("1")
    eventually(lambda: not (group / "cgroup.procs").read_text(), what="the end of all")


def parked(tmp_path, server, group, **more):
    """A governor that is alone in the group, with its guardian."""
    arguments = ["--port", f"{port_of(server)}:gpu0", "--idle-after", "100ms"]
    return governing(tmp_path, "a40", *arguments, prefix=("sh", "-c", JOIN, "sh", str(group)), **more)


def test_nobody_inside_survives_and_the_next_start_wakes(tmp_path, group):
    """The journal in the runtime directory outlives it: with `restart: always` the next start wakes the GPU first."""
    with listener() as server:
        with parked(tmp_path, server, group) as governor:
            board = governor.driver.boards[0]
            eventually(lambda: board.locks)
            assert {governor.pid, governor.guardian_pid} <= {
                int(pid) for pid in (group / "cgroup.procs").read_text().split()
            }
            killed(group)
            time.sleep(0.3)
            assert board.locks, "then who woke it?"
        with governing(tmp_path, "a40", "--port", f"{port_of(server)}:gpu0") as again:
            eventually(lambda: not board.locks, what="restore at the start")
            assert again.stop() == 0


def test_one_outside_wakes_at_once(tmp_path, group):
    """`restore --wait` in a group of its own sleeps until then."""
    with listener() as server, parked(tmp_path, server, group) as governor:
        board = governor.driver.boards[0]
        eventually(lambda: board.locks)
        command = [sys.executable, "-m", "memscaler", "restore", "--wait", "--simulate", "a40", "--runtime-dir"]
        with subprocess.Popen([*command, str(tmp_path)], cwd=REPOSITORY) as outside:
            eventually(lambda: f" {outside.pid} " in Path("/proc/locks").read_text(), what="its sleep")
            killed(group)
            eventually(lambda: not board.locks, within_s=SLACK_S, what="restore")
            assert outside.wait(10) == 0
