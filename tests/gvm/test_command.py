"""`memscaler gpuctl` as a process: with GVM's driver (the fake one), and with what the kernel has."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memscaler.cli.gpuctl.doing import Orders, change
from memscaler.cli.gpuctl.world import look
from memscaler.core.gpuctl import Controlled, Gpuctl, GvmAt, Knob, Means
from memscaler.core.snapshot import KernelSnapshot, Snapshot
from memscaler.gvm.errors import Gone
from memscaler.observe.gpuctl import document
from memscaler.simulator import SimulatedDriver
from memscaler.simulator.loading import STATE
from tests.asked import STATUS, answering, short_folder
from tests.governor import REPOSITORY, eventually
from tests.gvm.batch import NAME, Batch, batching, cgroup_mount, own_cgroup
from tests.gvm.fake.client import FakeGvm
from tests.patience import patience

GIB = 1 << 30
NOBODY = 65534


class Bench:
    """Two simulated boards, and the command."""

    def __init__(self, folder: Path, fake: FakeGvm | None) -> None:
        self.folder, self._fake = folder, fake
        state = folder / STATE
        state.parent.mkdir(parents=True)
        self.driver = SimulatedDriver.create(state, ["a40", "p40"])

    @property
    def fake(self) -> FakeGvm:
        """GVM's driver, where there is one."""
        assert self._fake is not None
        return self._fake

    def arguments(self, index: int = 0) -> list[str]:
        """Of a batch job on one of the boards."""
        board = self.driver.boards[index]
        told = ["--board", str(self.folder / STATE), str(index)]
        return [*told, "--gvm", str(self.fake.control), board.uuid] if self._fake else told

    def command(self, what: str, *words: str) -> list[str]:
        root = self._fake.root if self._fake else self.folder / "no-debugfs"
        where = ["--gvm-root", str(root), "--runtime-dir", str(self.folder), "--simulate", "a40,p40"]
        where += ["--proc-root", str(self._fake.proc)] if self._fake else []
        return [sys.executable, "-m", "memscaler", "gpuctl", what, *words, *where]

    def environment(self) -> dict[str, str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("MEMSCALER_")}
        return {**clean, "COLUMNS": "80", **(self._fake.environment if self._fake else {})}

    def run(self, what: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(what, *words),
            capture_output=True,
            text=True,
            check=False,
            env=self.environment(),
            cwd=REPOSITORY,
            timeout=60 * patience(),
        )

    def told(self, what: str, *words: str, code: int = 0) -> dict[str, Any]:
        """What it says to programs."""
        done = self.run(what, *words, "--json")
        assert done.returncode == code, done.stderr + done.stdout
        document: dict[str, Any] = json.loads(done.stdout)
        assert document["schema"] == 1
        return document

    def row(self, pid: int) -> dict[str, Any]:
        """Of `ls`."""
        (row,) = [each for each in self.told("ls")["processes"] if each["pid"] == pid]
        return row


Make = Callable[..., Bench]


@pytest.fixture
def make() -> Iterator[Make]:
    """Benches, in folders with short names: there are sockets in them."""
    drivers = []
    with short_folder() as folder:

        def made(fake: FakeGvm | None = None) -> Bench:
            bench = Bench(folder / "run", fake)
            drivers.append(bench.driver)
            return bench

        yield made
        for driver in drivers:
            driver.close()


@pytest.fixture
def with_gvm(make: Make, gvm: FakeGvm) -> Bench:
    return make(gvm)


@pytest.fixture
def without(make: Make) -> Bench:
    return make()


@pytest.fixture
def job(with_gvm: Bench, tmp_path: Path) -> Iterator[Batch]:
    """A batch job on the second board, which GVM calls by a thread's number."""
    with (
        batching(tmp_path / "first", *with_gvm.arguments(0)),
        batching(
            tmp_path / "job", *with_gvm.arguments(1), "--in-a-thread", "--counted", "--bytes", str(4 * GIB)
        ) as batch,
    ):
        yield batch


# ---- with GVM ------------------------------------------------------------------------------------------------------


