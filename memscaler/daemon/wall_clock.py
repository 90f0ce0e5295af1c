"""Waiting for a time of day, and noticing that the clock was set or the machine was suspended; without polling.

A timerfd on CLOCK_REALTIME with TFD_TIMER_CANCEL_ON_SET ends with ECANCELED when the clock is set, and when the machine
resumes, because that sets it too (timerfd_create(2); the kernel's timerfd_resume). Python has no timerfd before 3.13.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time

from memscaler.core.model import SECOND_NS

_TFD_NONBLOCK, _TFD_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
_ABSOLUTE, _CANCEL_ON_SET = 1, 2
FAR_S = 30 * 86400.0
SLEPT_NS = SECOND_NS // 2  # less may come from reading two clocks one after the other

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class WallClock:
    """`fd` becomes readable when the time has come, or the clock has jumped. Raise OSError if there are no timers."""

    def __init__(self) -> None:
        self.fd = _libc.timerfd_create(time.CLOCK_REALTIME, _TFD_NONBLOCK | _TFD_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._asleep_ns = asleep_ns()

    def wake_at(self, unix_s: float | None) -> None:
        """None: only when the clock jumps (or in a month)."""
        at_s = time.time() + FAR_S if unix_s is None else unix_s
        value = _Timespec(int(at_s), int(at_s % 1 * SECOND_NS))
        spec = _Itimerspec(_Timespec(0, 0), value)
        # ECANCELED here means that the clock was set since the last read: it is set all the same (timerfd_create(2)).
        _libc.timerfd_settime(self.fd, _ABSOLUTE | _CANCEL_ON_SET, ctypes.byref(spec), None)

    def read(self) -> None:
        """Take note, so that `fd` is silent until the next time."""
        try:
            os.read(self.fd, 8)
        except OSError as error:
            if error.errno not in (errno.ECANCELED, errno.EAGAIN):
                raise

    def slept_s(self) -> float:
        """How long the machine was suspended since this was asked last; 0.0 if it was not."""
        before, self._asleep_ns = self._asleep_ns, asleep_ns()
        slept_ns = self._asleep_ns - before
        return slept_ns / SECOND_NS if slept_ns >= SLEPT_NS else 0.0

    def close(self) -> None:
        os.close(self.fd)


def asleep_ns() -> int:
    """How long this machine was suspended since it booted: CLOCK_BOOTTIME went on, CLOCK_MONOTONIC did not."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
