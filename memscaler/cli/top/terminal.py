"""The terminal of `memscaler top`: keys one by one, signals as wake-ups, and everything as it was before at the end."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import termios
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

ENDS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
BY_SIGNAL = 128
_KEY = re.compile(r"\x1b[\[O][0-9;]*[A-Za-z~]|.", re.DOTALL)
_NAMES = {"A": "up", "B": "down"}
_CHANGED = (*ENDS, signal.SIGWINCH, signal.SIGCONT)


class Key(StrEnum):
    """Keys that are no letters. Arrows are "up" and "down"."""

    INTERRUPT = "\x03"
    SUSPEND = "\x1a"
    ESCAPE = "\x1b"


class Terminal:
    """Standard input, for this process. Another thread calls `wake`."""

    def __init__(self) -> None:
        self._fd = 0
        self._reading, self._writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.ended_by: int = 0
        """The number of the signal that asks for the end."""
        self.hung_up = False

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Signals end `wait` instead of this process."""
        before: list[tuple[int, Any]] = [(number, signal.getsignal(number)) for number in _CHANGED]
        wakeup = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        try:
            for number in _CHANGED:
                signal.signal(number, self._heard)
            yield
        finally:
            for known, handler in before:
                signal.signal(known, handler)
            signal.set_wakeup_fd(wakeup)

    @contextlib.contextmanager
    def raw(self) -> Iterator[None]:
        """Keys come one by one and are not shown; Ctrl-C and Ctrl-Z are keys, too."""
        before = termios.tcgetattr(self._fd)
        changed = termios.tcgetattr(self._fd)
        changed[3] &= ~(termios.ECHO | termios.ICANON | termios.ISIG)
        try:
            termios.tcsetattr(self._fd, termios.TCSAFLUSH, changed)
            yield
        finally:
            with contextlib.suppress(termios.error):  # it has gone
                termios.tcsetattr(self._fd, termios.TCSADRAIN, before)

    def wake(self) -> None:
        """End `wait`."""
        with contextlib.suppress(BlockingIOError):  # it is full: that will do
            os.write(self._writing, b"\0")

    def wait(self, timeout_s: float) -> list[str]:
        """The keys that were pressed, as names or characters; none if it was something else or the time is over."""
        ready, _, _ = select.select([self._fd, self._reading], [], [], timeout_s)
        if self._reading in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._reading, 4096)
        if self._fd not in ready:
            return []
        try:
            pressed = os.read(self._fd, 1024)
        except OSError:  # hung up
            pressed = b""
        self.hung_up = not pressed
        return [_name(key) for key in _KEY.findall(pressed.decode(errors="replace"))]

    def _heard(self, number: int, _frame: object) -> None:
        if number in ENDS:
            self.ended_by = number


def _name(key: str) -> str:
    return key if len(key) == 1 else _NAMES.get(key[-1], "")
