"""Who waits for a stopped process and stops with it, as su and runuser do: never stuck, whoever lets the process go."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memscaler.child.standstill import state
from memscaler.config.gpuctl import Match
from memscaler.gvm.above import MOST, Waiter, waiters
from memscaler.gvm.processes import started_at
from memscaler.simulator import SimulatedDriver
from tests.governor import REPOSITORY, eventually
from tests.gvm.governor_end import GovernorEnd, batch_rule, governor_end
from tests.patience import patience

pytestmark = pytest.mark.timeout(180)

# As util-linux's su and runuser wait (login-utils/su-common.c, create_watching_parent); the real ones are tried as well.
WAITS = """
import os, signal, sys
child = os.fork()
if child == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
while True:
    _, status = os.waitpid(child, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        break
    os.kill(os.getpid(), signal.SIGSTOP)
    os.kill(child, signal.SIGCONT)
"""
JOB = ["sleep", "999"]
HOW = {
    "su": ["su", "root", "-s", "/bin/sh", "-c", "exec sleep 999"],
    "runuser": ["runuser", "-u", "root", "--", *JOB],
    "a program like them": [sys.executable, "-c", WAITS, *JOB],
}


class Waited:
    """A job, and the chain of who waits for it."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        self.job = eventually(self._job, within_s=30, what="the job")

    def _job(self) -> int:
        pid = self.process.pid
        while True:
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                if not children:
                    break
                pid = int(children[0])
        called = Path(f"/proc/{pid}/comm").read_text().strip()
        return pid if called == "sleep" else 0

    @property
    def both(self) -> str:
        """States of who waits and of the job: "TT" if both are stopped."""
        return state(self.process.pid) + state(self.job)

    def ends(self) -> None:
        os.kill(self.job, signal.SIGTERM)
        self.process.wait(timeout=30 * patience())


@contextlib.contextmanager
def waited(command: list[str]) -> Iterator[Waited]:
    made = Waited(command)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(made.job, signal.SIGKILL)
            made.process.kill()
            made.process.wait()


@pytest.fixture
def boards(tmp_path: Path) -> Iterator[SimulatedDriver]:
    made = SimulatedDriver.create(tmp_path / "boards", ("a40",))
    yield made
    made.close()


@pytest.fixture
def end(boards: SimulatedDriver) -> Iterator[GovernorEnd]:
    rule = batch_rule(processes=(Match("name", "sleep"),), how="signal")
    with governor_end(boards.boards[0].uuid, rule, environment=boards.environment) as made:
        yield made


def stopped(end: GovernorEnd, boards: SimulatedDriver, *jobs: Waited) -> None:
    """The arbiter has stopped them, and with them those who wait."""
    for job in jobs:
        boards.boards[0].add_process(job.job, 1 << 30)
    if not end.told:
        end.start()
    end.prepared()
    end.client_comes()
    eventually(lambda: all(job.both == "TT" for job in jobs), within_s=30, what="all of them are stopped")


def goes_on(job: Waited) -> None:
    eventually(lambda: job.both == "SS", within_s=30, what="both go on")
    job.ends()


@pytest.mark.parametrize("who", HOW)
def test_who_has_stopped_with_a_job_goes_on_with_it(end, boards, who):
    with waited(HOW[who]) as job:
        stopped(end, boards, job)
        end.client_goes()
        end.until(lambda told: not told.controlled)
        goes_on(job)


def test_again_and_again_however_short_the_freeze(end, boards):
    """It may learn of the stop when its job goes on already, and stop then."""
    with waited(HOW["a program like them"]) as job:
        boards.boards[0].add_process(job.job, 1 << 30)
        end.start()
        end.prepared()
        for _ in range(20):
            end.urgent.before_wake(end.gpu, rang=True)  # for nobody: until the governor has looked
        end.until(lambda told: told.rules[0].released and not told.controlled)
        goes_on(job)


def test_a_job_that_is_killed_meanwhile_leaves_nobody_stopped(end, boards):
    with waited(HOW["a program like them"]) as job:
        stopped(end, boards, job)
        os.kill(job.job, signal.SIGKILL)
        end.client_goes()
        job.process.wait(timeout=30 * patience())


def test_who_was_stopped_before_stays_so(end, boards):
    with waited(["setsid", "--wait", *JOB]) as job:
        job.process.send_signal(signal.SIGSTOP)
        eventually(lambda: job.both[0] == "T")
        stopped(end, boards, job)
        end.client_goes()
        end.until(lambda told: not told.controlled)
        eventually(lambda: job.both[1] == "S", within_s=30)
        time.sleep(0.5)
        assert job.both == "TS"


def test_one_that_is_to_stand_still_himself_is_left(boards):
    """A rule for the parent goes on when the one for the child lets go."""
    rules = (
        batch_rule(name="child", processes=(Match("name", "sleep"),), how="signal"),
        batch_rule(name="parent", processes=(Match("name", "python*"),), how="signal", release_after_s=60.0),
    )
    with (
        waited(HOW["a program like them"]) as job,
        governor_end(boards.boards[0].uuid, *rules, environment=boards.environment) as both,
    ):
        boards.boards[0].add_process(job.process.pid, 1 << 30)
        stopped(both, boards, job)
        both.until(lambda told: len(told.controlled) == 2)
        both.client_goes()
        both.until(lambda told: len(told.controlled) == 1)
        eventually(lambda: job.both == "TS", within_s=30)
        both.configure()
        both.until(lambda told: not told.controlled)
        goes_on(job)


@pytest.mark.parametrize("who", ["guardian", "restore", "the next arbiter"])
def test_whoever_undoes_it_continues_them(end, boards, who):
    """By the journal of an arbiter that was killed."""
    with waited(HOW["a program like them"]) as job:
        stopped(end, boards, job)
        (entry,) = (json.loads(path.read_text()) for path in end.journal)
        assert entry["waiting"][0] == {"pid": job.process.pid, "started": started_at(job.process.pid)}
        end.process.kill()
        end.process.wait()
        if who == "the next arbiter":
            end.client_goes()
            end.start()
        else:
            done = end.undo() if who == "guardian" else end.restore()
            assert done.returncode == 0, done.stdout + done.stderr
        goes_on(job)
        eventually(lambda: not end.journal, within_s=30)


def test_an_entry_of_an_older_memscaler_is_undone(end, boards):
    """It knows of nobody who waits."""
    with waited(HOW["a program like them"]) as job:
        stopped(end, boards, job)
        (path,) = end.journal
        entry = json.loads(path.read_text())
        del entry["waiting"]
        end.process.kill()
        end.process.wait()
        path.write_text(json.dumps(entry))
        assert end.undo().returncode == 0
        eventually(lambda: job.both == "TS", within_s=30)
        assert end.journal == []


def test_who_is_above_a_process_is_bounded_and_ends_before_the_first_one():
    nested = [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])"]
    with waited([*nested * 10, *JOB]) as job:
        found = waiters(job.job)
        assert len(found) == MOST
        parent = int(Path(f"/proc/{job.job}/stat").read_text().split()[3])
        assert found[0] == Waiter(parent, started_at(parent) or 0)
        assert 1 not in {each.pid for each in found}
        assert waiters(1) == ()
        assert waiters(1 << 30) == ()