def test_ls(with_gvm: Bench, job: Batch) -> None:
    """The process is found by its thread, the GPU by the driver's table and not by GVM's number."""
    row = with_gvm.row(job.pid)
    assert (row["tid"], row["number"], row["gpu"]) == (job.tid, 8, "gpu1")
    assert row["uuid"] == with_gvm.driver.boards[1].uuid
    assert (row["name"], row["memory_current_bytes"]) == (NAME, 4 * GIB)
    assert (row["memory_limit_bytes"], row["limited"]) == (None, False), "as in the status document"
    assert (row["swap_bytes"], row["compute_priority"], row["compute_freeze"]) == (0, 8, 0)
    eventually(lambda: with_gvm.row(job.pid)["kernels_ended"], what="the first kernels to end")
    row = with_gvm.row(job.pid)
    assert row["kernels_submitted"] >= row["kernels_ended"] > 0
    assert row["frozen_by"] == []
    text = with_gvm.run("ls").stdout
    head, *_ = text.splitlines()
    assert head.split() == [
        "PID",
        "GPU",
        "NAME",
        "UNIT/CONTAINER",
        "MEMORY",
        "LIMIT",
        "SWAP",
        "PRIORITY",
        "FROZEN",
        "KERNELS",
    ]
    line = next(line for line in text.splitlines() if line.startswith(f"{job.pid} "))
    assert line.split()[-8:-1] == ["4", "GiB", "max", "0", "B", "8", "-"]
    assert "lower is higher priority" in text


def test_set_and_reset(with_gvm: Bench, job: Batch) -> None:
    """All of GVM's knobs in one command, in people's units; the defaults again."""
    done = with_gvm.run("set", str(job.pid), "compute.freeze=1", "memory.limit=6G", "compute.priority=2")
    assert done.returncode == 0, done.stderr
    assert "lower is higher priority" in done.stdout
    assert "memory.limit on gpu1: max -> 6 GiB, by gvm" in done.stdout
    job.stands_still()
    row = with_gvm.row(job.pid)
    assert (row["memory_limit_bytes"], row["compute_priority"], row["frozen_by"]) == (6 * GIB, 2, ["gvm"])
    assert row["limited"] is True
    texts = {each.file: each.text for each in with_gvm.fake.writes()}
    assert texts == {"memory.limit": f"{6 * GIB}\n", "compute.priority": "2\n", "compute.freeze": "1\n"}
    found = with_gvm.told("get", str(job.tid), "memory.limit", "compute.priority", "compute.freeze")["values"]
    assert {each["gpu"] for each in found if each["means"] == "gvm"} == {"gpu1"}
    by_gvm = {each["knob"]: each["value"] for each in found if each["means"] == "gvm"}
    assert by_gvm == {"memory.limit": 6 * GIB, "compute.priority": 2, "compute.freeze": 1}
    assert with_gvm.run("reset", str(job.pid)).returncode == 0
    job.works()
    row = with_gvm.row(job.pid)
    assert (row["memory_limit_bytes"], row["compute_priority"], row["frozen_by"]) == (None, 8, [])


def test_a_dry_run_does_nothing(with_gvm: Bench, job: Batch) -> None:
    """And says what it would have done."""
    done = with_gvm.run("set", str(job.pid), "compute.freeze=1", "memory.limit=1G", "--dry-run")
    assert (done.returncode, with_gvm.fake.writes()) == (0, [])
    assert "would be runs -> frozen, by gvm" in done.stdout
    job.works()


def test_a_failed_freeze_is_told_and_put_back(with_gvm: Bench, job: Batch) -> None:
    """The driver's status comes out of write(2) as if more had been written, and its file says the new value."""
    with_gvm.fake.trap("write", "*/compute.freeze", status=0x1F)
    done = with_gvm.run("set", str(job.pid), "compute.freeze=1")
    assert done.returncode == 1
    assert "NV_STATUS 0x1f" in done.stderr
    assert "put back" in done.stderr
    assert with_gvm.row(job.pid)["compute_freeze"] == 0
    job.works()


def test_one_of_several_fails(with_gvm: Bench, tmp_path: Path) -> None:
    """The others are set, and each is told."""
    with (
        batching(tmp_path / "one", *with_gvm.arguments()) as one,
        batching(tmp_path / "two", *with_gvm.arguments()) as two,
    ):
        with_gvm.fake.trap("write", f"{one.tid}/0/compute.priority", error="EPERM")
        told = with_gvm.told("set", str(one.pid), str(two.pid), "compute.priority=12", code=1)
        assert {each["pid"]: each["done"] for each in told["changes"]} == {one.pid: False, two.pid: True}
        assert not told["ok"]
        assert with_gvm.row(two.pid)["compute_priority"] == 12
        assert with_gvm.row(one.pid)["compute_priority"] == 8


