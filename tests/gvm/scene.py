"""The whole scene on one simulated GPU: `memscaler run`, a real llama.cpp server, and a batch job that a rule holds."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memscaler.simulator import SimulatedDriver
from memscaler.simulator.loading import STATE
from tests.daemon.servers import llama
from tests.governor import Governor, alive, eventually, governing
from tests.gvm.batch import NAME, Batch, batching, own_cgroup
from tests.gvm.fake.client import FakeGvm
from tests.patience import patience

RULE = """
[[gpuctl]]
name = "batch"
while = "busy"
processes = ["{who}"]
freeze = true
how = "{how}"
release_after = "300ms"
look_every = "500ms"
"""
HEAD = """
idle_after = "300ms"
min_dwell = 0
"""
CLONE3, SIGCHLD = 435, 17


@dataclass(frozen=True, slots=True)
class Server:
    """Whom clients come to."""

    port: int
    pid: int


class Scene:
    """What a test moves. how: by what the batch job is frozen."""

    def __init__(self, folder: Path, how: str, fake: FakeGvm | None, server: Server, head: str, gpus: int) -> None:
        self.folder, self.how, self.fake, self.server, self._head = folder, how, fake, server, head
        self.run = folder / "run"
        state = self.run / STATE
        state.parent.mkdir(parents=True)
        self.boards = ["a40"] * gpus
        self.driver = SimulatedDriver.create(state, self.boards)
        self.board = self.driver.boards[-1]
        self.board.add_process(server.pid, 8 << 30)
        self.cgroup: Path | None = None
        self.batch: Batch  # `staged` makes them
        self.governor: Governor

    # ---- who is there

    def arguments(self, index: int = -1) -> list[str]:
        """Of a batch job on one of the GPUs, usually the server's."""
        board = self.driver.boards[index]
        told = ["--board", str(self.run / STATE), str(board.index)]
        if self.fake is not None:
            told += ["--gvm", str(self.fake.control), board.uuid]
        return told

    def config(self, rule: str | None = None) -> Path:
        who = {"gvm": f"name:{NAME}", "signal": "user:root", "cgroup": f"cgroup:/{self.cgroup and self.cgroup.name}"}
        path = self.folder / "config.toml"
        text = self._head + f'[[watch]]\nport = {self.server.port}\ngpus = ["gpu{self.board.index}"]\n'
        root = self.fake.root if self.fake else self.folder / "no-debugfs"
        text += f'[gvm]\nroot = "{root}"\n'
        if self.fake:
            text += f'proc_root = "{self.fake.proc}"\n'
        text += RULE.format(who=who[self.how], how=self.how) if rule is None else rule
        draft = path.with_suffix(".new")
        draft.write_text(text)
        draft.rename(path)
        return path

    # ---- what happens

    @contextlib.contextmanager
    def client(self, *, stays: bool = False) -> Iterator[Client]:
        """Somebody is connected. stays: however long it takes; llama.cpp hangs up on who says nothing for 5 s."""
        visitor, over = Client(self.server.port), threading.Event()
        talking = threading.Thread(target=self._talk, args=(over,))
        if stays:
            talking.start()
        try:
            yield visitor
        finally:
            over.set()
            if stays:
                talking.join()
            visitor.close()

    def _talk(self, over: threading.Event) -> None:
        with contextlib.ExitStack() as connections:
            while not over.wait(1.0):
                another = Client(self.server.port)
                connections.callback(another.close)
                another.complete()

    def known(self) -> None:
        """One visit, after which the arbiter knows who is there; then all is quiet again."""
        with self.client():
            self.is_frozen()
        self.batch.works(within_s=30)

    def parked(self) -> None:
        eventually(lambda: bool(self.board.locks), within_s=30, what="the GPU parks")

    def awake(self) -> None:
        """The job keeps the GPU up, from a visit on: while a GPU is parked its load is looked at every 15 s only."""
        with self.client():
            eventually(lambda: not self.board.locks, within_s=30, what="the GPU is up")
            self.is_frozen()
            self.board.set_utilization(90)
        self.batch.works(within_s=30)

    def is_frozen(self, within_s: float = 30.0) -> int:
        """By the means that the rule names, and by no other. Returns when its last kernel ended, monotonic ns."""
        eventually(lambda: self.frozen_by() == {self.how}, within_s=within_s, what=f"it is frozen by {self.how} alone")
        return self.batch.stands_still()

    def frozen_by(self) -> set[str]:
        found = set()
        if self.batch.stopped():
            found.add("signal")
        if self.fake is not None and self.fake.frozen(self.batch.tid):
            found.add("gvm")
        if self.cgroup is not None and (self.cgroup / "cgroup.freeze").read_text().strip() == "1":
            found.add("cgroup")
        return found

    def is_free(self) -> None:
        """It works, and nothing is left of a freeze."""
        eventually(lambda: not self.frozen_by(), within_s=30, what="nothing is frozen")
        self.batch.works()

    # ---- the processes

    def arbiter(self) -> int:
        return int(self.governor.events("arbiter.started")[-1]["pid"])

    def told(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "memscaler", *arguments, "--runtime-dir", str(self.run)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60 * patience())

    def state(self) -> dict[str, Any]:
        """What the status says of all this."""
        found: dict[str, Any] = json.loads(self.told("status", "--json").stdout)["gpuctl"]
        return found

    def kill(self, *whom: str) -> None:
        """With kill -9, all at once: governor, arbiter, guardian."""
        pids = {"governor": self.governor.pid, "arbiter": self.arbiter(), "guardian": self.governor.guardian_pid}
        for name in whom:  # nobody may see the other's end before its own
            os.kill(pids[name], signal.SIGSTOP)
        for name in whom:
            os.kill(pids[name], signal.SIGKILL)
        for name in whom:
            if name == "governor":
                self.governor.process.wait()
            eventually(lambda pid=pids[name]: not alive(pid), what=f"the end of the {name}")


