"""A private dbus-daemon with a logind of ours on it, and the tests' way to steer that."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.patience import patience

FAKE = Path(__file__).with_name("fake_logind.py")
CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow receive_type="method_call"/><allow receive_type="method_return"/>
    <allow receive_type="error"/><allow receive_type="signal"/>
    <allow own="*"/>
    <allow user="*"/>
  </policy>
</busconfig>
"""


class Box:
    """The bus, logind, and what logind was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "bus"
        self.address = f"unix:path={self.socket}"
        self.state = folder / "logind.json"
        self.daemon: subprocess.Popen[str] | None = None
        self.fake: subprocess.Popen[str] | None = None
        self.set()

    def start(self) -> None:
        config = self.folder / "bus.conf"
        config.write_text(CONFIG.format(socket=self.socket))
        self.socket.unlink(missing_ok=True)
        self.daemon = _started(["dbus-daemon", f"--config-file={config}", "--nofork", "--print-address"])
        self.fake = _started([sys.executable, str(FAKE), self.address, str(self.state)])

    def stop(self) -> None:
        for process in filter(None, (self.fake, self.daemon)):
            process.kill()
            process.wait()
            assert process.stdout
            process.stdout.close()
        self.fake = self.daemon = None

    def set(self, **told: Any) -> None:
        """How logind answers from now on."""
        draft = self.state.with_suffix(".new")
        draft.write_text(json.dumps(told))
        draft.replace(self.state)

    def log(self) -> list[list[Any]]:
        """What was asked of it."""
        file = self.state.with_suffix(".log")
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def asleep_s(self) -> float:
        """As logind.asleep_s() would tell it of this machine."""
        file = self.state.with_suffix(".asleep")
        return float(file.read_text()) if file.exists() else 0.0


def _started(command: list[str]) -> subprocess.Popen[str]:
    """A program that says a line when it is ready."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline()
    return process


@contextmanager
def a_box(folder: Path) -> Iterator[Box]:
    box = Box(folder)
    try:
        box.start()
        yield box
    finally:
        box.stop()


def eventually(holds: Callable[[], Any], within_s: float = 20.0, what: Callable[[], object] = str) -> Any:
    """What it returns, as soon as that is something."""
    end_s = time.monotonic() + within_s * patience()
    while time.monotonic() < end_s:
        if found := holds():
            return found
        time.sleep(0.01)
    raise AssertionError(f"not within {within_s} s: {what()}")