# ---- by hand ---------------------------------------------------------------------------------------------------------


def gpuctl(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    where = ["--runtime-dir", str(folder / "run"), "--gvm-root", str(folder / "none"), "--simulate", "a40"]
    return subprocess.run(
        [sys.executable, "-m", "memscaler", "gpuctl", *words, *where],
        capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=60 * patience(),
    )  # fmt: skip


@pytest.mark.parametrize("again", [["reset"], ["set", "compute.freeze=0"]], ids=["reset", "set"])
@pytest.mark.parametrize("who", HOW)
def test_by_hand_too(tmp_path, who, again):
    with waited(HOW[who]) as job:
        assert gpuctl(tmp_path, "set", str(job.job), "compute.freeze=1", "--how", "signal").returncode == 0
        eventually(lambda: job.both == "TT", within_s=30)
        done = gpuctl(tmp_path, again[0], str(job.job), *again[1:])
        assert done.returncode == 0, done.stderr
        assert f"{job.process.pid} " in done.stdout
        goes_on(job)


def test_by_hand_it_is_enough_that_he_is_stopped_still(tmp_path):
    """As an earlier version, or kill, has left it."""
    with waited(HOW["a program like them"]) as job:
        os.kill(job.job, signal.SIGSTOP)
        eventually(lambda: job.both == "TT", within_s=30)
        os.kill(job.job, signal.SIGCONT)
        assert gpuctl(tmp_path, "reset", str(job.job)).returncode == 0
        goes_on(job)


def test_by_hand_a_stopped_parent_of_others_is_left(tmp_path):
    script = "import subprocess as s; a = s.Popen(['sleep', '999']); b = s.Popen(['sleep', '998']); a.wait(); b.wait()"
    with waited([sys.executable, "-c", script]) as job:
        os.kill(job.job, signal.SIGSTOP)
        job.process.send_signal(signal.SIGSTOP)
        eventually(lambda: job.both == "TT", within_s=30)
        other = int(Path(f"/proc/{job.process.pid}/task/{job.process.pid}/children").read_text().split()[1])
        try:
            assert gpuctl(tmp_path, "reset", str(job.job)).returncode == 0
            assert job.both == "TS"
        finally:
            os.kill(other, signal.SIGKILL)
