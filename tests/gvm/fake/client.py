"""To start the fake driver, and to talk to it: as a process that uses a GPU, or as a test that moves things."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.governor import REPOSITORY, eventually

FILES = Path(__file__).parent


class Device:
    """One open /dev/nvidia-uvm. Its entries go when it is closed, or when its process ends."""

    def __init__(self, control: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(control))
        self._answers = self._socket.makefile("rb")

    def ask(self, do: str, **more: Any) -> Any:
        self._socket.sendall(json.dumps({"do": do, **more}).encode() + b"\n")
        answer = json.loads(self._answers.readline())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["ok"]

    def close(self) -> None:
        self._answers.close()
        self._socket.close()


@dataclass(frozen=True, slots=True)
class Written:
    """One write(2) that came: at_ns of the monotonic clock."""

    at_ns: int
    tid: int
    number: int
    file: str
    text: str


class FakeGvm:
    """The running fake. root: its debugfs; proc: its /proc; environment: what who writes is to be started with."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.root, self.proc, self.control = folder / "debug", folder / "proc", folder / "control"
        self.environment = {"LD_PRELOAD": str(status_library(folder))}
        self._log = (folder / "log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.gvm.fake", str(self.root), str(self.proc), str(self.control)],
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        try:
            eventually(self._up, within_s=30, what=f"the fake driver: {folder / 'log'}")
            self._device = Device(self.control)
        except BaseException:
            print((folder / "log").read_text(errors="replace"))
            self.stop()
            raise

    @property
    def processes(self) -> Path:
        return self.root / "nvidia-uvm" / "processes"

    def _up(self) -> bool:
        assert self.process.poll() is None, "it has ended"
        return (self.processes / "list").exists() and self.control.exists()

    def device(self) -> Device:
        return Device(self.control)

    def ask(self, do: str, **more: Any) -> Any:
        return self._device.ask(do, **more)

    def trap(self, on: str, path: str, **more: Any) -> None:
        """The next operation of that kind there goes otherwise: see model.Trap. error is a name: "EIO"."""
        self.ask("trap", on=on, path=path, **more)

    def writes(self, file: str = "") -> list[Written]:
        every = [Written(*each) for each in self.ask("log")]
        return [each for each in every if not file or each.file == file]

    def number(self, uuid: str) -> int:
        return int(self.ask("number", uuid=uuid))

    def read(self, tid: int, number: int, file: str) -> str:
        return (self.processes / str(tid) / str(number) / file).read_text().strip()

    def frozen(self, tid: int, number: int = 0) -> bool:
        return self.read(tid, number, "compute.freeze") == "1"

    def stop(self) -> None:
        """It unmounts what it has mounted; what is left after a hard end is unmounted here."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._log.close()
        mounted = Path("/proc/self/mountinfo").read_text()
        for path in (self.processes, self.proc / "driver", self.proc):
            if f" {path} " in mounted:
                subprocess.run(["umount", "-l", str(path)], check=False, capture_output=True)


def status_library(folder: Path) -> Path:
    """status.c, compiled."""
    built = folder / "status.so"
    if not built.exists():
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(built), str(FILES / "status.c"), "-ldl"], check=True)
    return built


def own_device(control: Path) -> Device:
    """An opened device of this very thread."""
    device = Device(control)
    device.ask("open", tid=threading.get_native_id())
    return device
