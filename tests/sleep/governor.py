"""The governor's end of the link, in a test's hands: starts a real sleeper, answers it, and shows it what is to be seen."""

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

import memscaler.sleep.run
from memscaler.config.stages import StageRule, Suspend
from memscaler.core.stages import Rung, Sleep, SleepingServer
from memscaler.daemon.child_words import Done, Guard, Look
from memscaler.daemon.sleeper_words import Announce, Forget, read
from memscaler.servers.governor_link import End, GpuSeen, Seen, ServerSeen
from memscaler.sleep.link import Announced, Do, FromGovernor, Rules, encode
from tests.asked import short_folder
from tests.patience import patience
from tests.servers.bench import eventually

PROGRAM = Path(memscaler.sleep.run.__file__)
GPU = "GPU-00000000-0000-0000-0000-000000000001"


class Governor:
    """Of one sleeper at a time. `servers` is what it is shown; `silent`: it answers nothing."""

    def __init__(
        self, runtime_dir: Path, *rules: StageRule, suspend: Suspend | None = None, **environment: str
    ) -> None:
        self.runtime_dir = runtime_dir
        self.rules = Rules(rules, suspend or Suspend(), {"gpu0": GPU})
        self.gpus: dict[str, GpuSeen] = {GPU: GpuSeen("parked")}
        self.servers: dict[str, ServerSeen] = {}
        self.guarded: dict[str, bool] = {}
        self.heard: list[Any] = []
        self.told: list[Sleep] = []
        self.open: dict[int, Announce] = {}
        self.announced: list[Announce] = []
        self.silent = False
        self._environment = environment
        self._log = runtime_dir / "sleeper.log"
        self._ids = iter(range(1, 10_000))
        self._changed = threading.Condition()
        self._socket: socket.socket | None = None
        self.process: subprocess.Popen[bytes] | None = None

    # ---- the process -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM), str(theirs.fileno()), str(self.runtime_dir), "json", "debug"],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={**os.environ, **self._environment},
                start_new_session=True,
            )
        self._socket = ours
        self.guarded.clear()
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
            with self._changed:
                self._hear(read(data))
                self._changed.notify_all()

    def _hear(self, message: Any) -> None:
        self.heard.append(message)
        match message:
            case Guard(number, keys, on):
                for key in keys:
                    self.guarded[key] = on
                if on and not self.silent:
                    self.show("guarded", number)
            case Look(number):
                self.show("looked", number)
            case Announce():
                self.open[message.id] = message
                self.announced.append(message)
                self.say(Announced(message.id, ok=True))
            case Forget(number):
                self.open.pop(number, None)
            case Sleep():
                self.told.append(message)

    def close(self) -> None:
        """As the kernel does when a governor dies."""
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

    # ---- what it is told ---------------------------------------------------------------------------------------------

    def say(self, message: FromGovernor) -> None:
        assert self._socket is not None
        self._socket.send(encode(message))

    def show(self, reason: str, number: int = 0) -> None:
        servers = tuple(replace(each, guarded=self.guarded.get(key, False)) for key, each in self.servers.items())
        self.say(Seen(time.monotonic_ns(), reason, self.gpus, servers, number))

    def watch(self, port: int, *, quiet_s: float = 1000.0, **more: Any) -> None:
        """One more server that is quiet since so long."""
        since_ns = time.monotonic_ns() - int(quiet_s * 1e9)
        server = ServerSeen(str(port), port, gpus=(GPU,), last_activity_ns=since_ns, **more)
        self.servers[server.key] = server

    def change(self, port: int, **what: Any) -> None:
        self.servers[str(port)] = replace(self.servers[str(port)], **what)
        self.show("changed")

    def client_comes(self, port: int) -> None:
        """As the kernel counts: it rings where it is guarded."""
        self.change(port, live=1, last_activity_ns=time.monotonic_ns(), rang=self.guarded.get(str(port), False))
        self.servers[str(port)] = replace(self.servers[str(port)], rang=False)

    def client_goes(self, port: int) -> None:
        self.change(port, live=0, last_activity_ns=time.monotonic_ns())

    def ask(self, what: Any, *servers: str, within_s: float = 60.0, **more: Any) -> Done:
        number = next(self._ids)
        self.say(Do(number, what, servers, by="a test", **more))
        return eventually(
            lambda: next((each for each in self.heard if isinstance(each, Done) and each.id == number), None),
            within_s,
            self.said,
        )

    # ---- what it tells -----------------------------------------------------------------------------------------------

    def said(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def server(self, port: int) -> SleepingServer | None:
        """As it was told last."""
        last = self.told[-1].servers if self.told else ()
        return next((each for each in last if each.port == port), None)

    def until(self, port: int, holds: Callable[[SleepingServer], object], within_s: float = 30.0) -> SleepingServer:
        def so() -> SleepingServer | None:
            server = self.server(port)
            return server if server is not None and holds(server) else None

        return eventually(so, within_s, lambda: f"{self.told[-1:]}\n{self.said()}")

    def until_down(self, port: int, stage: object, within_s: float = 30.0) -> SleepingServer:
        return self.until(port, lambda each: each.rung is Rung.DOWN and each.stage is stage, within_s)

    def until_up(self, port: int, within_s: float = 30.0) -> SleepingServer:
        return self.until(port, lambda each: each.rung is Rung.UP, within_s)


@contextlib.contextmanager
def governor(*rules: StageRule, environment: Mapping[str, str] | None = None, **more: Any) -> Iterator[Governor]:
    """Not started yet."""
    with short_folder() as folder:
        made = Governor(folder, *rules, **more, **(environment or {}))
        try:
            yield made
        finally:
            made.clean_up()
            print(made.said())  # pytest shows it if the test has failed
