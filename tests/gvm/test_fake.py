"""The fake answers as the driver's source says, through the real kernel: who trusts it can trust the tests."""

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.governor import eventually
from tests.gvm.batch import batching
from tests.gvm.fake.client import FakeGvm, own_device
from tests.gvm.fake.model import Work

UUIDS = ("GPU-11111111-aaaa-bbbb-cccc-000000000000", "GPU-22222222-aaaa-bbbb-cccc-000000000000")
NO_LIMIT = "18446744073709551615"
USER = """
import sys, time
from pathlib import Path
from tests.gvm.fake.client import own_device
device = own_device(Path(sys.argv[1]))
device.ask("register", number=0)
print("ready", flush=True)
time.sleep(99)
"""


@pytest.fixture
def used(gvm: FakeGvm):
    """This process uses both GPUs."""
    device = own_device(gvm.control)
    numbers = [device.ask("register", uuid=uuid) for uuid in UUIDS]
    assert numbers == [0, 8]
    yield device
    device.close()


def put(path: Path, data: bytes) -> int:
    fd = os.open(path, os.O_WRONLY)
    try:
        return os.write(fd, data)
    finally:
        os.close(fd)


def refused(path: Path, data: bytes) -> str:
    with pytest.raises(OSError, match=r"\[Errno") as failed:
        put(path, data)
    return errno.errorcode[failed.value.errno or 0]


@pytest.mark.usefixtures("used")
def test_layout_formats_and_defaults(gvm: FakeGvm) -> None:
    tid = os.getpid()
    assert sorted(each.name for each in gvm.processes.iterdir()) == sorted(["list", str(tid)])
    assert (gvm.processes / "list").read_text() == f"PID\n{tid}\n"
    assert sorted(each.name for each in (gvm.processes / str(tid)).iterdir()) == ["0", "8"]
    folder = gvm.processes / str(tid) / "8"
    assert {each.name: each.read_text() for each in folder.iterdir()} == {
        "memory.limit": f"{NO_LIMIT}\n",
        "memory.current": "0\n",
        "memory.swap.current": "0\n",
        "compute.priority": "8\n",
        "compute.freeze": "0\n",
        "gcgroup.stat": "nr_submitted_kernels: 0\nnr_ended_kernels: 0\nnr_pending_kernels: 0\n",
    }
    modes = {each.name: oct(each.stat().st_mode & 0o777) for each in folder.iterdir()}
    assert modes["memory.limit"] == "0o644"
    assert modes["memory.current"] == "0o444"
    links = gvm.proc / "driver" / "nvidia-uvm" / "gpus"
    assert str((links / "9").readlink()) == f"{UUIDS[1]}/0"
    assert (links / "9" / "info").is_file()
    assert (gvm.proc / str(tid) / "task" / str(tid)).is_dir(), "its /proc is the machine's"
    assert not Path("/proc/driver/nvidia-uvm/gpus/9").exists(), "and the machine's is untouched"


@pytest.mark.usefixtures("used")
@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"", ""),  # write(2) of nothing does not reach a handler
        (b"-1\n", "EINVAL"),
        (b"0x10\n", "EINVAL"),
        (b"max\n", "EINVAL"),
        (b"6G\n", "EINVAL"),
        (b" 6\n", "EINVAL"),
        (b"6\n\n", "EINVAL"),
        (b"\n", "EINVAL"),
        (b"0" * 31 + b"1", "EINVAL"),
        (b"18446744073709551616\n", "ERANGE"),
        (b"6", ""),
        (b"+6\n", ""),
        (b"0" * 30 + b"6", ""),
        (NO_LIMIT.encode() + b"\n", ""),
    ],
)
def test_what_the_parser_takes(gvm: FakeGvm, data: bytes, answer: str) -> None:
    path = gvm.processes / str(os.getpid()) / "0" / "memory.limit"
    if answer:
        assert refused(path, data) == answer
        assert path.read_text() == f"{NO_LIMIT}\n"
    else:
        assert put(path, data) == len(data)


@pytest.mark.usefixtures("used")
def test_bounds_and_read_only(gvm: FakeGvm) -> None:
    folder = gvm.processes / str(os.getpid()) / "0"
    assert refused(folder / "compute.priority", b"17\n") == "EINVAL"
    assert put(folder / "compute.priority", b"16\n") == 3
    assert refused(folder / "compute.freeze", b"2\n") == "EINVAL"
    assert refused(folder / "memory.current", b"2\n") == "EINVAL"
    assert put(folder / "compute.freeze", b"1\n") == 2
    assert gvm.frozen(os.getpid(), 0)
    assert not gvm.frozen(os.getpid(), 8)


@pytest.mark.usefixtures("used")
def test_a_failed_freeze_returns_a_positive_status_and_is_stored(gvm: FakeGvm) -> None:
    path = gvm.processes / str(os.getpid()) / "0" / "compute.freeze"
    gvm.trap("write", "*/0/compute.freeze", status=0x1F)
    code = "import os, sys; print(os.write(os.open(sys.argv[1], os.O_WRONLY), b'1\\n'))"
    command = [sys.executable, "-c", code, str(path)]
    told = subprocess.run(command, env={**os.environ, **gvm.environment}, capture_output=True, text=True, check=True)
    assert told.stdout == "31\n"
    assert path.read_text() == "1\n"
    assert put(path, b"0\n") == 2