def test_priority_sixteen_has_to_be_meant(with_gvm: Bench, job: Batch) -> None:
    """GVM's code takes it, its README does not name it."""
    assert with_gvm.run("set", str(job.pid), "compute.priority=16").returncode == 2
    assert with_gvm.fake.writes() == []
    assert with_gvm.run("set", str(job.pid), "compute.priority=16", "--beyond").returncode == 0
    assert with_gvm.row(job.pid)["compute_priority"] == 16


def test_a_lower_limit_takes_long(with_gvm: Bench, job: Batch) -> None:
    """It is said that we wait, and why; who does not want to wait that long goes, and the driver goes on."""
    with_gvm.fake.ask("evict", bytes_per_s=GIB / 2)
    begun_s = time.monotonic()
    done = with_gvm.run("set", str(job.pid), "memory.limit=1G", "--timeout", "3s")
    assert done.returncode == 1
    assert "takes long: the driver moves memory to the host; waiting" in done.stderr
    assert "has not answered for 3 s" in done.stderr
    assert time.monotonic() - begun_s < 6 + 20 * patience()
    eventually(lambda: with_gvm.row(job.pid)["memory_limit_bytes"] == GIB, within_s=30)
    row = with_gvm.row(job.pid)
    assert (row["memory_current_bytes"], row["swap_bytes"]) == (GIB, 3 * GIB)


def test_one_that_does_not_answer_hides_no_other(with_gvm: Bench, tmp_path: Path) -> None:
    """`ls` says who did not answer, and shows the rest."""
    with (
        batching(tmp_path / "one", *with_gvm.arguments()) as one,
        batching(tmp_path / "two", *with_gvm.arguments()) as two,
    ):
        with_gvm.fake.trap("read", f"{one.tid}/0/*", delay_s=20.0 * patience(), times=6)
        told = with_gvm.told("ls")
        assert two.pid in [each["pid"] for each in told["processes"] if each["compute_priority"] == 8]
        assert any(str(one.pid) in line for line in told["late"])


def test_a_failed_priority_is_put_back(with_gvm: Bench, job: Batch) -> None:
    """EINVAL of a value that is in range: GVM has stored it before the driver refused."""
    with_gvm.fake.trap("write", "*/compute.priority", status=0x40)
    done = with_gvm.run("set", str(job.pid), "compute.priority=2")
    assert done.returncode == 1
    assert "put back" in done.stderr
    assert with_gvm.row(job.pid)["compute_priority"] == 8


@pytest.mark.parametrize("on", ["look", "open", "read"])
def test_a_process_that_goes_meanwhile(with_gvm: Bench, job: Batch, on: str) -> None:
    """It is no error of `ls` that one has ended."""
    with_gvm.fake.trap(on, f"{job.tid}/8*", vanish=job.tid)
    told = with_gvm.told("ls")
    left = [each for each in told["processes"] if each["tid"] == job.tid]
    assert all(each["memory_current_bytes"] is None for each in left), "what was read before it went"
    assert bool(left) <= (on == "read")


# ---- without -------------------------------------------------------------------------------------------------------


def test_ls_without_gvm(without: Bench, tmp_path: Path) -> None:
    """NVML's memory; what cannot be had is no column, and the reason is below."""
    with batching(tmp_path / "job", *without.arguments(1)) as job:
        row = without.row(job.pid)
        assert (row["gpu"], row["memory_used_bytes"], row["memory_limit_bytes"]) == ("gpu1", GIB, None)
        assert row["limited"] is None
        text = without.run("ls").stdout
        assert text.splitlines()[0].split() == ["PID", "GPU", "NAME", "UNIT/CONTAINER", "MEMORY", "FROZEN"]
        assert max(map(len, text.splitlines())) <= 80
        assert "limit, swap, priority and kernels cannot be had" in text


