"""The governor's ends of link and urgent channel, in a test's hands: starts a real arbiter, answers it, and shows it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import memscaler.gvm.run
import memscaler.gvm.undo
from memscaler.config.gpuctl import GpuctlRule, Gvm, Match
from memscaler.core.gpuctl import Controlled, Gpuctl, RuleState
from memscaler.daemon.arbiter_words import read
from memscaler.daemon.child_words import Done, Guard, Look
from memscaler.daemon.urgent import Urgent
from memscaler.gvm.link import FromGovernor, Read, Rules, encode
from memscaler.servers.governor_link import End, GpuSeen, Seen, ServerSeen
from tests.asked import short_folder
from tests.governor import eventually
from tests.patience import patience

PROGRAM, UNDO = Path(memscaler.gvm.run.__file__), Path(memscaler.gvm.undo.__file__)
KEY = "8080"
NOTHING: Mapping[str, str] = {}


def batch_rule(**more: Any) -> GpuctlRule:
    """The batch job of tests/gvm/batch.py stands still while somebody is connected."""
    given = {"name": "batch", "processes": (Match("name", "render-batch"),), "freeze": True, "release_after_s": 0.3}
    return GpuctlRule(**{**given, "look_every_s": 0.2, **more})


class GovernorEnd:
    """Of one arbiter at a time. `servers` and `gpus` are what it is shown; `silent`: it answers nothing."""

    def __init__(
        self,
        runtime_dir: Path,
        gpu: str,
        *rules: GpuctlRule,
        gvm: Gvm | None = None,
        environment: Mapping[str, str] = NOTHING,
    ) -> None:
        self.runtime_dir, self.gpu = runtime_dir, gpu
        self.rules = Rules(rules, gvm or Gvm())
        self.gpus = {gpu: GpuSeen("parked")}
        self.servers = {KEY: ServerSeen(KEY, int(KEY), gpus=(gpu,))}
        self.guarded: dict[str, bool] = {}
        self.heard: list[Any] = []
        self.told: list[Gpuctl] = []
        self.silent = False
        self.urgent = Urgent()
        self._environment = environment
        self._log = runtime_dir / "arbiter.log"
        self._socket: socket.socket | None = None
        self.process: subprocess.Popen[bytes] | None = None

    # ---- the process -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        quick, urgent = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fds = [theirs.fileno(), urgent.fileno()]
        with theirs, urgent, self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM), *map(str, fds), str(self.runtime_dir), "json", "debug"],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={**os.environ, **self._environment},
                start_new_session=True,
            )
        self._socket = ours
        self.urgent.attach(quick)
        self.guarded.clear()
        self.told.clear()
        threading.Thread(target=self._read, args=(ours,), daemon=True).start()
        self.say(self.rules)
        self.show("the start")

    def _read(self, link: socket.socket) -> None:
        while True:
            try:
                data = link.recv(1 << 20)
            except OSError:
                return
            if not data:
                return
            self._hear(read(data))

    def _hear(self, message: Any) -> None:
        self.heard.append(message)
        match message:
            case Guard(number, keys, on):
                self.guarded.update(dict.fromkeys(keys, on))
                if not self.silent:
                    self.show("guarded", number)
            case Look(number) if not self.silent:
                self.show("looked", number)
            case Gpuctl():
                self.told.append(message)
                self.urgent.first = message.first

    def close(self) -> None:
        """As the kernel does when a governor dies."""
        self.urgent.detach()
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            self._socket = None

    def end(self, within_s: float = 60.0) -> int:
        self.say(End())
        return self.ended(within_s)

    def ended(self, within_s: float = 60.0) -> int:
        assert self.process is not None
        return self.process.wait(within_s * patience())

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.close()

    def clean_up(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.close()

    def undo(self, form: str = "text") -> subprocess.CompletedProcess[str]:
        """As the guardian does."""
        return subprocess.run(
            [sys.executable, "-P", str(UNDO), str(self.runtime_dir), form],
            capture_output=True,
            text=True,
            timeout=120 * patience(),
            check=False,
            env={**os.environ, **self._environment},
        )

    def restore(self) -> subprocess.CompletedProcess[str]:
        """`memscaler restore`."""
        return subprocess.run(
            [sys.executable, "-m", "memscaler", "restore", "--runtime-dir", str(self.runtime_dir)],
            capture_output=True,
            text=True,
            timeout=120 * patience(),
            check=False,
            env={**os.environ, **self._environment},
        )

    def undo_begun(self) -> subprocess.Popen[bytes]:
        """The same, under way."""
        command = [sys.executable, "-P", str(UNDO), str(self.runtime_dir), "text"]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, env={**os.environ, **self._environment})

    # ---- what it is told ---------------------------------------------------------------------------------------------

    def say(self, message: FromGovernor) -> None:
        if self._socket is not None:
            with contextlib.suppress(BrokenPipeError):
                self._socket.send(encode(message))

    def show(self, reason: str, number: int = 0) -> None:
        servers = tuple(replace(each, guarded=self.guarded.get(key, False)) for key, each in self.servers.items())
        self.say(Seen(time.monotonic_ns(), reason, self.gpus, servers, number))

    def change(self, key: str = KEY, **what: Any) -> None:
        self.servers[key] = replace(self.servers[key], **what)

    def configure(self, *rules: GpuctlRule) -> None:
        self.rules = replace(self.rules, rules=rules)
        self.say(self.rules)

    def client_comes(self, key: str = KEY, *, wake: bool = True) -> None:
        """To a parked GPU (wake: its actuator asks first), or one that is awake: only its guarded watch rings."""
        self.change(key, live=1, last_activity_ns=time.monotonic_ns())
        if wake:
            self.urgent.before_wake(self.gpu, rang=True)
        self.gpus[self.gpu] = GpuSeen("awake")
        self.servers[key] = replace(self.servers[key], rang=self.guarded.get(key, False))
        self.show("somebody came")
        self.servers[key] = replace(self.servers[key], rang=False)

    def client_goes(self, key: str = KEY) -> None:
        """Nobody tells of it."""
        self.change(key, live=0, last_activity_ns=time.monotonic_ns())

    def park(self) -> None:
        self.gpus[self.gpu] = GpuSeen("parked")
        self.show("parked")

    # ---- what it tells -----------------------------------------------------------------------------------------------

    def said(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def until(self, holds: Callable[[Gpuctl], object], within_s: float = 30.0) -> Gpuctl:
        def so() -> list[Gpuctl]:
            return [told for told in self.told[-1:] if holds(told)]

        return eventually(so, within_s=within_s, what="what it should tell")[0]

    def prepared(self) -> None:
        """It has found whom it means."""
        self.until(lambda told: self.gpu in told.first)

    def rule(self, name: str = "batch") -> RuleState:
        return next(rule for rule in self.told[-1].rules if rule.name == name)

    def controlled(self) -> tuple[Controlled, ...]:
        return self.told[-1].controlled if self.told else ()

    def ask(self, number: int = 7) -> Done:
        self.say(Read(number))

        def answers() -> list[Done]:
            return [each for each in self.heard if isinstance(each, Done) and each.id == number]

        return eventually(answers, what="an answer")[0]

    @property
    def journal(self) -> list[Path]:
        return list((self.runtime_dir / "gpuctl").glob("*.json"))


@contextlib.contextmanager
def governor_end(
    gpu: str, *rules: GpuctlRule, gvm: Gvm | None = None, environment: Mapping[str, str] = NOTHING
) -> Iterator[GovernorEnd]:
    """Not started yet."""
    with short_folder() as folder:
        made = GovernorEnd(folder, gpu, *rules, gvm=gvm, environment=environment)
        try:
            yield made
        finally:
            made.clean_up()
            print(made.said())  # pytest shows it if the test has failed
