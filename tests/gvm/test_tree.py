"""GVM's directory: A1 to A7, on the fake driver, through the real kernel."""

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from memscaler.config.gpuctl import Gvm
from memscaler.core.gpuctl import NO_LIMIT, Knob
from memscaler.gvm.errors import Gone, NotAllowed, Refused
from memscaler.gvm.prepared import pending
from memscaler.gvm.tree import Tree, parse_number, parse_stat, read_knob, write_knob
from tests.governor import eventually
from tests.gvm.fake.client import FakeGvm, own_device

ONE, TWO = "GPU-11111111-aaaa-bbbb-cccc-000000000000", "GPU-22222222-aaaa-bbbb-cccc-000000000000"


@pytest.fixture
def tree(gvm: FakeGvm) -> Tree:
    return Tree(Gvm(root=gvm.root, proc=gvm.proc))


@pytest.fixture
def used(gvm: FakeGvm):
    """This process uses both GPUs."""
    device = own_device(gvm.control)
    assert [device.ask("register", uuid=uuid) for uuid in (ONE, TWO)] == [0, 8]
    yield device
    device.close()


@pytest.fixture
def folder(gvm: FakeGvm, used) -> Path:  # noqa: ARG001 - as long as that
    return gvm.processes / str(os.getpid()) / "8"


# ---- what is there --------------------------------------------------------------------------------------------------


def test_no_driver_is_told_with_its_reason(tmp_path: Path) -> None:
    """A1: nothing mounted, no driver, and a file in place of the directory are three things."""
    tree = Tree(Gvm(root=tmp_path))
    assert "nothing is mounted" in tree.why_not()
    (tmp_path / "nvidia-uvm").mkdir()
    assert "driver is not loaded" in tree.why_not()
    (tmp_path / "nvidia-uvm/processes").touch()
    assert "driver is not loaded" in tree.why_not()
    assert tree.entries() == () == tree.readings()