def test_ls_where_nobody_tells(without: Bench) -> None:
    """An empty list would be a lie. What is missing and what works is said; programs get the same document as ever."""
    command = [word for word in without.command("ls") if word not in ("--simulate", "a40,p40")]
    environment = {**without.environment(), "LD_LIBRARY_PATH": str(without.folder)}
    for more in ([], ["--json"]):
        done = subprocess.run(
            [*command, *more], capture_output=True, text=True, check=False, env=environment, cwd=REPOSITORY
        )
        if done.returncode == 0:  # a machine with NVIDIA's driver
            return
        assert done.returncode == 69
        assert "nobody tells which processes are on the GPUs" in done.stderr
        assert "NVML" in done.stderr
        assert "nothing is mounted" in done.stderr
        assert "compute.freeze" in done.stderr
        if more:
            told = json.loads(done.stdout)
            assert (told["processes"], told["gvm"], "NVML" in told["nvml_why_not"]) == ([], False, True)
            assert "nothing is mounted" in told["gvm_why_not"]
        else:
            assert done.stdout == ""


def test_what_only_gvm_can(without: Bench, tmp_path: Path) -> None:
    """Refused with the reason, as what this machine lacks."""
    with batching(tmp_path / "job", *without.arguments()) as job:
        done = without.run("set", str(job.pid), "memory.limit=6G")
        assert (done.returncode, done.stdout) == (69, "")
        assert "no stock driver or kernel limits the device memory" in done.stderr
        done = without.run("set", str(job.pid), "compute.priority=2", "cpu.nice=7")
        assert done.returncode == 1
        assert "no stock driver gives the contexts of a GPU unequal turns" in done.stderr
        assert os.getpriority(os.PRIO_PROCESS, job.pid) == 7
        told = without.told("get", str(job.pid), "memory.limit", code=1)["values"]
        assert "no stock driver" in told[0]["problem"]


def test_a_stopped_process(without: Bench, tmp_path: Path) -> None:
    """By SIGSTOP; its kernels are the GPU's business, which is said."""
    with batching(tmp_path / "job", *without.arguments()) as job:
        done = without.run("set", str(job.pid), "compute.freeze=1")
        assert (done.returncode, job.stopped()) == (0, True)
        assert "run to their end on the GPU" in " ".join(done.stdout.split())
        assert without.row(job.pid)["frozen_by"] == ["signal"]
        assert without.run("reset", str(job.pid)).returncode == 0
        job.works()


def test_what_this_machine_cannot_do_at_all(without: Bench, tmp_path: Path) -> None:
    """One exit code for all of it, with the reason."""
    with batching(tmp_path / "job", *without.arguments()) as job:
        done = without.run("set", str(job.pid), "compute.freeze=1", "--how", "gvm")
        assert (done.returncode, done.stdout) == (69, "")
        assert job.stopped() is False
        done = without.run("set", str(job.pid), "cpu.weight=50")
        has_it = "cpu" in (cgroup_mount() / "cgroup.controllers").read_text().split()
        assert (done.returncode == 69, "no cpu controller" in done.stderr) == (not has_it, not has_it)


def test_one_that_is_on_no_gpu(without: Bench) -> None:
    """Nothing is said of kernels that it cannot have submitted."""
    with subprocess.Popen([shutil.which("sleep") or "", "999"]) as process:
        try:
            done = without.run("set", str(process.pid), "compute.freeze=1")
            assert done.returncode == 0, done.stderr
            assert "it is on no GPU that is known here" in " ".join(done.stdout.split())
            assert "kernels" not in done.stdout
        finally:
            process.kill()


def test_by_cgroup(without: Bench, tmp_path: Path) -> None:
    """As rules have it."""
    with (
        own_cgroup(f"ms-gpuctl-by-{os.getpid()}") as group,
        batching(tmp_path / "job", *without.arguments(), cgroup=group) as job,
    ):
        done = without.run("set", f"cgroup:/{group.name}", "compute.freeze=1")
        assert (done.returncode, "not by the cgroup" in done.stdout) == (0, False)
        assert without.row(job.pid)["frozen_by"] == ["cgroup"]
        assert without.run("reset", f"cgroup:/{group.name}").returncode == 0
        job.works()


