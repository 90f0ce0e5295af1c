"""What a review tried to break: who stays frozen, who must never be touched, what grows, and what is said too often."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memscaler.config.gpuctl import Match
from memscaler.core.gpuctl import Means
from memscaler.gvm import slow
from memscaler.gvm.journal import Journal
from memscaler.simulator import SimulatedDriver
from tests.governor import eventually
from tests.gvm.batch import Batch, batching, own_cgroup
from tests.gvm.governor_end import GovernorEnd, batch_rule, governor_end

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def boards(tmp_path: Path) -> Iterator[SimulatedDriver]:
    made = SimulatedDriver.create(tmp_path / "boards", ("a40",))
    yield made
    made.close()


@pytest.fixture
def batch(tmp_path: Path, boards: SimulatedDriver) -> Iterator[Batch]:
    assert boards.boards
    with batching(tmp_path / "batch", "--board", str(tmp_path / "boards"), "0") as made:
        yield made


@pytest.fixture
def end(boards: SimulatedDriver) -> Iterator[GovernorEnd]:
    with governor_end(boards.boards[0].uuid, batch_rule(), environment=boards.environment) as made:
        yield made


# ---- who stays frozen ------------------------------------------------------------------------------------------------


def test_an_arbiter_that_stands_still_and_has_lost_its_governor_is_in_nobodys_way(end, batch):
    """Governor and guardian were killed, and it was stopped: the next governor's arbiter must get the right to act."""
    end.start()
    end.prepared()
    end.client_comes()
    batch.stands_still()
    assert end.process is not None
    first = end.process
    first.send_signal(signal.SIGSTOP)
    try:
        end.close()
        end.client_goes()
        end.park()
        end.start()
        batch.works(within_s=30)
        assert end.end() == 0
        assert first.wait(20) == -signal.SIGKILL
    finally:
        first.kill()


def test_an_arbiter_that_ends_before_it_may_act_does_not_say_that_nothing_is_left(end, batch):
    """Else a governor believes that all is well."""
    end.start()
    end.prepared()
    end.client_comes()
    batch.stands_still()
    end.kill()
    journal = Journal(end.runtime_dir)
    owned = journal.own()
    try:
        end.start()
        end.until(lambda told: "is being put back" in told.problem)
        assert end.end() == 1
    finally:
        journal.release(owned)
    assert end.undo().returncode == 0
    batch.works()


def test_a_lane_that_cannot_begin_fails_its_work_and_no_other():
    """No memory or no room for a thread: a place whose call never comes back would be frozen for ever."""
    program = """
import resource, threading
from memscaler.gvm.slow import Lanes
lanes, done = Lanes(), threading.Event()
threading.stack_size(1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, resource.RLIM_INFINITY))
try:
    lanes.do("a", done.set)
except RuntimeError:
    print("refused")
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
threading.stack_size(1 << 20)
lanes.do("a", done.set)
print(done.wait(10))
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["refused", "True"]


def test_what_cannot_begin_for_want_of_a_thread_is_tried_again(tmp_path):
    """Not taken for under way, for ever: nobody would put it back."""
    program = f"""
import os, resource, subprocess, threading, time
from pathlib import Path
from memscaler.core.gpuctl import Knob, Means
from memscaler.gvm.acts import Acts
from memscaler.gvm.hands import Hands
from memscaler.gvm.journal import Entry, Journal
from memscaler.gvm.processes import started_at
from memscaler.gvm.turning import Place, Was
journal = Journal(Path({str(tmp_path)!r}))
other = subprocess.Popen(["sleep", "99"])
before = os.getpriority(os.PRIO_PROCESS, other.pid)
os.setpriority(os.PRIO_PROCESS, other.pid, 19)
place = Place(Knob.CPU_NICE, Means.NICE, other.pid, started_at(other.pid))
entry = Entry(place, Was(before, {{other.pid: before}}), (19,), journal.boot_id)
hands = Hands(Acts(journal), lambda *_: None, lambda: None)
threading.stack_size(1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, resource.RLIM_INFINITY))
try:
    hands.adopt([entry])
