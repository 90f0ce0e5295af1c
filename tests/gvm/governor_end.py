"""The governor's ends of link and urgent channel of a real arbiter, in a test's hands."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import memscaler.gvm.run
import memscaler.gvm.undo
from memscaler.child.link import GpuSeen, ServerSeen
from memscaler.config.gpuctl import GpuctlRule, Gvm, Match
from memscaler.core.gpuctl import Controlled, Gpuctl, RuleState
from memscaler.daemon.arbiter_words import read
from memscaler.daemon.child_words import Done, Guard, Look
from memscaler.daemon.urgent import Urgent
from memscaler.gvm.link import FromGovernor, Read, Rules, encode
from tests.asked import short_folder
from tests.child_end import ChildEnd
from tests.governor import eventually
from tests.patience import patience

PROGRAM, UNDO = Path(memscaler.gvm.run.__file__), Path(memscaler.gvm.undo.__file__)
KEY = "8080"
NOTHING: Mapping[str, str] = {}


def batch_rule(**more: Any) -> GpuctlRule:
    """The batch job of tests/gvm/batch.py stands still while somebody is connected."""
    given = {"name": "batch", "processes": (Match("name", "render-batch"),), "freeze": True, "release_after_s": 0.3}
    return GpuctlRule(**{**given, "look_every_s": 0.2, **more})


class GovernorEnd(ChildEnd):
    """Of one arbiter at a time."""

    program = PROGRAM

    def __init__(
        self,
        runtime_dir: Path,
        gpu: str,
        *rules: GpuctlRule,
        gvm: Gvm | None = None,
        environment: Mapping[str, str] = NOTHING,
    ) -> None:
        super().__init__(runtime_dir, {gpu: GpuSeen("parked")}, environment)
        self.gpu = gpu
        self.rules = Rules(rules, gvm or Gvm())
        self.servers[KEY] = ServerSeen(KEY, int(KEY), gpus=(gpu,))
        self.told: list[Gpuctl] = []
        self.urgent = Urgent()

    # ---- the process -------------------------------------------------------------------------------------------------

    def start(self, *more: socket.socket) -> None:
        quick, urgent = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.urgent.attach(quick)
        self.told.clear()
        super().start(urgent, *more)

    def _encode(self, message: FromGovernor) -> bytes:
        return encode(message)

    def _decode(self, data: bytes) -> Any:
        return read(data)

    def _hear(self, message: Any) -> None:
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
        self.urgent.detach()
        super().close()

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