def test_why_not_by_the_cgroup_that_was_named(without: Bench, tmp_path: Path) -> None:
    """Who names a cgroup expects it to be frozen; with others below it, it is not."""
    with (
        own_cgroup(f"ms-gpuctl-below-{os.getpid()}") as group,
        own_cgroup(f"{group.name}/below") as below,
        batching(tmp_path / "job", *without.arguments(), cgroup=group) as job,
        batching(tmp_path / "other", *without.arguments(), cgroup=below) as other,
    ):
        done = without.run("set", f"cgroup:/{group.name}", "compute.freeze=1")
        assert (done.returncode, job.stopped(), other.stopped()) == (0, True, False)
        told = " ".join(done.stdout.split())
        assert f"not by the cgroup: others are in its cgroup /{group.name} (pid {other.pid})" in told
        assert "not by the cgroup" not in without.run("set", str(job.pid), "compute.freeze=1").stdout
        without.run("reset", str(job.pid))


def test_a_frozen_cgroup(without: Bench, tmp_path: Path) -> None:
    """Where all of its processes are meant; it is told for each of them, and any of them can let go."""
    with (
        own_cgroup(f"ms-gpuctl-{os.getpid()}") as group,
        batching(tmp_path / "one", *without.arguments(), cgroup=group) as one,
        batching(tmp_path / "two", *without.arguments(), cgroup=group) as two,
    ):
        told = without.told("set", str(one.pid), "compute.freeze=1")["changes"]
        assert [each["means"] for each in told] == ["signal"]
        assert two.stopped() is False
        without.told("reset", str(one.pid))
        told = without.told("set", str(one.pid), str(two.pid), "compute.freeze=1")["changes"]
        assert [(each["pid"], each["means"], each["done"]) for each in told] == [
            (pid, "cgroup", True) for pid in sorted([one.pid, two.pid])
        ]
        assert (group / "cgroup.freeze").read_text() == "1\n"
        assert without.row(two.pid)["frozen_by"] == ["cgroup"]
        assert without.run("reset", str(two.pid)).returncode == 0
        one.works()
        two.works()


