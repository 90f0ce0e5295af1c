"""What checks look at: each thing is found out once, when the first check wants it, and with a time limit.

A driver that hangs, or a daemon that does not answer, holds up one check; the others learn at once that it does.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from memscaler.config.load import Examined
from memscaler.config.schema import Settings
from memscaler.core.errors import DaemonNotRunning, DaemonRunning, GpuError, MemscalerError
from memscaler.core.gpuctl import Ability
from memscaler.daemon import discovery, lock, targets
from memscaler.daemon.discovery import Found
from memscaler.daemon.doctor.distribution import Distribution, distribution
from memscaler.daemon.requests import Document
from memscaler.gpu import nvapi, nvml_calls
from memscaler.gpu.inventory import Driver, open_driver
from memscaler.gpu.session import Attempt
from memscaler.kernel.processes import Processes

Value = TypeVar("Value")

PATIENCE_S = 7.0  # with the driver; less than the deadline of the checks that wait for it
STATUS_PATIENCE_S = 4.0


class NoAnswer(Exception):
    """Somebody does not answer in time; the message says who."""


@dataclass(slots=True)
class Context:
    """Where and as whom the doctor looks.

    settings: those in force, as far as they are good. examined: the configuration; None: it may not be read.
    root: of the files that are looked at; another one in tests only. euid: of this process.
    ask_status: asks the running daemon. look_abilities: what can be set on processes here; nvml: why the driver does
    not tell who is on its GPUs, "" if it does. environment: with it children find the simulated driver, too.
    probe: things may be tried. stop: set when somebody wants this to end.
    """

    settings: Settings
    examined: Examined | None
    environ: Mapping[str, str]
    euid: int
    ask_status: Callable[[], Document]
    root: Path = Path("/")
    environment: Mapping[str, str] = field(default_factory=dict)
    probe: bool = False
    stop: threading.Event = field(default_factory=threading.Event)
    look_abilities: Callable[[str], Sequence[Ability]] = lambda _nvml: ()
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _made: dict[str, tuple[Attempt[Any], float]] = field(default_factory=dict)

    @property
    def is_root(self) -> bool:
        return self.euid == 0

    @property
    def simulated(self) -> bool:
        """The boards are none that anybody could hold in their hands."""
        return bool(self.settings.simulate)

    def at(self, path: str) -> Path:
        """A file of the machine: "/proc/modules"."""
        return self.root / path.lstrip("/")

    def text(self, path: str) -> str:
        """What a small file says, "" if it cannot be had."""
        try:
            return self.at(path).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""

    @property
    def distribution(self) -> Distribution:
        return distribution(self.at("/etc/os-release"))

    def driver(self) -> Driver:
        """The opened driver. Raise GpuError, or NoAnswer."""
        return self._once("driver", "the NVIDIA driver", open_driver, PATIENCE_S)

    def status(self) -> Document:
        """What the daemon says. Raise MemscalerError, or NoAnswer."""
        return self._once("status", "the daemon", self.ask_status, STATUS_PATIENCE_S)

    def abilities(self) -> Sequence[Ability]:
        """What can be set on the processes of GPUs, and by what. Raise NoAnswer."""
        return self._once("abilities", "the kernel", self._look_abilities, STATUS_PATIENCE_S + PATIENCE_S)

    def processes(self) -> Processes:
        """Who runs. Raise OSError, or NoAnswer."""
        return self._once("processes", "/proc", partial(Processes.look, self.at("/proc")), STATUS_PATIENCE_S)

    def contexts(self) -> Mapping[str, frozenset[int]]:
        """UUID -> the pids with a context there; of no GPU if the driver does not tell."""
        try:
            return targets.contexts(self.driver())
        except GpuError:
            return {}

    def founds(self) -> tuple[Found, ...]:
        """The servers that there are, and the watches. Raise OSError, or NoAnswer."""
        return self._once("founds", "/proc", self._look, STATUS_PATIENCE_S)

    def founds_now(self) -> tuple[Found, ...]:
        """The same, looked for anew. Raise OSError, or NoAnswer."""
        with self._lock:
            self._made.pop("founds", None)
        return self.founds()

    def daemon(self) -> str | None:
        """The pid of the daemon of this runtime directory; "" if there is none, None if we may not know."""
        try:
            lock.refuse_beside_daemon(self.settings.runtime_dir)
        except DaemonRunning as error:
            return error.pid
        if self.is_root:
            return ""
        try:
            return str(self.status()["pid"])
        except DaemonNotRunning:
            return ""
        except (MemscalerError, NoAnswer):
            return None

    def close(self) -> None:
        """Let go of the driver, unless that would wait for a call that hangs."""
        attempt = self._made.get("driver")
        if attempt is not None and not attempt[0].pending:
            with contextlib.suppress(MemscalerError, NoAnswer):
                self.driver().close()

    def _look_abilities(self) -> Sequence[Ability]:
        try:
            targets.contexts(self.driver())
        except (GpuError, NoAnswer) as error:
            return self.look_abilities(str(error))
        return self.look_abilities("")

    def _look(self) -> tuple[Found, ...]:
        driver_contexts = self.contexts()
        names = {uuid: uuid for uuid in driver_contexts}
        with contextlib.suppress(GpuError):
            names |= {device.identity.uuid: f"gpu{device.identity.index}" for device in self.driver().gpus}
        return discovery.look(
            self.settings.watches,
            discover=True,
            gpu_processes=driver_contexts,
            name_gpu=lambda uuid: names.get(uuid, uuid),
            thorough=True,
        )

    def _once(self, key: str, who: str, act: Callable[[], Value], patience_s: float) -> Value:
        """The result of `act`, which runs once, in a thread of its own that may hang."""
        with self._lock:
            if key not in self._made:
                self._made[key] = Attempt(act), time.monotonic() + patience_s
            attempt, end_s = self._made[key]
        try:
            value: Value = attempt.result(end_s - time.monotonic(), nvml_calls.SESSION, nvapi.SESSION)
        except GpuError as error:
            if attempt.pending:
                raise NoAnswer(f"{who} did not answer in {patience_s:.0f} s") from error
            raise
        return value