def test_a_user_is_told_that_only_root_may_look(tmp_path: Path) -> None:
    closed = tmp_path / "debug"
    closed.mkdir(mode=0o700)
    code = "import sys; from pathlib import Path; from memscaler.config.gpuctl import Gvm\n"
    code += "from memscaler.gvm.tree import Tree; import os; os.setgid(65534); os.setuid(65534)\n"
    code += "print(Tree(Gvm(root=Path(sys.argv[1]))).why_not())"
    tmp_path.chmod(0o755)
    command = [sys.executable, "-c", code, str(closed)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "only be looked at by root" in told


@pytest.mark.usefixtures("used")
def test_who_is_on_which_gpu(gvm: FakeGvm, tree: Tree) -> None:
    """A2: directory 8 is the second GPU, by the driver's own table; "list" is no process."""
    assert tree.why_not() == ""
    assert [(each.pid, each.tid, each.number, each.uuid) for each in tree.entries()] == [
        (os.getpid(), os.getpid(), 0, ONE),
        (os.getpid(), os.getpid(), 8, TWO),
    ]
    assert tree.entries([os.getpid() + 1]) == ()
    assert gvm.number(TWO) == 8


@pytest.mark.usefixtures("used")
def test_what_the_driver_does_not_name_may_be_configured(tree: Tree, tmp_path: Path) -> None:
    nobody = Tree(replace(tree.gvm, proc=tmp_path, gpu_map={8: "GPU-mine"}))
    assert [nobody.uuid(number) for number in (0, 8)] == ["", "GPU-mine"]
    assert Tree(replace(tree.gvm, gpu_map={8: "GPU-mine"})).uuid(8) == TWO, "the driver knows better"


def test_a_thread_stands_for_its_process(gvm: FakeGvm, tree: Tree) -> None:
    """A3: a server in a thread opens the driver from there."""
    told: list[int] = []
    leave = threading.Event()

    def work() -> None:
        device = own_device(gvm.control)
        device.ask("register", uuid=ONE)
        told.append(threading.get_native_id())
        leave.wait()
        device.close()

    thread = threading.Thread(target=work)
    thread.start()
    eventually(lambda: told, what="the thread to register")
    entries = tree.entries([os.getpid()])
    leave.set()
    thread.join()
    assert [(each.pid, each.tid) for each in entries] == [(os.getpid(), told[0])]
    assert told[0] != os.getpid()
    assert tree.entries() == ()


def test_readings(gvm: FakeGvm, tree: Tree, used) -> None:
    used.ask("allocate", number=0, bytes=5 << 20)
    write_knob(gvm.processes / str(os.getpid()) / "0", Knob.COMPUTE_FREEZE, 1)
    first, second = tree.readings()
    assert (first.pid, first.uuid, first.memory_current_bytes, first.compute_freeze) == (os.getpid(), ONE, 5 << 20, 1)
    assert (second.memory_current_bytes, second.swap_bytes, second.memory_limit_bytes) == (0, 0, NO_LIMIT)
    assert (second.compute_priority, second.compute_freeze) == (8, 0)
    assert (second.kernels_submitted, second.kernels_ended, second.kernels_pending) == (0, 0, 0)


@pytest.mark.usefixtures("used")
@pytest.mark.parametrize("error", ["ENOENT", "EIO", "ESRCH", "ENOTDIR"])
def test_what_cannot_be_read_is_none(gvm: FakeGvm, tree: Tree, error: str) -> None:
    """A1: entries vanish at every step."""
    gvm.trap("read", "*/8/memory.current", error=error, times=9)
    assert [each.memory_current_bytes for each in tree.readings()] == [0, None]


@pytest.mark.usefixtures("used")
@pytest.mark.parametrize("step", ["list", "look", "open", "read"])
def test_a_process_that_vanishes_on_the_way_is_left_out(gvm: FakeGvm, tree: Tree, step: str) -> None:
    where = {"list": f"{os.getpid()}", "look": f"{os.getpid()}/*", "open": "*/0/*", "read": "*/0/*"}[step]
    gvm.trap(step, where, vanish=os.getpid())
    readings = tree.readings()
    assert all(each.memory_limit_bytes in (None, NO_LIMIT) for each in readings), "no error, whatever is left"
    assert tree.readings() == ()


# ---- what is set ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        (Knob.MEMORY_LIMIT, 6 << 30),
        (Knob.MEMORY_LIMIT, NO_LIMIT),
        (Knob.COMPUTE_PRIORITY, 0),
        (Knob.COMPUTE_PRIORITY, 16),
        (Knob.COMPUTE_FREEZE, 1),
    ],
)
def test_one_write_of_a_plain_number(gvm: FakeGvm, folder: Path, knob: Knob, value: int) -> None:
    """A5."""
    write_knob(folder, knob, value)
    assert [(each.number, each.text) for each in gvm.writes(str(knob))] == [(8, f"{value}\n")]
    assert read_knob(folder, knob) == value


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        (Knob.MEMORY_LIMIT, -1),
        (Knob.MEMORY_LIMIT, NO_LIMIT + 1),
        (Knob.COMPUTE_PRIORITY, 17),
        (Knob.COMPUTE_FREEZE, 2),
    ],
)
def test_what_no_knob_takes_is_not_written(gvm: FakeGvm, folder: Path, knob: Knob, value: int) -> None:
    """A6."""
    with pytest.raises(Refused, match=str(value)):
        write_knob(folder, knob, value)
    assert gvm.writes() == []


@pytest.mark.parametrize(("error", "kind"), [("ENOENT", Gone), ("EACCES", NotAllowed), ("EPERM", NotAllowed)])
def test_errors_have_their_kinds(gvm: FakeGvm, folder: Path, error: str, kind: type[Exception]) -> None:
    """A7."""
    gvm.trap("write", "*/8/compute.freeze", error=error)
    with pytest.raises(kind):
        write_knob(folder, Knob.COMPUTE_FREEZE, 1)