def test_by_port(without: Bench) -> None:
    """A number that is no process's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = without.told("get", f"port:{port}", "cpu.nice")["values"]
        assert os.getpid() in [each["pid"] for each in found]


def test_never_touched(without: Bench) -> None:
    """Pid 1, memscaler, and whoever has started this command."""
    done = without.run("set", str(os.getpid()), "compute.freeze=1")
    assert done.returncode == 1
    assert "was started from it" in done.stderr
    done = without.run("set", "1", "cpu.nice=3")
    assert done.returncode == 1
    assert "never touched" in done.stderr
    command = [sys.executable, "-m", "memscaler", "gpuctl", "--help"]
    with subprocess.Popen([*command[:3], "help"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.send_signal(signal.SIGSTOP)
        try:
            done = without.run("set", str(other.pid), "cpu.nice=3")
            assert done.returncode == 1
            assert "memscaler itself" in done.stderr
        finally:
            other.kill()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["1", "compute.freze=1"], "did you mean compute.freeze?"),
        (["1", "compute.freeze=2"], "neither 0 nor 1"),
        (["1", "memory.limit=6 apples"], "no amount of memory"),
        (["1", "cpu.nice=5", "cpu.nice=6"], "twice"),
        (["1"], "nothing to set"),
        (["cpu.nice=5"], "no process"),
        (["no-such-unit.service", "cpu.nice=5"], "no-such-unit"),
        (["unit:no-such-unit", "cpu.nice=5"], "no-such-unit"),
        (["cgroup:/no-such-group", "cpu.nice=5"], "no process is in cgroup /no-such-group"),
        (["4194303", "cpu.nice=5"], "4194303"),
        (["1", "cpu.nice=5", "--how", "magic"], "none of"),
    ],
)
def test_mistakes(without: Bench, words: list[str], says: str) -> None:
    """What is wrong is said, and nothing done."""
    done = without.run("set", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr


# ---- beside the governor -------------------------------------------------------------------------------------------


def test_what_a_rule_does_is_marked(without: Bench, tmp_path: Path) -> None:
    """`ls` marks it, and `set` says who has the last word."""
    with batching(tmp_path / "job", *without.arguments()) as job, answering(without.folder) as loop:
        doing = Controlled("batch waits", job.pid, NAME, Knob.COMPUTE_FREEZE, Means.SIGNAL, 1, since_unix_s=time.time())
        state = Snapshot(
            0, 0.0, "0", "", "", False, (), (), KernelSnapshot({}, {}, 0), gpuctl=Gpuctl(1, controlled=(doing,))
        )
        told = {**STATUS, "gpuctl": document(state, {}, time.time() + 12)}
        loop.answer = lambda _request: told
        os.kill(job.pid, signal.SIGSTOP)
        text = without.run("ls").stdout
        assert "signal*" in text
        assert f'* rule "batch waits" has set compute.freeze of {job.pid} to frozen, 12s ago' in " ".join(text.split())
        done = without.run("set", str(job.pid), "compute.freeze=0")
        assert done.returncode == 0
        assert "what you set stays until the rule's next time" in " ".join(done.stdout.split())
        job.works()
        done = without.run("set", str(job.pid), "compute.freeze=1")
        assert "when it lets go, it puts back what was before" in " ".join(done.stdout.split())


def test_the_governor_s_boards_and_gvm_are_seen_without_being_named(with_gvm: Bench, job: Batch) -> None:
    """`ls` and `get` call a GPU alike, and as the governor does, which was started with options of its own."""
    gpus = [{"uuid": board.uuid, "gpu": f"gpu{at}"} for at, board in enumerate(with_gvm.driver.boards)]
    fake = with_gvm.fake
    state = Snapshot(0, 0.0, "0", "", "", False, (), (), KernelSnapshot({}, {}, 0))
    state = dataclasses.replace(state, gpuctl=Gpuctl(1, gvm_at=GvmAt(str(fake.root), str(fake.proc))))
    plain = [sys.executable, "-m", "memscaler", "gpuctl"]

    def told(*words: str) -> dict[str, Any]:
        command = [*plain, *words, "--runtime-dir", str(with_gvm.folder), "--json"]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=with_gvm.environment(), cwd=REPOSITORY
        )
        assert done.returncode == 0, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    with answering(with_gvm.folder) as loop:
        loop.answer = lambda _request: {**STATUS, "gpus": gpus, "gpuctl": document(state, {}, time.time())}
        seen = told("ls")
        assert (seen["gvm"], seen["nvml_why_not"]) == (True, "")
        (row,) = [each for each in seen["processes"] if each["pid"] == job.pid]
        (value,) = told("get", str(job.pid), "compute.priority")["values"]
        assert (row["gpu"], row["compute_priority"]) == (value["gpu"], value["value"]) == ("gpu1", 8)
        os.chown(with_gvm.folder / "control.sock", NOBODY, NOBODY)
        assert told("ls")["gvm"] is False, "another user does not say where root writes"


def test_ls_says_what_a_governor_that_is_gone_has_left(without: Bench) -> None:
    """Somebody may be frozen for ever; a governor that runs will see to it."""
    assert without.told("ls")["left"] == ""
    (without.folder / "gpuctl").mkdir()
    (without.folder / "gpuctl" / "1.json").write_text("{}")
    assert "memscaler restore" in without.told("ls")["left"]
    assert "memscaler restore" in " ".join(without.run("ls").stdout.split())
    with answering(without.folder):
        assert without.told("ls")["left"] == ""


def test_a_server_of_a_watched_port_is_frozen_by_hand_with_a_warning(without: Bench) -> None:
    """No rule would; nothing is done by a dry run."""
    code = "import socket; made = socket.create_server(('127.0.0.1', 0)); print(made.getsockname()[1], flush=True)"
    command = [sys.executable, "-c", f"{code}; input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            config = without.folder / "watching.toml"
            config.write_text(f"[[watch]]\nport = {int(server.stdout.readline())}\n")
            words = (str(server.pid), "compute.freeze=1", "--dry-run")
            assert "watched port" not in without.run("set", *words).stdout
            done = without.run("set", *words, "--config", str(config))
            assert done.returncode == 0, done.stderr
            assert f"{server.pid}: it serves a watched port" in " ".join(done.stdout.split())
        finally:
            server.kill()


def test_one_that_has_just_ended(without: Bench, tmp_path: Path) -> None:
    """It is not said that all is well with nobody."""
    with batching(tmp_path / "job", *without.arguments()) as job:
        pid = job.pid
        world = look(None, {"simulate": None, "runtime_dir": str(without.folder)}, tmp_path, None)
        subjects = world.resolved([str(pid)])
    for value in (0, 1):
        (done,) = change(world, subjects, Knob.COMPUTE_FREEZE, value, Orders("auto", 3.0, False, lambda _done: None))
        assert isinstance(done.error, Gone)


@pytest.mark.parametrize(
    "gpuctl",
    [
        [],
        {"controlled": {"pid": 1}},
        {"gvm_at": {"root": 7, "proc_root": "/proc", "gpu_map": {}}},
        {"gvm_at": {"root": "/no\0where", "proc_root": "/proc", "gpu_map": {}}},
        {"gvm_at": {"root": "/nowhere", "proc_root": "proc", "gpu_map": {"x": []}}},
        {"controlled": [1, None, {"pid": "PID", "knob": ["x"], "value": 10**400, "since_s": 1e999}]},
        {"controlled": [{"pid": 0, "rule": "\x1b[31m\nred", "knob": "compute.freeze", "since_s": "soon"}]},
    ],
)
def test_whatever_answers_at_the_control_socket(without: Bench, tmp_path: Path, gpuctl: object) -> None:
    """It is shown as text, or not at all."""
    with batching(tmp_path / "job", *without.arguments()) as job, answering(without.folder) as loop:
        text = json.dumps(gpuctl).replace('"pid": 0', f'"pid": {job.pid}')
        told = {**STATUS, "gpuctl": json.loads(text), "gpus": [7, {"uuid": [], "gpu": "\x1b"}]}
        loop.answer = lambda _request: told
        done = without.run("ls")
        assert (done.returncode, done.stderr) == (0, "")
        assert str(job.pid) in done.stdout
        assert "\x1b" not in done.stdout


AS_NOBODY = """
import contextlib, io, os, sys
sys.path[:0] = {path!r}
import memscaler.cli.main, memscaler.cli.client, memscaler.cli.simulated, memscaler.cli.steer, memscaler.config.load
import memscaler.cli.gpuctl.apart, memscaler.cli.gpuctl.change, memscaler.cli.gpuctl.doing, memscaler.cli.gpuctl.look
import memscaler.cli.gpuctl.text, memscaler.cli.gpuctl.words, memscaler.cli.gpuctl.world
import memscaler.daemon.requests, memscaler.gvm.capability, memscaler.gvm.journal, memscaler.gvm.named
import memscaler.gvm.turning
import memscaler.simulator.binding, memscaler.simulator.loading, memscaler.simulator.remote
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):  # what the command line imports late
    memscaler.cli.main.app(["gpuctl", "set", "--help"])
