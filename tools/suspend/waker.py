"""Watches a machine through QEMU's monitor (QMP), and wakes it where the guest has said that it wants to be woken so.

The guest says so on its second serial port, by the last line before it sleeps: "monitor" or "alarm".
"""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

MONITOR = "monitor"
WAKES_AFTER_S = 3.0
GIVES_UP_S = 180.0  # an alarm that does not ring fails its scenario, not the whole run


class Waker:
    """sleeps: each that is over, with how long QEMU saw the machine suspended, and who woke it."""

    def __init__(self, folder: Path) -> None:
        """folder: for the sockets; short, because their paths are limited."""
        self._monitor, self._wishes = folder / "qmp", folder / "wishes"
        self.qemu = ("-qmp", f"unix:{self._monitor},server=on,wait=off", "-serial", f"file:{self._wishes}")
        self.sleeps: list[dict[str, Any]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10.0)

    def _run(self) -> None:
        while not self._over.is_set():
            with suppress(OSError), socket.socket(socket.AF_UNIX) as monitor:  # it is not there yet, or no longer
                monitor.connect(str(self._monitor))
                self._watch(monitor)
            self._over.wait(0.2)

    def _watch(self, monitor: socket.socket) -> None:
        """Raise OSError when the machine is gone."""
        monitor.settimeout(0.2)
        monitor.sendall(b'{"execute": "qmp_capabilities"}\n')
        rest, since_s, wake_s, by = b"", 0.0, 0.0, ""
        while not self._over.is_set():
            if wake_s and time.monotonic() >= wake_s:
                wake_s, by = 0.0, "the monitor"
                monitor.sendall(b'{"execute": "system_wakeup"}\n')
            try:
                data = monitor.recv(65536)
            except TimeoutError:
                continue
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for event in (json.loads(line).get("event") for line in lines if line.strip()):
                if event == "SUSPEND":
                    since_s, by = time.monotonic(), "itself"
                    wake_s = since_s + (WAKES_AFTER_S if self._wish() == MONITOR else GIVES_UP_S)
                elif event == "WAKEUP" and since_s:
                    self.sleeps.append({"asleep_s": round(time.monotonic() - since_s, 1), "by": by})
                    since_s = wake_s = 0.0

    def _wish(self) -> str:
        try:
            return (self._wishes.read_text(errors="replace").split() or [""])[-1]
        except OSError:
            return ""
