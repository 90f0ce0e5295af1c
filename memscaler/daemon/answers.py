"""Answers to whoever wants to know everything: a snapshot with fresh readings, and documents that are made from it.

Readings take the driver's time, and wakes wait for the driver: so however many ask, and however often, all GPUs are
read at most once in APART_NS for their sake. Who comes in between shares the next readings.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, InvalidStateError
from dataclasses import asdict, dataclass, replace

from memscaler.core.errors import MemscalerError
from memscaler.core.model import FOR_EVER_NS, SECOND_NS
from memscaler.core.servers import Supervised
from memscaler.core.snapshot import Snapshot
from memscaler.daemon import rivals
from memscaler.daemon.requests import Document
from memscaler.observe import status

WAIT_NS = SECOND_NS // 4
FRESH_NS = SECOND_NS
APART_NS = SECOND_NS // 2


@dataclass(frozen=True, slots=True)
class SnapshotWanted:
    """For the mailbox: another thread wants to know everything; the answer goes into the future."""

    answer: Future[Snapshot]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """By whom, with readings begun since when, and when there must be an answer (CLOCK_MONOTONIC)."""

    answer: Future[Snapshot]
    since_ns: int
    by_ns: int


class Answers:
    """Used by the loop's thread. make: the snapshot of a time; None: it cannot be made.

    oldest_ns: when the GPU was read whose reading is oldest; sample: has all of them read; look: has the governor see
    what the counters say.
    """

    def __init__(
        self,
        make: Callable[[int], Snapshot | None],
        oldest_ns: Callable[[], int],
        sample: Callable[[], None],
        look: Callable[[], None],
    ) -> None:
        self._make, self._oldest_ns, self._sample, self._look = make, oldest_ns, sample, look
        self._wanted: list[_Wanted] = []
        self._began_ns = -APART_NS  # the last readings that were taken for those who ask

    def want(self, answer: Future[Snapshot], fresh_ns: int = FRESH_NS, wait_ns: int = WAIT_NS) -> None:
        """A fresh sample first, unless there is one; a GPU that does not answer does not hold the others up.

        fresh_ns: how old a reading may be; wait_ns: how long the answer may take. Follow with `answer`.
        """
        now_ns = time.monotonic_ns()
        self._wanted.append(_Wanted(answer, now_ns - fresh_ns, now_ns + wait_ns))

    def due_ns(self) -> list[int]:
        """When to call `answer` at the latest."""
        return [wanted.by_ns for wanted in self._wanted] + [self._began_ns + APART_NS] * self._needs_readings()

    def _needs_readings(self) -> bool:
        """Readings that are under way serve those who came before they were begun."""
        return any(wanted.since_ns > self._began_ns for wanted in self._wanted)

    def answer(self, now_ns: int) -> None:
        """Those who need wait no longer; and have the GPUs read for the others, if that is due."""
        self._answer_ready(now_ns)
        if self._needs_readings() and now_ns >= self._began_ns + APART_NS:
            self._began_ns = time.monotonic_ns()
            self._sample()

    def _answer_ready(self, now_ns: int) -> None:
        oldest_ns = self._oldest_ns() if self._wanted else 0
        ready = [wanted for wanted in self._wanted if oldest_ns >= wanted.since_ns or now_ns >= wanted.by_ns]
        if not ready:
            return
        self._wanted = [wanted for wanted in self._wanted if wanted not in ready]
        self._look()
        snapshot = self._make(min(now_ns, time.monotonic_ns()))
        for wanted in ready:
            with contextlib.suppress(InvalidStateError):  # the asker has given up
                if snapshot is not None:
                    wanted.answer.set_result(snapshot)

    def answer_all(self) -> None:
        """The end: nobody waits any longer for a sample."""
        self.answer(FOR_EVER_NS)


def whole_status(snapshot: Snapshot, servers: Collection[int], supervised: Callable[[], Supervised]) -> Document:
    """The status, with the rivals that run and what supervisors say of their servers.

    That is a look at every process and into files of others, nothing for the loop's thread.
    """
    found = [asdict(rival) for rival in rivals.recent(servers)]
    return {**status.document(replace(snapshot, supervised=supervised())), "rivals": found}


def then(answer: Future[Document], make: Callable[[Snapshot], Document]) -> Future[Snapshot]:
    """A future whose result becomes the answer, made in a thread of its own."""

    def work(done: Future[Snapshot]) -> None:
        try:
            document = make(done.result())
        except Exception as error:  # noqa: BLE001  # whatever it is, somebody waits
            answer.set_exception(MemscalerError(f"{type(error).__name__}: {error}"))
        else:
            with contextlib.suppress(InvalidStateError):  # the asker has given up
                answer.set_result(document)

    def pass_on(done: Future[Snapshot]) -> None:
        threading.Thread(target=work, args=(done,), name="status", daemon=True).start()

    snapshot: Future[Snapshot] = Future()
    snapshot.add_done_callback(pass_on)
    return snapshot