os.setgroups([]); os.setgid({nobody}); os.setuid({nobody})
sys.argv = ["memscaler", "gpuctl", *{words!r}]
memscaler.cli.main.main()
"""


def as_nobody(*words: str) -> subprocess.CompletedProcess[str]:
    """All is imported before the rights go: the repository may lie where only root can read."""
    code = AS_NOBODY.format(path=sys.path, nobody=NOBODY, words=words)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")


def test_one_s_own_without_root() -> None:
    """What is one's own may be set, but for a higher priority; a dry run knows that."""
    command = [shutil.which("sleep") or "", "999"]
    with subprocess.Popen(command, user=NOBODY, group=NOBODY, extra_groups=[]) as process:
        try:
            nice = os.getpriority(os.PRIO_PROCESS, process.pid)
            assert nice < 18, "the tests leave room below them"
            for word, code in ((f"cpu.nice={nice + 2}", 0), (f"cpu.nice={nice + 1}", 4), ("compute.freeze=1", 0)):
                for more in (["--dry-run"], []):
                    where = ("--gvm-root", "/nowhere", "--runtime-dir", "/tmp/none")
                    done = as_nobody("set", str(process.pid), word, *more, *where)
                    assert done.returncode == code, (word, more, done.stderr)
            assert os.getpriority(os.PRIO_PROCESS, process.pid) == nice + 2
        finally:
            process.kill()


