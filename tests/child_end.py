"""The governor's end of a child's link, in a test's hands: starts a real child, tells it what is to be seen, hears it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from memscaler.child.link import End, GpuSeen, Seen, ServerSeen
from tests.patience import patience


class ChildEnd(ABC):
    """Of one child at a time. `servers` and `gpus` are what it is shown; `silent`: it answers nothing."""

    program: Path
    rules: Any

    def __init__(self, runtime_dir: Path, gpus: dict[str, GpuSeen], environment: Mapping[str, str]) -> None:
        self.runtime_dir, self.gpus = runtime_dir, gpus
        self.servers: dict[str, ServerSeen] = {}
        self.guarded: dict[str, bool] = {}
        self.heard: list[Any] = []
        self.silent = False
        self._environment = environment
        self._log = runtime_dir / "child.log"
        self._socket: socket.socket | None = None
        self.process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _encode(self, message: Any) -> bytes: ...

    @abstractmethod
    def _decode(self, data: bytes) -> Any: ...

    @abstractmethod
    def _hear(self, message: Any) -> None: ...

    # ---- the process -------------------------------------------------------------------------------------------------

    def start(self, *more: socket.socket) -> None:
        """more: other ends for it, beside that of the link."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fds = [end.fileno() for end in (theirs, *more)]
        with contextlib.ExitStack() as stack, self._log.open("ab") as log:
            for end in (theirs, *more):
                stack.enter_context(end)
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(self.program), *map(str, fds), str(self.runtime_dir), "json", "debug"],
                pass_fds=fds,
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
            message = self._decode(data)
            self.heard.append(message)
            self._hear(message)

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

    def say(self, message: Any) -> None:
        if self._socket is not None:
            with contextlib.suppress(BrokenPipeError):
                self._socket.send(self._encode(message))

    def show(self, reason: str, number: int = 0) -> None:
        servers = tuple(replace(each, guarded=self.guarded.get(key, False)) for key, each in self.servers.items())
        self.say(Seen(time.monotonic_ns(), reason, self.gpus, servers, number))

    # ---- what it tells -----------------------------------------------------------------------------------------------

    def said(self) -> str:
        return self._log.read_text() if self._log.exists() else ""