def test_eio_of_who_has_gone_is_no_failure_and_of_who_is_there_is_one(gvm: FakeGvm, folder: Path) -> None:
    gvm.trap("write", "*/8/compute.freeze", error="EIO")
    with pytest.raises(Refused):
        write_knob(folder, Knob.COMPUTE_FREEZE, 1)
    gvm.trap("open", "*/8/compute.freeze", vanish=os.getpid())
    with pytest.raises(Gone):
        write_knob(folder, Knob.COMPUTE_FREEZE, 1)


def test_a_positive_status_is_an_error_told_in_hex(gvm: FakeGvm, folder: Path) -> None:
    """A5: the driver's NV_STATUS comes out of write(2), and the value is stored all the same."""
    gvm.trap("write", "*/8/compute.freeze", status=0x1F)
    code = "import sys; from memscaler.core.gpuctl import Knob; from memscaler.gvm.tree import write_knob\n"
    code += "from memscaler.gvm.errors import Refused\n"
    code += "try: write_knob(sys.argv[1], Knob.COMPUTE_FREEZE, 1)\n"
    code += "except Refused as error: print(error, error.code, error.changed)"
    command = [sys.executable, "-c", code, str(folder)]
    told = subprocess.run(command, env={**os.environ, **gvm.environment}, capture_output=True, text=True, check=True)
    assert "NV_STATUS 0x1f" in told.stdout
    assert told.stdout.endswith("31 True\n")
    assert read_knob(folder, Knob.COMPUTE_FREEZE) == 1


def test_a_limit_below_what_is_used_takes_its_time(gvm: FakeGvm, folder: Path) -> None:
    gvm.trap("write", "*/8/memory.limit", delay_s=0.5)
    began_s = time.monotonic()
    write_knob(folder, Knob.MEMORY_LIMIT, 1 << 30)
    assert time.monotonic() - began_s >= 0.5
    assert read_knob(folder, Knob.MEMORY_LIMIT) == 1 << 30


# ---- formats --------------------------------------------------------------------------------------------------------


def test_numbers() -> None:
    """A4."""
    assert [parse_number(text) for text in ("0\n", "18446744073709551615\n", "7")] == [0, NO_LIMIT, 7]
    for odd in ("", "\n", "max\n", "-1\n", "0x10\n", "1 2\n", "9" * 21):
        with pytest.raises(ValueError, match="no number"):
            parse_number(odd)


def test_stat_keeps_what_nobody_knows() -> None:
    """A4."""
    assert parse_stat("nr_pending_kernels: 5\nnr_new: 7\nodd\nnr_bad: x\n") == {"nr_pending_kernels": 5, "nr_new": 7}
    assert parse_stat("") == {}


def test_pending_kernels_on_a_gpu_that_nobody_knows(tmp_path: Path) -> None:
    """A11: it may be this one, and gpu_map says that it is not."""
    folder = tmp_path / f"nvidia-uvm/processes/{os.getpid()}/8"
    folder.mkdir(parents=True)
    (folder / "compute.freeze").write_text("0\n")
    stat = folder / "gcgroup.stat"
    stat.write_text("nr_submitted_kernels: 7\nnr_ended_kernels: 5\nnr_pending_kernels: 2\n")
    this, other = "GPU-00000000-0000-0000-0000-000000000001", "GPU-00000000-0000-0000-0000-000000000002"
    gvm = Gvm(root=tmp_path)
    assert "set gpu_map" in pending(gvm, this)
    known = replace(gvm, gpu_map={8: other})
    assert (pending(known, this), "gpu_map" in pending(known, other)) == ("", False)
    assert "2 kernels" in pending(known, other)
    (folder / "compute.freeze").write_text("1\n")
    assert pending(gvm, this) == ""