@pytest.mark.usefixtures("used")
def test_a_failed_priority_is_stored_too(gvm: FakeGvm) -> None:
    path = gvm.processes / str(os.getpid()) / "0" / "compute.priority"
    gvm.trap("write", "*/0/compute.priority", status=0x40)
    assert refused(path, b"2\n") == "EINVAL"
    assert path.read_text() == "2\n"


def test_ends(gvm: FakeGvm, used) -> None:
    tid = os.getpid()
    path = gvm.processes / str(tid) / "0" / "compute.freeze"
    with path.open("rb", buffering=0) as file:
        gvm.ask("ghost", tid=tid)
        with pytest.raises(OSError, match=os.strerror(errno.ENOENT)):
            file.read(16)
        used.ask("unregister", number=0)
        file.seek(0)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            file.read(16)
    assert not path.exists()
    assert (gvm.processes / str(tid) / "8").is_dir()
    used.close()
    eventually(lambda: not (gvm.processes / str(tid)).exists())


def test_a_group_that_comes_back_has_the_defaults(gvm: FakeGvm, used) -> None:
    path = gvm.processes / str(os.getpid()) / "0" / "compute.priority"
    put(path, b"2\n")
    used.ask("unregister", number=0)
    used.ask("register", number=0)
    assert path.read_text() == "8\n"


@pytest.mark.usefixtures("used")
@pytest.mark.parametrize("on", ["list", "look", "open", "read"])
def test_it_vanishes_at_any_step(gvm: FakeGvm, on: str) -> None:
    tid = os.getpid()
    gvm.trap(on, f"{tid}*", vanish=tid)
    folder = gvm.processes / str(tid)
    with pytest.raises(OSError, match=r"No such file|Input/output error"):  # noqa: PT012  # each step may be the one
        for group in folder.iterdir():
            for file in group.iterdir():
                file.read_text()
    assert not folder.exists()


def test_a_limit_below_what_is_used_takes_its_time(gvm: FakeGvm, used) -> None:
    folder = gvm.processes / str(os.getpid()) / "0"
    used.ask("allocate", number=0, bytes=4 << 30)
    gvm.ask("evict", bytes_per_s=(4 << 30) / 1.5)
    start = time.monotonic()
    writing = threading.Thread(target=put, args=(folder / "memory.limit", b"%d\n" % (1 << 30)))
    writing.start()
    time.sleep(0.2)
    assert (folder / "memory.limit").read_text() == f"{NO_LIMIT}\n", "stored when it is done; the others can read"
    writing.join()
    assert time.monotonic() - start >= 1.1
    assert (folder / "memory.limit").read_text() == f"{1 << 30}\n"
    assert (folder / "memory.current").read_text() == f"{1 << 30}\n"
    assert (folder / "memory.swap.current").read_text() == f"{3 << 30}\n"


def test_named_by_the_thread(gvm: FakeGvm) -> None:
    """Who opens the device in a thread is called by the thread's number."""
    known = []

    def use() -> None:
        known.extend([own_device(gvm.control), threading.get_native_id()])

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert known[1] != os.getpid()
    assert (gvm.processes / str(known[1])).is_dir()
    known[0].close()


def test_a_killed_process_takes_its_entries_along(gvm: FakeGvm) -> None:
    process = subprocess.Popen([sys.executable, "-c", USER, str(gvm.control)], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    folder = gvm.processes / str(process.pid)
    assert put(folder / "0" / "compute.freeze", b"1\n") == 2
    process.kill()
    process.wait()
    process.stdout.close()
    eventually(lambda: not folder.exists())


@pytest.mark.usefixtures("used")
def test_the_module_is_unloaded(gvm: FakeGvm) -> None:
    gvm.ask("unload")
    assert list(gvm.root.iterdir()) == []
    gvm.ask("load")
    assert list(gvm.processes.iterdir()) == [gvm.processes / "list"]


def test_a_frozen_job_ends_no_kernels_and_what_it_opens_later_runs(gvm: FakeGvm, tmp_path: Path) -> None:
    """Only what was registered at the time of the write is taken off the GPU."""
    with batching(tmp_path / "job", "--gvm", str(gvm.control), UUIDS[0], "--in-a-thread", "--counted") as job:
        assert job.tid != job.pid
        job.works()
        freeze = gvm.processes / str(job.tid) / "0" / "compute.freeze"
        put(freeze, b"1\n")
        last_ns = job.stands_still()
        assert last_ns <= gvm.writes("compute.freeze")[-1].at_ns + 1e9
        assert "nr_pending_kernels: 1\n" in gvm.read(job.tid, 0, "gcgroup.stat") + "\n"
        assert not job.stopped()
        put(freeze, b"0\n")
        job.works()
        put(freeze, b"1\n")
        later = Work.create(tmp_path / "later")
        gvm.ask("channel", tid=job.tid, number=0, work=str(tmp_path / "later"))
        assert later.off == 0
        put(freeze, b"1\n")
        assert later.off == 1
