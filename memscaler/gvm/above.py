"""Who waits for a process that SIGSTOP has stopped: its parent, that one's parent, and so on.

su, runuser and sudo stop themselves when their child has stopped, and go on when somebody continues them: nobody
would, and whoever waits for them (cron, a script) would wait for ever. So it is noted who ran before a stop, and who of
those is stopped afterwards is continued, after the process itself.

They learn of the stop a moment after it. If the process goes on before that, they stop when nobody looks any more: so
after a short freeze there are later looks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from memscaler.child.standstill import state
from memscaler.core.errors import in_a_line
from memscaler.core.gpuctl import Means
from memscaler.gvm.errors import Gone, KnobError
from memscaler.gvm.freezing import Signals
from memscaler.gvm.processes import is_alive, parent_of, started_at
from memscaler.gvm.turning import Place
from memscaler.kernel.processes import PROC

MOST = 8  # of each process
SHORT_S = 3.0  # a freeze after which they may not have learned of it yet
LATER_S = (0.1, 0.5, 2.0)  # after it
_MOST_KNOWN = 1000
_KNOWN_S = 0.05  # so long it is believed that one runs: those who are frozen together have the same above them


@dataclass(frozen=True, slots=True)
class Waiter:
    """started: clock ticks since boot, which tells it from a later process of the same pid."""

    pid: int
    started: int


def waiters(pid: int, proc: Path = PROC) -> tuple[Waiter, ...]:
    """Above this process, the nearest first; the first process of the machine waits for nobody."""
    found: list[Waiter] = []
    parent = parent_of(pid, proc)
    while parent > 1 and len(found) < MOST and (started := started_at(parent, proc)) is not None:
        found.append(Waiter(parent, started))
        parent = parent_of(parent, proc)
    return tuple(found)


def is_stopped(waiter: Waiter, proc: Path = PROC) -> bool:
    """By a signal, and not by a debugger."""
    return state(waiter.pid, proc) == "T" and is_alive(waiter.pid, waiter.started, proc)


def let_go(waiting: Iterable[Waiter], proc: Path = PROC) -> tuple[str, ...]:
    """Continue those that are stopped. Who cannot be: a sentence for each."""
    problems = []
    for each in waiting:
        if not is_stopped(each, proc):
            continue
        try:
            with Signals(each.pid, each.started, proc) as process:
                process.freeze(0)
        except Gone:
            continue
        except (KnobError, OSError) as error:
            problems.append(f"it has stopped with the process that it waits for: {in_a_line(error)}")
    return tuple(problems)


def let_all_go(waiting: Collection[Waiter], stopped_unix_s: float, proc: Path = PROC) -> tuple[str, ...]:
    """The same, for who ends afterwards: with the later looks. stopped_unix_s: when their child was."""
    problems = let_go(waiting, proc)
    if waiting and time.time() < stopped_unix_s + SHORT_S:
        began_s = time.monotonic()
        for at_s in LATER_S[:-1]:  # whoever does this is waited for
            time.sleep(max(began_s + at_s - time.monotonic(), 0.0))
            problems += let_go(waiting, proc)
    return problems


@dataclass(slots=True)
class _Later:
    waiter: Waiter
    began_s: float
    looks: tuple[float, ...] = LATER_S

    @property
    def due_s(self) -> float:
        return self.began_s + self.looks[0]


@dataclass(slots=True)
class Above:
    """Of all that is stopped now, by place. Used under the hands' lock."""

    _noted: dict[str, tuple[Waiter, ...]] = field(default_factory=dict)
    _held: set[Waiter] = field(default_factory=set)
    _at_s: dict[str, float] = field(default_factory=dict)
    _later: dict[Waiter, _Later] = field(default_factory=dict)
    _ran: dict[Waiter, float] = field(default_factory=dict)

    def running(self, place: Place, known: tuple[Waiter, ...] | None, proc: Path) -> tuple[Waiter, ...]:
        """Those to be written down before this place is stopped. known: who is above it, if that was looked at."""
        if place.means is not Means.SIGNAL:
            return ()
        if place.key in self._noted:  # stopped by us already, and they with it
            return self._noted[place.key]
        return tuple(each for each in (waiters(place.pid, proc) if known is None else known) if self._runs(each, proc))

    def stops_because_of_us(self, place: Place) -> bool:
        """It ran when something that it waits for was stopped: if it is stopped now, nobody else has done that."""
        waiter = Waiter(place.pid, place.started)
        known = waiter in self._later or any(waiter in waiting for waiting in self._noted.values())
        return known and place.means is Means.SIGNAL

    def _runs(self, waiter: Waiter, proc: Path) -> bool:
        now_s = time.monotonic()
        if waiter in self._later or now_s < self._ran.get(waiter, 0.0) + _KNOWN_S:  # later: it stopped because of us
            return True
        if is_stopped(waiter, proc):
            return False
        if len(self._ran) > _MOST_KNOWN:
            self._ran.clear()
        self._ran[waiter] = now_s
        return True

    def note(self, place: Place, waiting: tuple[Waiter, ...], *, at_s: float | None = None) -> None:
        """It is written down. at_s: when it was stopped, of CLOCK_MONOTONIC; None: now."""
        if place.means is Means.SIGNAL and place.key not in self._noted:
            self._noted[place.key] = waiting
            self._held.add(Waiter(place.pid, place.started))
            self._at_s[place.key] = time.monotonic() if at_s is None else at_s
            for each in waiting:
                self._later.pop(each, None)

    def let_go(self, place: Place, proc: Path) -> tuple[str, ...]:
        """The process itself goes on, or is gone. Who is to stand still himself is left."""
        waiting = self._noted.pop(place.key, ())
        self._held.discard(Waiter(place.pid, place.started))
        stopped_s, now_s = self._at_s.pop(place.key, 0.0), time.monotonic()
        mine = [each for each in waiting if each not in self._held]
        if now_s < stopped_s + SHORT_S:
            self._later |= {each: _Later(each, now_s) for each in mine}
        return let_go(mine, proc)

    @property
    def due_s(self) -> float:
        """When to call `look` at the latest."""
        return min((each.due_s for each in self._later.values()), default=float("inf"))

    def look(self, now_s: float, proc: Path, say: Callable[[str], None]) -> None:
        """Later looks."""
        for each in [each for each in self._later.values() if each.due_s <= now_s]:
            each.looks = tuple(after for after in each.looks if each.began_s + after > now_s)
            if not each.looks:
                del self._later[each.waiter]
            if each.waiter not in self._held:
                for problem in let_go([each.waiter], proc):
                    say(problem)
