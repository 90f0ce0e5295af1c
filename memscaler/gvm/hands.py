"""What the arbiter does, from whichever thread: rules, wishes and acts under one lock, held for a millisecond at most.

The loop's thread brings what the governor sees and who was found, the urgent thread brings wakes, the lanes bring what
has come of their work. A freeze or thaw by cgroup or signal is done at once by whoever finds that it is due, because
it cannot hang; all else is a lane's (slow.py).
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import structlog

from memscaler.config.gpuctl import GpuctlRule
from memscaler.core.gpuctl import Knob, Means
from memscaler.gvm import book as books
from memscaler.gvm import rules
from memscaler.gvm.acts import Acts
from memscaler.gvm.book import Answer, Book, Doing, Ended, Late, NotTurned, NotUndone, Turned, Undo
from memscaler.gvm.errors import KnobError
from memscaler.gvm.journal import Entry
from memscaler.gvm.prepared import Prepared
from memscaler.gvm.processes import Subject
from memscaler.gvm.rules import Ask, Coming, Gone, Hold, Sight, Tick
from memscaler.gvm.slow import Deadlines, Lane, Lanes
from memscaler.gvm.tally import Causes, Tally, Told
from memscaler.gvm.turning import Grip, Place
from memscaler.gvm.wanted import RuleAt, Want, wanted

LATE_S = 10.0  # for a call to the driver; it is told then, and goes on
WAKE_S = 0.003  # for what a driver has to do before a wake goes on without it
QUICK = frozenset({Means.CGROUP, Means.SIGNAL})

log = structlog.get_logger()


def is_quick(place: Place) -> bool:
    """It cannot hang, so whoever comes does it."""
    return place.knob is Knob.COMPUTE_FREEZE and place.means in QUICK


def lane_of(place: Place) -> Lane:
    """A limit that takes seconds holds up no freeze."""
    return place.pid, place.knob is Knob.COMPUTE_FREEZE


def _not_done(action: books.Action, why: str, *, changed: bool) -> Answer:
    now_s = time.monotonic()
    if isinstance(action, Undo):
        return NotUndone(action.key, action.call, why, now_s)
    return NotTurned(action.key, action.call, why, now_s, changed=changed, was=action.was, at_unix_s=time.time())


@dataclass(frozen=True, slots=True)
class Standing:
    """How everything stands at one moment. wants: of what is put back, whose it was."""

    rules: Mapping[str, GpuctlRule]
    holds: Mapping[RuleAt, Hold]
    book: Book
    prepared: Prepared
    counts: Mapping[str, Told]
    wants: Mapping[str, Want]


class Hands:
    """ask(rule and watch, what, number): the governor, from any thread. changed: something is to be told, or timed."""

    def __init__(self, acts: Acts, ask: Callable[[RuleAt, Ask, int], None], changed: Callable[[], None]) -> None:
        self._acts, self._ask, self._changed = acts, ask, changed
        self._lock = threading.Condition()
        self._lanes, self._deadlines = Lanes(), Deadlines()
        self._rules: Mapping[str, GpuctlRule] = {}
        self._holds: dict[RuleAt, Hold] = {}
        self._due_s: dict[RuleAt, float] = {}
        self._gpus: Mapping[str, tuple[str, ...]] = {}
        self._book = Book()
        self._grips: dict[str, Grip] = {}
        self._later = 0  # wakes that are under way: nobody is told anything until they are served
        self._asks: list[tuple[RuleAt, Ask, int]] = []
        self._over = False
        self._prepared = Prepared()
        self._listening: Collection[int] = ()
        self._tally = Tally()
        self._causes = Causes()
        self._log: deque[tuple[int, str, dict[str, object]]] = deque()

    # ---- what is brought -------------------------------------------------------------------------------------------

    def adopt(self, entries: Iterable[Entry]) -> None:
        """What an earlier arbiter has left is put back first."""
        with self._lock:
            for entry in entries:
                key = entry.place.key
                self._acts.adopt(entry)
                self._say(logging.WARNING, "gpuctl.found", what=str(entry), rule=entry.rule)
                self._book = books.adopt(self._book, key, entry.place, entry.was, entry.ours, entry.at_unix_s)
                subject = Subject(entry.place.pid, entry.place.started, entry.name)
                value = entry.ours[-1] if entry.ours else 0
                rule = frozenset({entry.rule})
                self._tally.wants[key] = Want(entry.place, value, entry.rule, rule, (subject,))
            self._act()

    def configure(self, rules_: Iterable[GpuctlRule], proc: Path) -> None:
        """These, and no others. proc: where the processes are."""
        with self._lock:
            self._acts.proc = proc
            before, self._rules = self._rules, {rule.name: rule for rule in rules_}
            aims = self._prepared.aims
            same = tuple(aim for aim in aims if before.get(aim.rule) == self._rules.get(aim.rule))
            self._prepared = replace(self._prepared, aims=same)
            for at in list(self._holds):
                if before.get(at[0]) != self._rules.get(at[0]):
                    self._drop(at)
            self._follow()

    def seen(self, sights: Mapping[RuleAt, Sight], gpus: Mapping[str, tuple[str, ...]], at_s: float) -> None:
        """What every rule is to see of every watch of its. gpus: of each watch."""
        with self._lock:
            self._gpus = gpus
            for at in [at for at in self._holds if at not in sights]:
                self._post(at, Gone(at_s))
                self._drop(at)
            for at, sight in sights.items():
                if not self._over and at[0] in self._rules:
                    self._holds.setdefault(at, Hold())
                    self._post(at, sight)
            self._follow()

    def spare(self, listening: Collection[int]) -> None:
        """Who has just begun to listen was prepared for as anybody else. Follow with `seen`."""
        with self._lock:
            self._listening = listening
            self._prepared = self._spared(self._prepared)

    def draft(self, prepared: Prepared) -> None:
        """What may have to be quick is written beforehand, as far as that goes. Slow; before `found`, by one thread."""
        if not prepared.problem:
            self._acts.drafts.keep(prepared.aims, self._acts.proc)

    def found(self, prepared: Prepared) -> None:
        """A look has ended. One that knows nothing changes nothing; what rules in force have done is looked at."""
        with self._lock:
            if prepared.problem:
                kept = self._prepared
                prepared = replace(prepared, aims=kept.aims, why_not=kept.why_not)
            self._prepared = self._spared(prepared)
            self._grasp()
            self._book = books.look_again(self._book)
            self._follow()

    def coming(self, uuid: str, rang: bool) -> None:  # noqa: FBT001  # as it is said
        """A GPU's clocks are about to be touched: what is to be done first is done when this returns, or takes long.

        Follow with `came`, when whoever asked has his answer: the loop's thread would take the interpreter from us.
        """
        with self._lock:
            self._later += 1
            now_s = time.monotonic()
            for at in list(self._holds):
                if uuid in self._gpus.get(at[1], ()):
                    self._post(at, Coming(now_s, rang))
            self._follow()
            self._lock.wait_for(lambda: not self._is_freezing(uuid), WAKE_S)

    def came(self) -> None:
        """The rest of that."""
        with self._lock:
            self._later -= 1
            asks, self._asks = self._asks, []
            for at, ask, call in asks:
                self._ask(at, ask, call)
            self._changed()

    def tick(self) -> None:
        """Time has gone by."""
        with self._lock:
            now_s = time.monotonic()
            for at, due_s in list(self._due_s.items()):
                if due_s <= now_s:
                    self._post(at, Tick(now_s))
            self._acts.look_above(now_s)
            for key, call in self._deadlines.late(now_s):
                self._hear(Late(key, call, f"it takes longer than {LATE_S:g} s"))
            self._follow()

    def end(self) -> None:
        """Everything is to be put back, and nothing is begun any more."""
        with self._lock:
            self._over = True
            for at in list(self._holds):
                self._drop(at)
            self._follow()

    # ---- what is asked -----------------------------------------------------------------------------------------------

    @property
    def due_s(self) -> float:
        """When to call `tick` at the latest."""
        with self._lock:
            dues = (self._book.due_s, self._deadlines.due_s, self._acts.above.due_s)
            return min((*self._due_s.values(), *dues))

    @property
    def is_clean(self) -> bool:
        """Nothing of ours is set anywhere, and nobody is to be looked at again."""
        with self._lock:
            return self._book.is_clean and self._acts.above.due_s == math.inf

    @property
    def is_busy(self) -> bool:
        """A rule is in force, or something of ours is set still."""
        with self._lock:
            return not self._book.is_clean or any(hold.is_on for hold in self._holds.values())

    def look_every_s(self) -> float:
        """How often to look for more processes: while a rule is in force; infinite while none is."""
        with self._lock:
            return min(
                (self._rules[at[0]].look_every_s for at, hold in self._holds.items() if hold.is_on), default=math.inf
            )

    def guarded(self) -> frozenset[str]:
        """The watches whose doorbells must ring."""
        with self._lock:
            return frozenset(at[1] for at, hold in self._holds.items() if rules.wants_guard(hold, self._rules[at[0]]))

    def first(self) -> frozenset[str]:
        """The GPUs for which something is to be done before their clocks are touched."""
        with self._lock:
            aimed = {(aim.rule, aim.watch) for aim in self._prepared.aims}
            ats = [
                at
                for at, hold in self._holds.items()
                if at in aimed and (self._rules[at[0]].when == "busy" or rules.wants_guard(hold, self._rules[at[0]]))
            ]
            return frozenset(uuid for at in ats for uuid in self._gpus.get(at[1], ()))

    def standing(self) -> Standing:
        """For who tells how things are."""
        with self._lock:
            counts = {name: self._tally.told(name) for name in self._rules}
            wants = dict(self._tally.wants)
            return Standing(self._rules, dict(self._holds), self._book, self._prepared, counts, wants)

    def speak(self) -> None:
        """Log what has happened. Not under the lock: a log may stand still, and wakes do not wait for it."""
        while self._log:
            level, event, what = self._log.popleft()
            log.log(level, event, **what)

    # ---- under the lock ----------------------------------------------------------------------------------------------

    def _post(self, at: RuleAt, event: rules.Event) -> None:
        before = self._holds[at]
        done = rules.step(before, self._rules[at[0]], event)
        self._holds[at], self._due_s[at] = done.hold, done.due_s
        if done.ask is not Ask.NOTHING and self._later:
            self._asks.append((at, done.ask, done.hold.call))
        elif done.ask is not Ask.NOTHING:
            self._ask(at, done.ask, done.hold.call)
        self._note(at, before, done.hold, event.at_s)

    def _drop(self, at: RuleAt) -> None:
        hold = self._holds.pop(at)
        self._due_s.pop(at, None)
        self._note(at, hold, Hold(), time.monotonic())

    def _note(self, at: RuleAt, before: Hold, after: Hold, at_s: float) -> None:
        if after.is_on != before.is_on:
            event = "gpuctl.rule_holds" if after.is_on else "gpuctl.rule_lets_go"
            self._say(logging.INFO, event, rule=at[0], watch=at[1])
            self._tally.turned_over(at, after.is_on, at_s)

    def _follow(self) -> None:
        """What the rules want now is begun."""
        on = {at for at, hold in self._holds.items() if hold.is_on}
        wants = wanted(self._prepared.aims, on)
        self._book = books.want(self._book, wants)
        self._tally.wants.update(wants)
        self._act()

    def _act(self) -> None:
        while True:
            self._book, actions = books.act(self._book, time.monotonic())
            if not actions:
                break
            for action in actions:
                if is_quick(action.place):
                    self._hear(self._do(action))
                else:
                    self._begin(action)
        self._tally.settled(self._book)
        self._tally.forget(self._book)
        if not self._later:
            self._changed()

    def _begin(self, action: books.Action) -> None:
        self._deadlines.begin(action.key, action.call, LATE_S)
        try:
            self._lanes.do(lane_of(action.place), partial(self._slowly, action))
        except RuntimeError as error:  # no room for a thread: its call must not be waited for
            self._deadlines.end(action.call)
            self._hear(_not_done(action, str(error), changed=False))

    def _slowly(self, action: books.Action) -> None:
        """In a lane's thread."""
        answer = self._do(action)
        with self._lock:
            self._deadlines.end(action.call)
            self._hear(answer)
            self._act()
            self._lock.notify_all()

    def _do(self, action: books.Action) -> Answer:
        try:
            if isinstance(action, Undo):
                return self._acts.undo(action)
            grip = self._grips.get(action.key) if is_quick(action.place) else None
            return self._acts.turn(action, grip, self._tally.wants.get(action.key))
        except Exception as error:  # noqa: BLE001  # a mistake with one must not keep the others frozen
            why = f"{type(error).__name__}: {error}"
            self._say(logging.ERROR, "gpuctl.failed", err=why, exc_info=error)
            return _not_done(action, why, changed=True)

    def _hear(self, answer: Answer) -> None:
        before = self._book.items.get(answer.key)
        self._book = books.hear(self._book, answer)
        whose = self._tally.wants.get(answer.key)
        if before is None or whose is None or before.doing is Doing.NOTHING or before.call != answer.call:
            return
        who = f"{whose.subjects[0].name} ({before.place.pid})" if whose.subjects else str(before.place.pid)
        said = {"rule": whose.rule, "process": who, "knob": str(before.place.knob), "by": str(before.place.means)}
        match answer:
            case Turned():
                if before.is_as_wanted:
                    return
                self._tally.of(whose.rule).applied += 1
                self._say(logging.INFO, "gpuctl.turned", value=before.aimed, **said)
            case Ended() if before.doing is Doing.UNDO:
                self._tally.of(whose.rule).released += 1
                self._say(logging.INFO, "gpuctl.put_back", **said)
            case NotTurned(why=why, lost=True):  # as it should be, so it has not failed
                if self._causes.is_new(answer.key, why):
                    self._say(logging.INFO, "gpuctl.left", err=why, **said)
            case NotTurned(why=why) | NotUndone(why=why) | Late(why=why):
                if why != before.problem:
                    self._tally.of(whose.rule).failed += 1
                if self._causes.is_new(answer.key, why):
                    event = "gpuctl.not_put_back" if isinstance(answer, NotUndone) else "gpuctl.not_turned"
                    self._say(logging.WARNING, event, err=why, **said)

    def _say(self, level: int, event: str, **what: object) -> None:
        self._log.append((level, event, what))

    def _is_freezing(self, uuid: str) -> bool:
        """A driver has yet to freeze, or to thaw, somebody on this GPU."""
        return any(
            item.doing is not Doing.NOTHING and item.place.knob is Knob.COMPUTE_FREEZE and item.place.uuid == uuid
            for item in self._book.items.values()
        )

    def _spared(self, prepared: Prepared) -> Prepared:
        """Without those who listen, and whoever would be frozen with them; a rule for servers means them."""
        known = self._rules.items()
        for_servers = {name for name, rule in known if any(each.kind == "server" for each in rule.processes)}
        aims = [aim for aim in prepared.aims if aim.rule not in for_servers]
        spared = {aim.place.key for aim in aims if aim.subject.pid in self._listening}
        if not spared:
            return prepared
        kept = (aim for aim in prepared.aims if aim.rule in for_servers or aim.place.key not in spared)
        return replace(prepared, aims=tuple(kept))

    def _grasp(self) -> None:
        """What may have to be quick is opened beforehand, and its threads are there."""
        freezes = {aim.place.key: aim.place for aim in self._prepared.aims if aim.place.knob is Knob.COMPUTE_FREEZE}
        for key in [key for key in self._grips if key not in freezes]:
            self._grips.pop(key).close()
        for key, place in freezes.items():
            if is_quick(place) and key not in self._grips:
                with contextlib.suppress(KnobError, OSError):
                    self._grips[key] = Grip(place, self._acts.proc)
        self._lanes.keep({lane_of(place) for place in freezes.values() if not is_quick(place)})