finally:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    threading.stack_size(1 << 20)
try:
    print(os.getpriority(os.PRIO_PROCESS, other.pid) == 19, hands.is_clean)
    end_s = time.monotonic() + 20
    while not hands.is_clean and time.monotonic() < end_s:
        time.sleep(0.05)
        hands.tick()
    print(os.getpriority(os.PRIO_PROCESS, other.pid) == before, hands.is_clean)
finally:
    other.kill()
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["True", "False", "True", "True"]


# ---- who must never be touched ---------------------------------------------------------------------------------------


def test_who_only_shares_the_cgroup_and_the_user_is_not_frozen_along(boards, tmp_path):
    """A session: a shell, and a job on the GPU that it started. The rule means a user's jobs, not his shell."""
    with (
        own_cgroup(f"session-{os.getpid()}") as cgroup,
        batching(tmp_path / "batch", "--board", str(tmp_path / "boards"), "0", cgroup=cgroup) as batch,
        governor_end(
            boards.boards[0].uuid,
            batch_rule(processes=(Match("user", "root"),)),
            environment=boards.environment,
        ) as end,
    ):
        shell = subprocess.Popen(["sleep", "999"])
        try:
            (cgroup / "cgroup.procs").write_text(str(shell.pid))
            end.start()
            end.prepared()
            end.client_comes()
            batch.stands_still()
            assert (cgroup / "cgroup.freeze").read_text().strip() == "0"
            assert batch.stopped()
            assert [each.means for each in end.until(lambda told: told.controlled).controlled] == [Means.SIGNAL]
        finally:
            shell.kill()
            shell.wait()


def test_whoever_has_just_begun_to_serve_is_not_touched_by_what_was_prepared_before(end, batch):
    """It was a target a moment ago; the next look would tell, and the client is here already."""
    end.start()
    end.prepared()
    end.change(pids=(batch.pid,))
    end.show("it listens")
    end.ask()  # it has heard that
    end.client_comes()
    end.until(lambda told: told.rules[0].holds)
    time.sleep(0.5)
    assert end.rule().applied == 0
    batch.works()


# ---- what grows, and what is said ------------------------------------------------------------------------------------


def test_lanes_that_nobody_needs_end_although_others_are_looked_after(monkeypatch):
    monkeypatch.setattr(slow, "IDLE_S", 0.3)
    lanes = slow.Lanes()
    for number in range(20):
        lanes.keep({number})
    before = threading.active_count()

    def fewer() -> bool:
        lanes.keep({19})  # a rule is in force, and is looked after
        return threading.active_count() <= before - 19

    eventually(fewer, within_s=10)


def test_why_a_job_cannot_be_held_is_logged_once_and_not_for_each_client(end, batch):
    os.kill(batch.pid, signal.SIGSTOP)
    eventually(batch.stopped)
    end.start()
    end.prepared()
    for _ in range(4):
        end.client_comes()
        end.until(lambda told: told.rules[0].holds and told.rules[0].why_not)
        end.client_goes()
        end.until(lambda told: not told.rules[0].holds)
        end.park()
    assert end.said().count("gpuctl.left") == 1


# ---- half of it ------------------------------------------------------------------------------------------------------


def test_a_nice_value_that_only_some_threads_took_is_told_as_changed():
    """Else nobody puts back those."""
    program = """
import os, threading, time
from memscaler.gvm.errors import Refused
from memscaler.gvm.processes import started_at
from memscaler.gvm.weights import set_nice
ready = threading.Event()
def lower():
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    ready.set(); time.sleep(99)
threading.Thread(target=lower, daemon=True).start()
ready.wait()
os.setresuid(65534, 65534, 65534)
try:
    set_nice(os.getpid(), started_at(os.getpid()), 18)
except Refused as error:
    print(error.changed, os.getpriority(os.PRIO_PROCESS, os.getpid()))
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["True", "18"]
