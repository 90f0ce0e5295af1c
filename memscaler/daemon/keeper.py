"""Keeps a guardian: without one every GPU is held awake, because nobody would wake it if the daemon died now."""

from __future__ import annotations

import select
import time
from collections.abc import Callable

from memscaler.core.errors import MemscalerError
from memscaler.core.model import SECOND_NS
from memscaler.daemon.guardian import START_TIMEOUT_S, Guardian
from memscaler.daemon.record import Recorder

PAUSE_NS = SECOND_NS  # between two starts, if one dies at once: not in a circle


class Keeper:
    """Used by the loop's thread. start None: a dry run needs no guardian.

    alone, guarded: called when there is no guardian any more, and when there is one again.
    """

    def __init__(
        self,
        start: Callable[[], Guardian] | None,
        epoll: select.epoll,
        recorder: Recorder,
        alone: Callable[[], None],
        guarded: Callable[[], None],
    ) -> None:
        self._start = start
        self._epoll = epoll
        self._recorder = recorder
        self._alone, self._guarded = alone, guarded
        self._guardian = start() if start else None
        self.alone = False
        """True while there is no guardian, although there should be one."""
        self._started_ns = 0
        self.due_ns = 0
        """When to try to start another one; 0: there is no need."""

    def wait_ready(self) -> None:
        """At the start. Raise MemscalerError."""
        if self._guardian is None:
            return
        if not self._guardian.wait_ready(START_TIMEOUT_S):
            raise MemscalerError("the guardian process does not start", hint="see the log above")
        self._recorder.guardian_ready(self._guardian.pid)
        self._epoll.register(self._guardian.pidfd, select.EPOLLIN)

    def heed(self, ready: set[int]) -> None:
        """Descriptors of the epoll that are ready."""
        if self._guardian is None:
            return
        if self._guardian.pidfd in ready:
            self._died(self._guardian)
        elif self._guardian.fd in ready:
            self._spoke(self._guardian)

    def replace_no_more(self) -> None:
        """The end has begun: one that dies now is not replaced."""
        self._start, self.due_ns = None, 0

    def leave(self, *, all_awake: bool) -> None:
        """The end: a guardian that is not dismissed goes to work."""
        if self._guardian is not None:
            self._guardian.dismiss() if all_awake else self._guardian.close()

    def start_again(self) -> None:
        """What is due at `due_ns`."""
        self.due_ns = 0
        if self._start is None:
            return
        self._started_ns = time.monotonic_ns()
        try:
            self._guardian = self._start()
        except OSError as error:
            self._recorder.note("", "guardian.start_failed", str(error))
            self.due_ns = self._started_ns + PAUSE_NS
            return
        self._epoll.register(self._guardian.pidfd, select.EPOLLIN)
        self._epoll.register(self._guardian.fd, select.EPOLLIN)

    def _died(self, guardian: Guardian) -> None:
        self.alone = True
        self._alone()
        self._epoll.unregister(guardian.pidfd)
        guardian.close()
        self._guardian = None
        self._recorder.guardian_died()
        now_ns = time.monotonic_ns()
        if now_ns - self._started_ns < PAUSE_NS:
            self.due_ns = now_ns + PAUSE_NS
        else:
            self.start_again()

    def _spoke(self, guardian: Guardian) -> None:
        """It is ready, or it dies: then its pidfd says so too."""
        self._epoll.unregister(guardian.fd)
        if guardian.wait_ready(0):
            self._recorder.guardian_ready(guardian.pid)
            self.alone = False
            self._guarded()
