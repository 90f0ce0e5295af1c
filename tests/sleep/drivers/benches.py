"""Servers, programs and managers that are not to be had, as processes of their own; and what drivers are made with."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from memscaler.config.stages import StageRule
from memscaler.core.stages import Stage
from memscaler.simulator import SimulatedDriver
from memscaler.sleep.drivers.make import Around, drivers
from memscaler.sleep.drivers.protocol import Call, Driver, NotAnnounced, Target
from tests.patience import patience
from tests.servers.bench import eventually, free_port

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]
PYTHON = "/usr/bin/python3"
NAMED = "import time; time.sleep(10000)"


def within(seconds: float = 60.0, abandoned: Callable[[], bool] = lambda: False) -> Call:
    return Call.within(seconds * patience(), abandoned)


def rule(stage: Stage, **more: Any) -> StageRule:
    return StageRule(stage=stage, after_s=1.0, **more)


class Announced:
    """An `announce` that writes down what it was told, and may refuse."""

    def __init__(self) -> None:
        self.ports: list[int] = []
        self.open: set[int] = set()
        self.keys: set[str] = set()
        self.refusals = 0

    @contextlib.contextmanager
    def __call__(self, key: str, local: tuple[str, int], to: tuple[str, int]) -> Iterator[None]:
        assert local[0] == to[0]
        if self.refusals:
            self.refusals -= 1
            raise NotAnnounced
        self.keys.add(key)
        self.ports.append(local[1])
        self.open.add(local[1])
        try:
            yield
        finally:
            self.open.discard(local[1])


class Started:
    """A process, and what else it has started; all are killed at the end."""

    def __init__(self, words: list[str], folder: Path, *, executable: str | None = None, **environment: str) -> None:
        with (folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                words,
                executable=executable,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env={**os.environ, "FAKE_STATE": str(folder), **environment},
                start_new_session=True,
            )
        self.pid = self.process.pid
        self._folder = folder

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()

    def calls(self) -> list[str]:
        """What was asked, in order: METHOD PATH, or a command line."""
        file = self._folder / "calls"
        return [" ".join(line.split()[:2]) for line in file.read_text().splitlines()] if file.exists() else []

    def peers(self) -> list[int]:
        """Ports from which it was asked."""
        return [int(line.split()[2]) for line in (self._folder / "calls").read_text().splitlines()]

    def faults(self, **now: Any) -> None:
        draft = self._folder / "faults.new"
        draft.write_text(json.dumps(now))
        draft.rename(self._folder / "faults.json")


class Vllm(Started):
    """A fake vLLM with memory on the first simulated board."""

    def __init__(
        self, folder: Path, machine: SimulatedDriver | None, *options: str, dev: bool = True, **more: str
    ) -> None:
        script = folder / "vllm/entrypoints/openai/api_server.py"
        script.parent.mkdir(parents=True)
        shutil.copy(HERE / "fake_vllm.py", script)
        self.port = free_port()
        environment = {"PYTHONPATH": str(REPOSITORY), **more}
        if dev:
            environment["VLLM_SERVER_DEV_MODE"] = "1"
        if machine is not None:
            environment["FAKE_BOARDS"] = str(machine.state_path)
        super().__init__([sys.executable, str(script), "--port", str(self.port), *options], folder, **environment)
        eventually(lambda: listens(self.port), what=(folder / "log").read_text)

    @property
    def target(self) -> Target:
        return Target(str(self.port), self.port, pids=(self.pid,))

    def complete(self, timeout_s: float = 30.0) -> str:
        """A client's request."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/v1/completions", b"{}")
        with urllib.request.urlopen(request, timeout=timeout_s * patience()) as answer:
            return str(json.loads(answer.read())["choices"][0]["text"])


def listens(port: int) -> bool:
    """Without connecting."""
    from memscaler.kernel.sock_diag import SockDiag

    diag = SockDiag()
    try:
        return bool(diag.listeners(port))
    finally:
        diag.close()


class Cuda:
    """A fake cuda-checkpoint, and a process with memory on the first simulated board."""

    def __init__(self, folder: Path, machine: SimulatedDriver, **environment: str) -> None:
        self.folder = folder
        self.program = folder / "cuda-checkpoint"
        self.program.write_text(f"#!{PYTHON}\n" + (HERE / "fake_cuda.py").read_text())
        self.program.chmod(0o755)
        self.server = Started([PYTHON, "-c", NAMED], folder, **environment)
        self.board = machine.boards[0]
        self.board.add_process(self.server.pid, 100 << 20)
        self.runtime = folder / "run"

    @property
    def pid(self) -> int:
        return self.server.pid

    @property
    def target(self) -> Target:
        return Target("8080", 8080, gpus=(self.board.uuid,), pids=(self.pid,))

    @property
    def state(self) -> str:
        file = self.folder / f"{self.pid}.state"
        return file.read_text() if file.exists() else "running"

    @state.setter
    def state(self, word: str) -> None:
        (self.folder / f"{self.pid}.state").write_text(word)

    def faults(self, **now: Any) -> None:
        self.server.faults(**now)

    def actions_or_none(self) -> list[str]:
        return self.actions() if (self.folder / "calls").exists() else []

    def actions(self) -> list[str]:
        """Those that change something, in order."""
        words = [line.split() for line in (self.folder / "calls").read_text().splitlines()]
        return [each[each.index("--action") + 1] for each in words if "--action" in each]

    @property
    def rule(self) -> StageRule:
        return rule(Stage.CHECKPOINT, program=str(self.program))

    def driver(self, root: Path = Path("/")) -> Driver:
        return drivers(Around(self.runtime, root=root))[Stage.CHECKPOINT]

    def kill(self) -> None:
        assert not (self.folder / "overlapped").exists(), "two calls at once for one process"
        self.server.kill()
        for file in self.runtime.glob("cuda-*.lock"):  # a call that hangs still
            with contextlib.suppress(ValueError, IndexError, ProcessLookupError):
                os.kill(int(file.read_text().split()[0]), signal.SIGKILL)


def wait_gone(pid: int) -> None:
    end = time.monotonic() + 10 * patience()
    while Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < end
        time.sleep(0.01)
