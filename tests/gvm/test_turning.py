"""One knob by whatever means: where it is, how it is undone, and how long anybody waits for it. On the fake driver."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memscaler.config.gpuctl import Gvm
from memscaler.core.gpuctl import NO_LIMIT, Knob, Means
from memscaler.core.plain import from_plain, to_plain
from memscaler.gvm.errors import Gone, Late, Refused
from memscaler.gvm.turning import Grip, Here, Outcome, Place, Was, placed, read, turn, undo, within
from tests.governor import eventually
from tests.gvm.fake.client import FakeGvm, own_device
from tests.gvm.workers import Worker

ONE, TWO = "GPU-11111111-aaaa-bbbb-cccc-000000000000", "GPU-22222222-aaaa-bbbb-cccc-000000000000"
FREEZE, LIMIT, PRIORITY = Knob.COMPUTE_FREEZE, Knob.MEMORY_LIMIT, Knob.COMPUTE_PRIORITY


@pytest.fixture
def here(gvm: FakeGvm) -> Here:
    return Here.look(Gvm(root=gvm.root, proc=gvm.proc))


@pytest.fixture
def used(gvm: FakeGvm):
    """This process uses both GPUs."""
    device = own_device(gvm.control)
    assert [device.ask("register", uuid=uuid) for uuid in (ONE, TWO)] == [0, 8]
    yield device
    device.close()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    made = Worker(tmp_path)
    yield made
    made.end()


def place_of(here: Here, knob: Knob) -> Place:
    (place,) = placed(knob, [os.getpid()], here, uuids=[TWO]).places
    return place


@pytest.mark.usefixtures("used")
def test_the_best_means_for_each_process(here: Here, worker: Worker) -> None:
    """GVM knows one of the two; the other stands still by what the kernel has."""
    found = placed(FREEZE, [os.getpid(), worker.pid, 1 << 22], here, uuids=[ONE, TWO])
    assert [(each.pid, each.means, each.uuid) for each in found.places] == [
        (os.getpid(), Means.GVM, ONE),
        (os.getpid(), Means.GVM, TWO),
        (worker.pid, Means.SIGNAL, ""),
    ]
    assert found.refused == {}
    assert [each.uuid for each in placed(FREEZE, [os.getpid()], here, uuids=[TWO]).places] == [TWO]
    limits = placed(LIMIT, [os.getpid(), worker.pid], here)
    assert [each.uuid for each in limits.places] == [ONE, TWO]
    assert "does not know it" in limits.refused[worker.pid]


def test_without_gvm_limits_have_a_reason(worker: Worker, tmp_path: Path) -> None:
    found = placed(LIMIT, [worker.pid], Here.look(Gvm(root=tmp_path / "none")))
    assert found.places == ()
    assert "GVM's driver cannot be seen" in found.refused[worker.pid]


@pytest.mark.usefixtures("used")
def test_a_gpu_that_nobody_can_name_is_not_guessed(gvm: FakeGvm, worker: Worker, tmp_path: Path) -> None:
    bare = tmp_path / "proc"
    bare.symlink_to("/proc")
    here = Here.look(Gvm(root=gvm.root, proc=bare))
    found = placed(LIMIT, [os.getpid()], here, uuids=[ONE])
    assert "gpu_map" in found.refused[os.getpid()]
    mapped = Here.look(Gvm(root=gvm.root, proc=bare, gpu_map={8: ONE}))
    assert [each.path[-2:] for each in placed(LIMIT, [os.getpid()], mapped, uuids=[ONE]).places] == ["/8"]
    assert worker.works()


@pytest.mark.usefixtures("used")
@pytest.mark.parametrize(("knob", "value", "default"), [(FREEZE, 1, 0), (LIMIT, 6 << 30, NO_LIMIT), (PRIORITY, 15, 8)])
def test_turned_and_put_back(gvm: FakeGvm, here: Here, knob: Knob, value: int, default: int) -> None:
    place = place_of(here, knob)
    was = read(place, here.proc)
    assert was == Was(default)
    turn(place, value, here.proc)
    assert read(place, here.proc) == Was(value)
    assert gvm.read(os.getpid(), 0, str(knob)) == str(default), "the other GPU's is as before"
    again, before = from_plain(Place, to_plain(place)), from_plain(Was, to_plain(was))
    assert undo(again, before, value, here.proc) is Outcome.BACK
    assert read(place, here.proc) == was
    assert undo(again, before, value, here.proc) is Outcome.BACK
    turn(place, value, here.proc)
    assert undo(again, Was(None), value, here.proc) is Outcome.BACK, "what nobody knows goes to the default"
    assert read(place, here.proc) == Was(default)


@pytest.mark.usefixtures("used")
def test_what_somebody_else_has_set_since_is_his(here: Here) -> None:
    place = place_of(here, PRIORITY)
    turn(place, 15, here.proc)
    turn(place, 3, here.proc)
    assert undo(place, Was(8), 15, here.proc) is Outcome.LEFT
    assert read(place, here.proc) == Was(3)


def test_a_directory_that_has_come_again_needs_no_undo(gvm: FakeGvm, here: Here, used) -> None:
    """A10: it has its defaults, and what was set before is lost."""
    place = place_of(here, PRIORITY)
    turn(place, 2, here.proc)
    turn(place, 15, here.proc)
    used.close()
    eventually(lambda: not (gvm.processes / str(threading.get_native_id())).exists())  # the fake learns of it by itself
    with pytest.raises(Gone):
        read(place, here.proc)
    assert undo(place, Was(2), 15, here.proc) is Outcome.GONE
    again = own_device(gvm.control)
    again.ask("register", uuid=ONE)
    again.ask("register", uuid=TWO)
    assert undo(place, Was(2), 15, here.proc) is Outcome.BACK
    assert read(place, here.proc) == Was(8)
    again.close()


@pytest.mark.usefixtures("used")
def test_a_freeze_is_undone_whatever_the_file_says(gvm: FakeGvm, here: Here) -> None:
    """The driver stores what it could not do."""
    place = place_of(here, FREEZE)
    assert undo(place, Was(0), 1, here.proc) is Outcome.BACK
    assert [(each.number, each.text) for each in gvm.writes("compute.freeze")] == [(8, "0\n")]
    turn(place, 1, here.proc)
    assert undo(place, Was(1), 1, here.proc) is Outcome.LEFT, "it was frozen before us"
    assert gvm.frozen(os.getpid(), 8)


@pytest.mark.usefixtures("used")
def test_a_thaw_that_fails_is_told(gvm: FakeGvm, here: Here) -> None:
    place = place_of(here, FREEZE)
    turn(place, 1, here.proc)
    gvm.trap("write", "*/8/compute.freeze", error="EINVAL")
    with pytest.raises(Refused):
        undo(place, Was(0), 1, here.proc)
    assert undo(place, Was(0), 1, here.proc) is Outcome.BACK


@pytest.mark.usefixtures("used")
def test_a_later_process_that_is_called_the_same_is_left_alone(gvm: FakeGvm, here: Here) -> None:
    """The number of the directory is the same, the process that we meant is not."""
    place = place_of(here, FREEZE)
    earlier = from_plain(Place, {**to_plain(place), "started": place.started - 1})
    for act in (lambda: turn(earlier, 1, here.proc), lambda: read(earlier, here.proc), lambda: Grip(earlier)):
        with pytest.raises(Gone):
            act()
    assert undo(earlier, Was(0), 1, here.proc) is Outcome.GONE
    assert gvm.writes() == []


@pytest.mark.usefixtures("used")
def test_a_grip_turns_by_one_write(gvm: FakeGvm, here: Here) -> None:
    grip = Grip(place_of(here, FREEZE), here.proc)
    for value in (1, 0, 1):
        grip.turn(value)
    grip.close()
    assert [each.text for each in gvm.writes()] == ["1\n", "0\n", "1\n"]
    assert gvm.frozen(os.getpid(), 8)


# ---- waiting --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("used")
def test_a_limit_that_takes_long_is_late_and_comes_to_its_end(gvm: FakeGvm, here: Here) -> None:
    place = place_of(here, LIMIT)
    gvm.trap("write", "*/8/memory.limit", delay_s=1.5)
    began_s = time.monotonic()
    with pytest.raises(Late, match=r"longer than 0\.1 s"):
        within(0.1, lambda: turn(place, 1 << 30, here.proc))
    assert time.monotonic() - began_s < 1.4
    turn(place, 2 << 30, here.proc)
    assert within(30, lambda: read(place, here.proc)).value in (1 << 30, 2 << 30)


def test_within_time_comes_the_result_or_the_error() -> None:
    assert within(30, threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        within(30, lambda: 1 // 0)