def test_a_port_of_somebody_else_s_without_root() -> None:
    """It is there: not the number is wrong, but who asks. Nobody there is another matter."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for word in {f"port:{port}", *([] if Path(f"/proc/{port}").exists() else [str(port)])}:
            for what in ("set", "get"):
                done = as_nobody(what, word, "cpu.nice=3" if what == "set" else "cpu.nice")
                assert (done.returncode, done.stdout) == (4, ""), done.stderr
                assert f"who listens on port {port} can be seen by root only" in done.stderr
    done = as_nobody("set", f"port:{port}", "cpu.nice=3")
    assert (done.returncode, f"nobody listens on port {port}" in done.stderr) == (2, True)


def test_without_root(without: Bench, tmp_path: Path) -> None:
    """It is said that root is needed, with the exit code for that; nothing is changed."""
    hidden = tmp_path / "debug"
    hidden.mkdir(mode=0o700)
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o711)
    with batching(tmp_path / "job", *without.arguments()) as job:
        before = os.getpriority(os.PRIO_PROCESS, job.pid)
        for order in ("cpu.nice=-3", "compute.freeze=1", "memory.limit=6G"):
            done = as_nobody("set", str(job.pid), order, "--gvm-root", str(hidden), "--runtime-dir", "/tmp/none")
            assert (done.returncode, done.stdout) == (4, ""), done.stderr
            assert "hint: run as root" in done.stderr
        for order in ("cpu.nice=-3", "cpu.nice=3", "compute.freeze=1"):
            words = (str(job.pid), order, "--dry-run", "--gvm-root", "/nowhere", "--runtime-dir", "/tmp/none")
            done = as_nobody("set", *words)
            assert (done.returncode, done.stdout) == (4, ""), "a dry run says so, too"
            assert "it would be refused" in done.stderr
        assert os.getpriority(os.PRIO_PROCESS, job.pid) == before
        done = as_nobody("set", str(job.pid), "memory.limit=6G", "--gvm-root", "/nowhere", "--runtime-dir", "/tmp/none")
        assert done.returncode == 69, "root could not, either"
        job.works()


# ---- with a broken configuration -------------------------------------------------------------------------------------


def test_a_broken_configuration_does_not_keep_anybody_frozen(without: Bench, tmp_path: Path) -> None:
    """`reset` is the way out, and `ls` shows whom to let go: one line, and they go on. `set` refuses."""
    bad = tmp_path / "bad.toml"
    bad.write_text("no_such_key = 1\nidle_after = [\n")
    with batching(tmp_path / "batch", *without.arguments()) as job:
        assert without.run("set", str(job.pid), "compute.freeze=1").returncode == 0
        job.stands_still()
        listed = without.run("ls", "--config", str(bad))
        assert listed.returncode == 0, listed.stderr
        assert str(job.pid) in listed.stdout
        assert without.run("set", str(job.pid), "cpu.nice=5", "--config", str(bad)).returncode == 78
        done = without.run("reset", str(job.pid), "--config", str(bad))
        assert done.returncode == 0, done.stderr
        (line,) = done.stderr.splitlines()
        assert "the configuration is left out" in line
        assert str(bad) in line
        job.works()


def test_a_rule_that_stops_by_signal_says_nothing_about_gvm_s_file(with_gvm: Bench, job: Batch) -> None:
    """One act, one footnote: of the means that the rule has used."""
    rule = Controlled("batch", job.pid, NAME, Knob.COMPUTE_FREEZE, Means.SIGNAL, 1, 0, since_unix_s=time.time() - 9)
    state = Snapshot(
        0, 0.0, "0", "", "", False, (), (), KernelSnapshot({}, {}, 0), gpuctl=Gpuctl(1, controlled=(rule,))
    )
    told = {**STATUS, "gpuctl": document(state, {}, time.time())}
    os.kill(job.pid, signal.SIGSTOP)
    job.stands_still()
    with answering(with_gvm.folder) as loop:
        loop.answer = lambda _request: told
        done = with_gvm.run("set", str(job.pid), "compute.freeze=0")
        assert done.returncode == 0, done.stderr
        text = " ".join(done.stdout.split())
        assert text.count('rule "batch"') == 1
        assert "what you set stays until the rule's next time" in text
        assert "a process that comes back to its GPU" not in text
        again = with_gvm.run("set", str(job.pid), "compute.freeze=0")
        assert "a process that comes back to its GPU" not in " ".join(again.stdout.split())
