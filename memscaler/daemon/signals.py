"""Signals, as messages for the loop: end well when asked to, and never be stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StopWanted:
    """A signal (or a failure elsewhere) asks us to end."""

    reason: str


@dataclass(frozen=True, slots=True)
class ReloadSignal:
    """SIGHUP."""


class Signals:
    """Reports them from now on. `fd` is readable after one has come; `clear` it, and its message is there."""

    def __init__(self, report: Callable[[object], None]) -> None:
        # A signal that comes just before epoll_wait would otherwise be handled after it.
        self.fd, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda got, _: report(StopWanted(signal.Signals(got).name)))
        if has_terminal():  # then a hang-up is one
            if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
                signal.signal(signal.SIGHUP, lambda *_: report(StopWanted("SIGHUP")))
        else:
            signal.signal(signal.SIGHUP, lambda *_: report(ReloadSignal()))
        for number in (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):  # a stopped governor could not wake anything
            signal.signal(number, signal.SIG_IGN)

    def clear(self) -> None:
        """Its handler has run by now."""
        os.read(self.fd, 64)


def has_terminal() -> bool:
    """True if this process would get a SIGHUP because its terminal has gone."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
