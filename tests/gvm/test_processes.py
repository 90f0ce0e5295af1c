"""Who is who: by pid, thread, unit, container, user and port; who is meant by a rule, and who never is."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import memscaler
from memscaler.child.standstill import stands_still
from memscaler.config.gpuctl import Match
from memscaler.core.errors import MemscalerError, UsageError
from memscaler.gvm.freezing import Cgroups
from memscaler.gvm.named import listeners, resolve
from memscaler.gvm.processes import (
    about,
    cgroup_of,
    is_alive,
    is_memscaler,
    matching,
    process_of,
    started_at,
    threads_of,
    untouchable,
)
from memscaler.kernel.processes import Processes
from tests.governor import eventually, governing
from tests.gvm.workers import Worker, cgroup, join

CONTAINER = "c0ffee" + "0" * 58
LISTEN = """
import os, socket, subprocess, sys
server = socket.create_server(("127.0.0.1", 0))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
print(server.getsockname()[1], child.pid, flush=True)
try: sys.stdin.read()
finally: child.kill(); child.wait()
"""


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    made = Worker(tmp_path, threads=2)
    yield made
    made.end()


class Server:
    """Listens, and has started a child that has the GPU."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", LISTEN]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.port, self.child = map(int, self.process.stdout.readline().split())

    @property
    def pid(self) -> int:
        return self.process.pid


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    with contextlib.suppress(BrokenPipeError):
        made.process.communicate(timeout=30)


def fitting(text: str, *pids: int, servers: tuple[int, ...] = ()) -> list[int]:
    kind, _, rest = text.partition(":")
    match = Match(kind, rest)  # type: ignore[arg-type]
    return sorted(matching([match], Processes.look(), among=pids or None, servers=servers))


# ---- one process ----------------------------------------------------------------------------------------------------


def test_what_is_known_of_one(worker: Worker) -> None:
    subject = about(worker.pid, Processes.look())
    assert subject is not None
    assert (subject.pid, subject.user, subject.container) == (worker.pid, "root", "")
    assert subject.name.startswith("python")
    assert is_alive(worker.pid, subject.started)
    assert not is_alive(worker.pid, subject.started + 1)
    assert not stands_still(worker.pid)
    os.kill(worker.pid, 19)
    eventually(lambda: stands_still(worker.pid), what="it to stand still")
    processes = Processes.look()
    worker.end()
    assert about(worker.pid, processes) is None
    assert started_at(worker.pid) is None
    assert cgroup_of(worker.pid) == ""


def test_threads_and_their_processes(worker: Worker) -> None:
    """A3, both ways."""
    first, second = threads_of(worker.pid)
    assert first == worker.pid
    assert process_of(first) == process_of(second) == worker.pid
    worker.end()
    assert process_of(second) is None
    assert threads_of(worker.pid) == ()


def test_units_and_containers_are_told_by_the_cgroup(worker: Worker) -> None:
    with cgroup("batch.service") as folder:
        join(folder, worker)
        subject = about(worker.pid, Processes.look())
        assert subject is not None
        assert subject.unit == folder.name
        assert subject.cgroup == f"/{folder.name}"
        inside = folder / f"libpod-payload-{CONTAINER}"
        inside.mkdir()
        join(inside, worker)
        subject = about(worker.pid, Processes.look())
        assert subject is not None
        assert (subject.unit, subject.container) == (folder.name, CONTAINER[:12])
        join(folder, worker)
        inside.rmdir()


# ---- which ones a rule means ----------------------------------------------------------------------------------------


