"""The governor's end of the link of a real sleeper, in a test's hands."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import memscaler.sleep.run
from memscaler.child.link import GpuSeen, ServerSeen
from memscaler.config.stages import StageRule, Suspend
from memscaler.core.stages import Rung, Sleep, SleepingServer
from memscaler.daemon.child_words import Done, Guard, Look
from memscaler.daemon.sleeper_words import Announce, Forget, read
from memscaler.sleep.link import Announced, Do, FromGovernor, Rules, encode
from tests.asked import short_folder
from tests.child_end import ChildEnd
from tests.servers.bench import eventually

PROGRAM = Path(memscaler.sleep.run.__file__)
GPU = "GPU-00000000-0000-0000-0000-000000000001"


class Governor(ChildEnd):
    """Of one sleeper at a time."""

    program = PROGRAM

    def __init__(
        self, runtime_dir: Path, *rules: StageRule, suspend: Suspend | None = None, **environment: str
    ) -> None:
        super().__init__(runtime_dir, {GPU: GpuSeen("parked")}, environment)
        self.rules = Rules(rules, suspend or Suspend(), {"gpu0": GPU})
        self.told: list[Sleep] = []
        self.open: dict[int, Announce] = {}
        self.announced: list[Announce] = []
        self._ids = iter(range(1, 10_000))

    def _encode(self, message: FromGovernor) -> bytes:
        return encode(message)

    def _decode(self, data: bytes) -> Any:
        return read(data)

    def _hear(self, message: Any) -> None:
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

    # ---- what it is told ---------------------------------------------------------------------------------------------

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
