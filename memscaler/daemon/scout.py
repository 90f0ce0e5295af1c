"""Looks which servers and namespaces there are, whenever a listening socket of the machine comes or goes.

The kernel's hook posts a bulletin for each (bpf/README.md), so that nothing has to be polled. What has no event is
looked for a while after one: a server opens its CUDA contexts when it loads its model, before or after it listens.
A thread of its own, because a look at /proc takes tens of milliseconds and one at the driver may hang.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

from memscaler.daemon.discovery import Found
from memscaler.kernel.counters import NO_WATCH, Counters
from memscaler.kernel.doorbell import Doorbell

SETTLE_S = 0.05  # a server opens several sockets at once
PAUSE_S = 0.5  # between two looks: on a busy machine somebody always listens anew
# Pauses between the looks after a bulletin: a model loads in seconds to minutes.
PAUSES_S = (0.2, 0.3, 0.5, 1, *[1] * 60, *[5] * 60)
POLL_S = 0.5
SELDOM_S = 60.0  # for what was missed: the hook that posts is skipped now and then


@dataclass(frozen=True, slots=True)
class WatchesFound:
    """What there is to watch now. generation: of the way to look that found it."""

    founds: tuple[Found, ...]
    generation: int = 0


@dataclass(frozen=True, slots=True)
class LookFailed:
    """The machine could not be looked at; the watches stay what they are."""

    error: str


class Scout(threading.Thread):
    """Reports after every look that was caused by something, and seldom otherwise."""

    def __init__(
        self,
        look: Callable[[], tuple[Found, ...]],
        bulletin_fd: int,
        counters: Counters,
        report: Callable[[object], None],
        learn: Callable[[], None] = lambda: None,
    ) -> None:
        """bulletin_fd -1: this kernel has none; then the count of changes is looked at.

        learn: what else is to be found out about the servers that are watched, after every look; may take a while.
        """
        super().__init__(name="scout", daemon=True)
        self.generation = 0
        self._looks = look, self.generation  # changed as one, by another thread
        self._report = report
        self._counters = counters
        self._bulletin = Doorbell(bulletin_fd) if bulletin_fd >= 0 else None
        self._learn = learn
        self._to_learn = False
        self._kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._changes = 0
        self._ending = False
        self._expects_more = False
        self._epoll = select.epoll()
        self._epoll.register(self._kick, select.EPOLLIN)
        if self._bulletin is not None:
            self._epoll.register(self._bulletin.fd, select.EPOLLIN)

    def expect_more(self, *, wanted: bool) -> None:
        """Whether something is about to change that posts no bulletin: look on, ever more seldom."""
        if wanted and not self._expects_more:
            os.eventfd_write(self._kick, 1)
        self._expects_more = wanted

    def look_with(self, look: Callable[[], tuple[Found, ...]]) -> None:
        """Another way to look, from the next time on. What an earlier one finds still is of an earlier generation."""
        self.generation += 1
        self._looks = look, self.generation
        os.eventfd_write(self._kick, 1)

    def watches_changed(self) -> None:
        """There are other servers to learn about."""
        self._to_learn = True
        os.eventfd_write(self._kick, 1)

    def end(self) -> None:
        """Let the thread end."""
        self._ending = True
        os.eventfd_write(self._kick, 1)

    def run(self) -> None:
        """The thread."""
        due = self._schedule()
        looked_s = 0.0
        self._arm()
        while not self._ending:
            now_s = time.monotonic()
            while due and due[0] <= now_s:
                due.pop(0)
            wanted = due[0] if due and self._expects_more else now_s + SELDOM_S
            happened = self._wait(wanted - now_s)
            if self._to_learn and not self._ending:
                self._to_learn = False
                self._learn_safely()
            if happened and not self._ending:
                time.sleep(max(SETTLE_S, looked_s + PAUSE_S - time.monotonic()))
                due = self._schedule()
            if not self._ending:
                self._report_look()
                looked_s = time.monotonic()
                self._learn_safely()

    def _schedule(self) -> list[float]:
        """When to look again if more is expected."""
        now_s = time.monotonic()
        return [now_s + at_s for at_s in accumulate(PAUSES_S)]

    def _wait(self, timeout_s: float) -> bool:
        """True if something happened, False if the time is over."""
        ready: set[int] = set()
        end_s = time.monotonic() + timeout_s
        while not ready and (left_s := end_s - time.monotonic()) > 0:
            ready = {fd for fd, _ in self._epoll.poll(left_s if self._bulletin else min(left_s, POLL_S))}
            if self._bulletin is None and self._counters.read(NO_WATCH).opened != self._changes:
                break
        if self._kick in ready:
            os.eventfd_read(self._kick)
        if self._bulletin is not None and self._bulletin.fd in ready:
            self._bulletin.silence()
        return time.monotonic() < end_s

    def _learn_safely(self) -> None:
        try:
            self._learn()
        except Exception as error:  # noqa: BLE001  # nobody could be followed without this thread
            self._report(LookFailed(f"{type(error).__name__}: {error}"))

    def _arm(self) -> None:
        """From now on changes are told."""
        self._changes = self._counters.read(NO_WATCH).opened
        if self._bulletin is not None:
            self._counters.arm(NO_WATCH)

    def _report_look(self) -> None:
        self._arm()  # before looking: what the look misses posts a bulletin
        try:
            look, generation = self._looks
            self._report(WatchesFound(look(), generation))
        except Exception as error:  # noqa: BLE001  # whatever it is: the next look may succeed
            self._report(LookFailed(f"{type(error).__name__}: {error}"))