def test_matches(worker: Worker, server: Server) -> None:
    pid = worker.pid
    name = f"memscaler-test-{os.getpid()}-batch.service"
    with cgroup("batch.service") as folder:
        join(folder, worker)
        for text in (f"unit:{name}", "unit:memscaler-test-*", f"unit:{name.removesuffix('.service')}"):
            assert fitting(text, pid, server.pid) == [pid], text
        for text in (f"cgroup:/{name}", "cgroup:/memscaler-test-*", "cgroup:/*-batch.*"):
            assert fitting(text, pid, server.pid) == [pid], text
        for text in ("cgroup:/", f"cgroup:/{name[:-1]}", f"cgroup:/{name}/*", f"cgroup:/{name}/"):
            assert fitting(text, pid) == [], f"{text}: exactly that path, or what is below it"
        below = folder / "inside"
        below.mkdir()
        join(below, worker)
        assert fitting(f"cgroup:/{name}/*", pid) == [pid]
        assert fitting(f"cgroup:/{name}", pid) == []
        join(folder, worker)
        below.rmdir()
        assert pid in fitting(f"unit:{name}"), "nobody is left out untold"
    mount = Cgroups.find()
    assert mount is not None
    (mount.mount / "cgroup.procs").write_text(str(pid))
    of_systemd = [
        line.rpartition(":")[2] for line in Path(f"/proc/{pid}/cgroup").read_text().split("\n") if "=systemd:" in line
    ]
    assert fitting("cgroup:/", pid) == [pid], "its line of version 2 says 0::/"
    assert fitting("cgroup:/*", pid) == ([] if set(of_systemd) <= {"/"} else [pid]), "it is there, and not below"
    for text in ("name:python*", f"name:{Path(sys.executable).name}", "user:root", "user:0", "user:ro?t"):
        assert fitting(text, pid) == [pid], text
    assert fitting(f"exe:{Path(sys.executable).resolve().parent}/*", pid) == [pid]
    assert fitting("server", pid, server.pid, server.child, servers=(server.pid,)) == sorted((server.pid, server.child))
    for text in ("unit:other.service", "name:ruby*", "exe:/nowhere/*", "user:nobody", "user:1", "container:*"):
        assert fitting(text, pid) == [], text
    assert fitting("server", pid) == []


def test_containers_match_by_id(worker: Worker) -> None:
    with cgroup("slice") as folder:
        inside = folder / f"docker-{CONTAINER}.scope"
        inside.mkdir()
        join(inside, worker)
        for text in (f"container:{CONTAINER[:12]}", f"container:{CONTAINER}", "container:c0ff*"):
            assert fitting(text, worker.pid) == [worker.pid], text
        for text in ("container:c0f", "container:web", "unit:docker-web.scope"):
            assert fitting(text, worker.pid) == [], text


def test_the_first_match_is_told(worker: Worker) -> None:
    matches = (Match("name", "ruby"), Match("user", "root"), Match("name", "python*"))
    assert matching(matches, Processes.look(), among=[worker.pid, 1 << 22]) == {worker.pid: matches[1]}


# ---- which ones are left alone --------------------------------------------------------------------------------------


def test_servers_and_their_families_are_left_alone(worker: Worker, server: Server) -> None:
    processes = Processes.look()
    found = untouchable(processes, listeners=listeners([server.port], processes)[server.port])
    assert "serves a watched port" in found[server.pid]
    assert "started it" in found[server.child]
    assert worker.pid not in found
    assert 1 in found


def test_what_shares_a_service_with_a_server_is_left_alone(worker: Worker, server: Server) -> None:
    """A launcher may listen in one child and compute in another."""
    with cgroup("engine.service") as folder:
        (folder / "cgroup.procs").write_text(str(server.pid))
        join(folder, worker)
        found = untouchable(Processes.look(), listeners=[server.pid])
        assert "engine.service" in found[worker.pid]
    with cgroup("session-1.scope") as folder:
        (folder / "cgroup.procs").write_text(str(server.pid))
        join(folder, worker)
        assert worker.pid not in untouchable(Processes.look(), listeners=[server.pid]), "a session is no server"


def test_a_running_governor_and_its_guardian_are_left_alone(tmp_path: Path) -> None:
    with governing(tmp_path / "run", "a40", "--port", "9") as governor:
        found = untouchable(Processes.look())
        for pid in (governor.pid, governor.guardian_pid):
            assert "memscaler itself" in found[pid]


def test_memscaler_is_known_by_its_command_line() -> None:
    package = Path(memscaler.__file__).parent
    code = "import sys; sys.argv; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, "-m", "memscaler"], stdin=subprocess.PIPE) as stranger:
        found = untouchable(Processes.look(), ours=[os.getpid()])
        assert os.getpid() in found
        assert stranger.pid not in found, "its arguments are its own"
        stranger.communicate()
    for argv in (
        ("/usr/bin/python3", "-m", "memscaler", "run"),
        ("python3", "-P", "-m", "memscaler.cli"),
        ("/usr/bin/python3", "/usr/local/bin/memscaler", "serve"),
        ("memscaler", "top"),
        ("python3", "-P", f"{package}/sleep/run.py", "3"),
    ):
        assert is_memscaler(argv), argv
    for argv in (
        (),
        ("python3", "/home/bob/memscaler/train.py"),
        ("python3", "train.py", "memscaler"),
        ("python3", "-m", "train"),
        ("python3", "-P", f"{package}/servers/engine.py", "--port", "8080"),
        ("python3", "-m"),
    ):
        assert not is_memscaler(argv), argv


