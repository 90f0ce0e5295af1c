"""Freezing by the kernel, niceness and cgroup weights: real processes stand still and go on again."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memscaler.config.gpuctl import Gvm
from memscaler.core.gpuctl import Knob, Means
from memscaler.core.plain import from_plain, to_plain
from memscaler.gvm.errors import Gone, NotAllowed, Unsupported
from memscaler.gvm.freezing import Cgroups, mounted
from memscaler.gvm.processes import started_at
from memscaler.gvm.turning import Grip, Here, Outcome, Place, Was, placed, read, turn, undo
from tests.governor import eventually
from tests.gvm.workers import Worker, cgroup, join

FREEZE = Knob.COMPUTE_FREEZE


@pytest.fixture
def here(tmp_path: Path) -> Here:
    return Here.look(Gvm(root=tmp_path))


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    made = Worker(tmp_path, threads=3)
    yield made
    made.end()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Worker]:
    made = Worker(tmp_path, "other")
    yield made
    made.end()


@pytest.fixture
def group() -> Iterator[Path]:
    with cgroup("group") as folder:
        yield folder


def as_another_user(place: Place, value: int) -> str:
    """What `turn` says to nobody."""
    code = "import os, sys, json; from memscaler.core.plain import from_plain\n"
    code += "from memscaler.gvm.turning import Place, turn; from memscaler.core.errors import MemscalerError\n"
    code += "os.setgid(65534); os.setuid(65534)\n"
    code += "try: turn(from_plain(Place, json.loads(sys.argv[1])), int(sys.argv[2]))\n"
    code += "except MemscalerError as error: print(type(error).__name__, error.exit_code)"
    command = [sys.executable, "-c", code, json.dumps(to_plain(place)), str(value)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


# ---- by signals -----------------------------------------------------------------------------------------------------


def test_a_process_stands_still_and_goes_on(here: Here, worker: Worker) -> None:
    (place,) = placed(FREEZE, [worker.pid], here, how="signal").places
    assert (place.means, place.pid) == (Means.SIGNAL, worker.pid)
    was = read(place)
    assert was == Was(0)
    turn(place, 1)
    assert worker.stands()
    assert read(place) == Was(1)
    turn(place, 1)
    assert undo(place, was, 1) is Outcome.BACK
    assert worker.works()
    assert undo(place, was, 1) is Outcome.BACK, "twice does no harm"
    assert worker.works()


def test_what_somebody_else_has_stopped_is_his(here: Here, worker: Worker) -> None:
    os.kill(worker.pid, 19)
    assert worker.stands()
    (place,) = placed(FREEZE, [worker.pid], here, how="signal").places
    eventually(lambda: read(place).value, what="it to be seen")
    assert undo(place, Was(1), 1) is Outcome.LEFT
    assert worker.stands()


def test_a_later_process_of_the_same_pid_is_never_meant(here: Here, worker: Worker) -> None:
    (place,) = placed(FREEZE, [worker.pid], here, how="signal").places
    earlier = Place(FREEZE, Means.SIGNAL, worker.pid, place.started - 1)
    for act in (lambda: turn(earlier, 1), lambda: read(earlier), lambda: Grip(earlier)):
        with pytest.raises(Gone):
            act()
    assert undo(earlier, Was(0), 1) is Outcome.GONE
    assert worker.works()


def test_a_process_that_has_ended_is_gone(here: Here, worker: Worker) -> None:
    (place,) = placed(FREEZE, [worker.pid], here, how="signal").places
    grip = Grip(place)
    worker.end()
    with pytest.raises(Gone):
        grip.turn(1)
    grip.close()
    assert undo(place, Was(0), 1) is Outcome.GONE
    assert placed(FREEZE, [worker.pid], here, how="signal") == placed(FREEZE, [], here)


def test_a_zombie_is_gone_and_a_process_whose_first_thread_has_ended_is_not(tmp_path: Path) -> None:
    code = "import ctypes, threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()\n"
    code += "print(flush=True)\nctypes.CDLL(None).pthread_exit(None)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        stat = Path(f"/proc/{process.pid}/stat")
        eventually(lambda: ") Z " in stat.read_text(), what="its first thread to end")
        assert started_at(process.pid) is not None
        (place,) = placed(FREEZE, [process.pid], Here.look(Gvm(root=tmp_path)), how="signal").places
        assert undo(place, Was(0), 1) is Outcome.BACK
        process.kill()
        eventually(lambda: started_at(process.pid) is None, what="all of it to end; nobody has waited for it yet")


def test_another_user_may_not(here: Here, worker: Worker) -> None:
    (place,) = placed(FREEZE, [worker.pid], here, how="signal").places
    assert as_another_user(place, 1) == "NotAllowed 4"
    assert worker.works()


# ---- by cgroups -----------------------------------------------------------------------------------------------------


def test_a_cgroup_of_its_own_is_frozen(here: Here, worker: Worker, other: Worker, group: Path) -> None:
    for each in (worker, other):
        join(group, each)
    found = placed(FREEZE, [worker.pid, other.pid], here)
    assert found.refused == {}
    assert {place.means for place in found.places} == {Means.CGROUP}
    assert len({place.key for place in found.places}) == 1
    first = found.places[0]
    was = read(first)
    grip = Grip(first)
    grip.turn(1)
    assert worker.stands()
    assert other.stands()
    assert "frozen 1" in (group / "cgroup.events").read_text()
    grip.turn(0)
    assert worker.works()
    grip.turn(1)
    grip.close()
    assert worker.stands(), "letting go leaves it frozen"
    assert undo(from_plain(Place, to_plain(first)), from_plain(Was, to_plain(was)), 1) is Outcome.BACK
    assert other.works()


def test_a_frozen_cgroup_is_thawed_though_the_process_that_it_was_for_has_ended(
    here: Here, worker: Worker, other: Worker, group: Path
) -> None:
    for each in (worker, other):
        join(group, each)
    place = next(each for each in placed(FREEZE, [worker.pid, other.pid], here).places if each.pid == worker.pid)
    turn(place, 1)
    assert other.stands()
    worker.end()
    assert undo(place, Was(0), 1) is Outcome.BACK
    assert other.works()


def test_a_cgroup_with_others_in_it_is_not_frozen(here: Here, worker: Worker, other: Worker, group: Path) -> None:
    """Below it counts, too: a freeze holds all of it."""
    below = group / "below"
    below.mkdir()
    join(group, worker)
    join(below, other)
    (place,) = placed(FREEZE, [worker.pid], here).places
    assert place.means is Means.SIGNAL
    refused = placed(FREEZE, [worker.pid], here, how="cgroup")
    assert refused.places == ()
    assert f"others are in its cgroup /{group.name} (pid {other.pid})" in refused.refused[worker.pid]
    (place,) = placed(FREEZE, [other.pid], here).places
    assert place.means is Means.CGROUP
    (place,) = placed(FREEZE, [worker.pid], here, may=lambda pid: pid == other.pid).places
    assert place.means is Means.CGROUP


def test_the_root_is_not_frozen(here: Here, worker: Worker) -> None:
    assert here.cgroups is not None
    join(here.cgroups.mount, worker)
    assert "in no cgroup of its own" in placed(FREEZE, [worker.pid], here, how="cgroup").refused[worker.pid]
    place = Place(FREEZE, Means.CGROUP, worker.pid, 1, str(here.cgroups.mount))
    with pytest.raises(Unsupported, match="root"):
        read(place)


def test_a_later_cgroup_of_the_same_name_is_another_one(here: Here, worker: Worker) -> None:
    with cgroup("twice") as folder:
        join(folder, worker)
        (place,) = placed(FREEZE, [worker.pid], here).places
        grip = Grip(place)
        join(folder.parent, worker)
        folder.rmdir()
        with pytest.raises(Gone):
            grip.turn(1)
        grip.close()
        folder.mkdir()
        join(folder, worker)
        with pytest.raises(Gone):
            turn(place, 1)
        assert undo(place, Was(0), 1) is Outcome.GONE
        assert worker.works()


def test_another_user_may_not_freeze_a_cgroup(here: Here, worker: Worker, group: Path) -> None:
    join(group, worker)
    (place,) = placed(FREEZE, [worker.pid], here).places
    assert as_another_user(place, 1) == "NotAllowed 4"
    assert worker.works()


def test_where_version_2_is_mounted() -> None:
    """Never assumed; a part of it (a container's) is none."""
    old = "31 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    part = "33 23 0:29 /docker/1 /part rw - cgroup2 cgroup2 rw\n"
    whole = "32 23 0:28 / /sys/fs/with\\040blank rw shared:4 - cgroup2 cgroup2 rw\n"
    assert mounted(old + part + whole) == "/sys/fs/with blank"
    assert mounted(old + part) is None
    assert Cgroups.find(Path("/nowhere")) is None


def test_without_version_2_it_is_said_and_signals_serve(worker: Worker, tmp_path: Path) -> None:
    nowhere = Here(Here.look(Gvm(root=tmp_path)).tree, None)
    assert "not mounted" in placed(FREEZE, [worker.pid], nowhere, how="cgroup").refused[worker.pid]
    assert placed(FREEZE, [worker.pid], nowhere).places[0].means is Means.SIGNAL


def test_a_weight_without_its_controller_is_refused(here: Here, worker: Worker, group: Path) -> None:
    """The controller is enabled for a cgroup by its parent, or, as on this machine maybe, not there at all."""
    join(group, worker)
    (place,) = placed(Knob.CPU_WEIGHT, [worker.pid], here).places
    if (group / "cpu.weight").exists():
        turn(place, 7)
        assert undo(place, Was(100), 7) is Outcome.BACK
        assert read(place) == Was(100)
    else:
        with pytest.raises(Unsupported, match="cpu controller"):
            turn(place, 7)


# ---- by niceness ----------------------------------------------------------------------------------------------------


def nices(worker: Worker) -> list[int]:
    return [os.getpriority(os.PRIO_PROCESS, int(each.name)) for each in Path(f"/proc/{worker.pid}/task").iterdir()]


def test_all_threads_are_nice_and_each_gets_its_own_back(here: Here, worker: Worker) -> None:
    threads = sorted(int(each.name) for each in Path(f"/proc/{worker.pid}/task").iterdir())
    last = threads[-1]
    for tid in threads:
        os.setpriority(os.PRIO_PROCESS, tid, 3 if tid == last else 0)
    (place,) = placed(Knob.CPU_NICE, [worker.pid], here).places
    was = read(place)
    assert (was.value, was.threads[last]) == (0, 3)
    turn(place, 15)
    assert nices(worker) == [15, 15, 15]
    again = from_plain(Was, to_plain(was))
    assert undo(place, again, 15) is Outcome.BACK
    assert sorted(nices(worker)) == [0, 0, 3]
    assert undo(place, again, 15) is Outcome.BACK


def test_what_somebody_else_has_changed_since_is_his(here: Here, worker: Worker) -> None:
    (place,) = placed(Knob.CPU_NICE, [worker.pid], here).places
    was = read(place)
    turn(place, 15)
    for each in Path(f"/proc/{worker.pid}/task").iterdir():
        os.setpriority(os.PRIO_PROCESS, int(each.name), 7)
    assert undo(place, was, 15) is Outcome.LEFT
    assert nices(worker) == [7, 7, 7]


def test_niceness_of_one_that_has_ended(here: Here, worker: Worker) -> None:
    (place,) = placed(Knob.CPU_NICE, [worker.pid], here).places
    earlier = Place(Knob.CPU_NICE, Means.NICE, worker.pid, place.started - 1)
    assert undo(earlier, Was(0), 5) is Outcome.GONE
    worker.end()
    with pytest.raises(Gone):
        turn(place, 5)


def test_another_user_may_not_be_made_nice(here: Here, worker: Worker) -> None:
    (place,) = placed(Knob.CPU_NICE, [worker.pid], here).places
    assert as_another_user(place, 5) == f"{NotAllowed.__name__} 4"