class Client:
    """Of llama.cpp, on one connection. connected_ns: of the monotonic clock, when connect() returned."""

    def __init__(self, port: int) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=60 * patience())
        self.asked_ns = time.monotonic_ns()
        self._http.connect()
        self.connected_ns = time.monotonic_ns()

    def complete(self) -> None:
        """It is served."""
        body = json.dumps({"prompt": "Once", "n_predict": 2})
        self._http.request("POST", "/completion", body, {"Content-Type": "application/json"})
        answer = self._http.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()

    def close(self) -> None:
        self._http.close()


@contextlib.contextmanager
def scene(folder: Path, model: Path, how: str, **more: Any) -> Iterator[Scene]:
    """All of it, with llama.cpp's server. more: see `staged`."""
    with llama(folder, model) as server, staged(folder, Server(server.port, server.process.pid), how, **more) as made:
        yield made


@contextlib.contextmanager
def staged(
    folder: Path,
    server: Server,
    how: str,
    *,
    rule: str | None = None,
    batch: tuple[str, ...] = (),
    head: str = HEAD,
    gpus: int = 1,
) -> Iterator[Scene]:
    """All but the server, started; at the end all of it is gone, whatever the test did.

    rule: another than RULE; batch: more arguments of the job; head: the first lines of the configuration; gpus:
    how many there are, the last one is the server's.
    """
    with contextlib.ExitStack() as kept:
        fake = None
        if how == "gvm":
            fake = FakeGvm(folder / "gvm")
            kept.callback(fake.stop)
        made = Scene(folder, how, fake, server, head, gpus)
        kept.callback(made.driver.close)
        if how == "cgroup":
            made.cgroup = kept.enter_context(own_cgroup(f"memscaler-test-{os.getpid()}-{time.monotonic_ns()}"))
        arguments = (*made.arguments(), *batch)
        made.batch = kept.enter_context(batching(folder / "batch", *arguments, cgroup=made.cgroup))
        told = ["--config", str(made.config(rule))]
        environment = fake.environment if fake else {}
        made.governor = kept.enter_context(governing(made.run, ",".join(made.boards), *told, env=environment))
        yield made


def with_pid(pid: int, *command: str) -> None:
    """A child with that pid, which must be free: what the kernel may give to anybody some day."""
    wanted = ctypes.c_int(pid)
    # struct clone_args: exit_signal is the fifth word, set_tid and its size the ninth and tenth
    words = [0, 0, 0, 0, SIGCHLD, 0, 0, 0, ctypes.addressof(wanted), 1, 0]
    args = (ctypes.c_uint64 * len(words))(*words)
    child = ctypes.CDLL(None, use_errno=True).syscall(CLONE3, ctypes.byref(args), ctypes.sizeof(args))
    if child == 0:
        try:
            os.execvp(command[0], command)
        finally:
            os._exit(127)
    assert child == pid, os.strerror(ctypes.get_errno())