def test_the_driver_s_own_are_left_alone(tmp_path: Path) -> None:
    """Whoever stops MPS stops all of its clients."""
    program = tmp_path / "nvidia-cuda-mps-server"
    shutil.copy(shutil.which("sleep") or "", program)
    with subprocess.Popen([str(program), "99"]) as process:
        eventually(lambda: Path(f"/proc/{process.pid}/comm").read_text().startswith("nvidia"), what="its name")
        assert "MPS" in untouchable(Processes.look())[process.pid]
        process.kill()


# ---- which ones a person means --------------------------------------------------------------------------------------


def test_a_number_is_a_process_a_thread_or_a_port(worker: Worker, server: Server) -> None:
    processes = Processes.look()
    first, second = threads_of(worker.pid)
    for text in (f"{first}", f"pid:{first}", f"pid:{second}"):
        assert resolve(text, processes) == {worker.pid}, text
    assert resolve(f"port:{server.port}", processes) == {server.pid, server.child}


def test_a_number_that_is_both_is_asked_back() -> None:
    """A port is taken that is some process's pid."""
    pid = next(each for each in Processes.look().pids if 1 < each < 1 << 16 and _free(each))
    with socket.create_server(("127.0.0.1", pid)):
        processes = Processes.look()
        with pytest.raises(UsageError, match="is a process and a port") as refused:
            resolve(str(pid), processes)
        assert f"port:{pid}" in refused.value.hint
        assert os.getpid() in resolve(f"port:{pid}", processes)
        assert resolve(f"pid:{pid}", processes) == {pid}


def _free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_units_and_containers_by_name(worker: Worker) -> None:
    with cgroup("batch.service") as folder:
        join(folder, worker)
        processes = Processes.look()
        for text in (folder.name, folder.name.removesuffix(".service"), f"unit:{folder.name}", "unit:memscaler-test-*"):
            assert resolve(text, processes) == {worker.pid}, text
        for text in (f"cgroup:/{folder.name}", f"cgroup:/{folder.name}/", "cgroup:/memscaler-test-*"):
            assert resolve(text, processes) == {worker.pid}, text
    with cgroup("slice") as folder:
        inside = folder / f"docker-{CONTAINER}.scope"
        inside.mkdir()
        join(inside, worker)
        processes = Processes.look()
        for text in (CONTAINER[:12], f"container:{CONTAINER[:12]}", "container:c0ffee*", f"cgroup:/{folder.name}/*"):
            assert resolve(text, processes) == {worker.pid}, text
        for text in (f"cgroup:/{folder.name}", f"cgroup:/{folder.name}/"):
            with pytest.raises(UsageError, match="no process is in cgroup") as refused:
                resolve(text, processes)
            assert f"cgroup:/{folder.name}/*" in refused.value.hint, "nobody is in it, but below it"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pid:",
        "pid:x",
        "port:1",
        "pid:4194305",
        "none.service",
        "nothing",
        "container:*no*",
        "gpu:1",
        "x y",
        "cgroup:/no",
        "cgroup:x",
    ],
)
def test_nobody_is_told_with_the_reason(text: str) -> None:
    with pytest.raises(MemscalerError) as refused:
        resolve(text, Processes.look())
    assert str(refused.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("4194304", "there is no process or port 4194304"),
        ("port:1", "nobody listens on port 1"),
        ("cgroup:x", "no path of a cgroup (write /batch.slice, or /batch.slice/* for all below it)"),
    ],
)
def test_what_to_write_instead(text: str, says: str) -> None:
    """A number that is nobody's: where the processes are listed; what a cgroup's path is like."""
    with pytest.raises(UsageError) as refused:
        resolve(text, Processes.look())
    assert says in str(refused.value)
    assert ("gpuctl ls" in refused.value.hint) == ("x" not in text)


def test_processes_that_end_while_they_are_looked_at(tmp_path: Path) -> None:
    """No error, whoever goes when."""
    stop = threading.Event()
    errors: list[BaseException] = []
    matches = tuple(Match(kind, "*") for kind in ("container", "exe", "cgroup"))

    def look() -> None:
        try:
            while not stop.is_set():
                processes = Processes.look()
                matching(matches, processes)
                untouchable(processes)
                for pid in list(processes.pids)[-20:]:
                    about(pid, processes)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(60):
        subprocess.run(["/bin/true"], check=True, cwd=tmp_path)
    stop.set()
    thread.join()
    assert errors == []
