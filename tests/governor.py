"""The real thing under test: `memscaler run` as a process, with simulated boards, and what one can see of it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from memscaler.simulator import SimulatedDriver
from tests.patience import patience

Value = TypeVar("Value")
REPOSITORY = Path(__file__).resolve().parent.parent


def eventually(ask: Callable[[], Value], *, within_s: float = 10.0, what: str = "") -> Value:
    """The first true answer; AssertionError if there is none in time."""
    start = time.monotonic()
    while True:
        answer = ask()
        if answer:
            return answer
        waited_s = time.monotonic() - start
        if waited_s > within_s * patience():
            raise AssertionError(f"not within {within_s} s: {what or ask}")
        time.sleep(min(0.02, max(0.002, waited_s / 20)))  # asking takes time from what is waited for


class Governor:
    """One `memscaler run`. Its log is printed if a test fails inside `governing`."""

    def __init__(  # noqa: PLR0913  # a test names what it cares about
        self,
        runtime_dir: Path,
        boards: str,
        *arguments: str,
        python: str = sys.executable,
        prefix: tuple[str, ...] = (),
        cwd: Path = REPOSITORY,
        env: Mapping[str, str] | None = None,
        run_file: bool = False,
        by_connections: bool = True,
    ) -> None:
        """run_file: start the package by its path, not by its name, whatever the current folder holds.

        by_connections: whoever is connected is at work, however silent or short; False: what the product does untold.
        """
        self.runtime_dir = runtime_dir
        runtime_dir.mkdir(parents=True, exist_ok=True)
        self.log_path = runtime_dir / f"log-{time.monotonic_ns()}"
        what = ["-P", str(REPOSITORY / "memscaler" / "__main__.py")] if run_file else ["-m", "memscaler"]
        command = [*prefix, python, *what, "run", "--simulate", boards, "--runtime-dir", str(runtime_dir)]
        command += ["--log-format", "json", *arguments]
        if "--metrics" not in arguments:
            command += ["--metrics", "off"]
        if by_connections:
            command += ["--quiet", "no-connections", "--touch", "off"]
        environment = {**os.environ, **(env or {})}
        if run_file:
            environment["PYTHONPATH"] = str(REPOSITORY)
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=cwd, env=environment
            )

    @functools.cached_property
    def driver(self) -> SimulatedDriver:
        return SimulatedDriver.attach(self.runtime_dir / "simulator" / "state")

    def events(self, name: str = "") -> list[dict[str, Any]]:
        """What the log says, or the events of one name."""
        found = []
        for line in self.log_path.read_text(errors="replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                event = json.loads(line)
                if not name or event["event"] == name:
                    found.append(event)
        return found

    def wait_started(self, within_s: float = 90.0) -> None:
        eventually(lambda: self.events("memscaler.started") or self.ended(), within_s=within_s, what="start")
        assert self.events("memscaler.started"), self.log_path.read_text()

    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def guardian_pid(self) -> int:
        return int(self.events("guardian.started")[-1]["pid"])

    def metrics(self) -> str:
        """One scrape."""
        address = self.events("metrics.served")[-1]["address"]
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    def stop(self, number: int = signal.SIGTERM, within_s: float = 10.0) -> int:
        """Signal it and wait for its end. Returns the exit status."""
        if not self.ended():
            self.process.send_signal(number)
        return self.process.wait(within_s)


@contextlib.contextmanager
def governing(runtime_dir: Path, boards: str, *arguments: str, **more: Any) -> Iterator[Governor]:
    """A started governor that is gone afterwards, whatever the test did."""
    governor = Governor(runtime_dir, boards, *arguments, **more)
    try:
        governor.wait_started()
        yield governor
    except BaseException:
        print(governor.log_path.read_text(errors="replace")[-8000:])
        raise
    finally:
        if not governor.ended():
            governor.process.kill()
        governor.process.wait()


def listener(host: str = "127.0.0.1") -> socket.socket:
    """A listening socket on a free port; the backlog accepts by itself."""
    return socket.create_server((host, 0), backlog=4096, family=socket.AF_INET6 if ":" in host else socket.AF_INET)


def connect(server: socket.socket) -> socket.socket:
    return socket.create_connection(server.getsockname()[:2])


def port_of(server: socket.socket) -> int:
    return int(server.getsockname()[1])


def watch_table(server: socket.socket, *gpus: str) -> str:
    """The part of a configuration file that watches this server's port."""
    listed = ", ".join(f'"{gpu}"' for gpu in gpus)
    return f"\n[[watch]]\nport = {port_of(server)}\ngpus = [{listed}]\n"


def stand_still(pid: int) -> None:
    """SIGSTOP, and wait until it stands still."""
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: "State:\tT" in Path(f"/proc/{pid}/status").read_text())


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
