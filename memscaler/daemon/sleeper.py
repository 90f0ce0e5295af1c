"""The governor's side of deeper sleep: keeps the sleeper running while stages are configured, and is its eyes.

The sleeper decides and acts; the governor shows it what it sees, keeps the watches armed that it names (its guards),
lets its own connections count for nobody, passes on what operators want, and believes nothing of what it tells: that is
only shown. Nothing here waits, and nothing here runs where no stage is configured.

    told at once     a GPU's public state or hold has changed; a watch, its GPUs or its processes have; somebody came to
                     a guarded watch; a reload; the machine has slept
    told when asked  `look` and `guard` compare with the sockets first

A guarded watch that has rung is armed again after REARM_NS: so a crowd of clients is told ten times a second at most.
A sleeper that dies is started again after a pause that doubles, up to a minute; a new one first leaves every stage. One
that reads no more (a debugger, SIGSTOP) is killed: nobody would wake its servers. What a crash has left asleep is left
even where no stage is configured any more.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import ExitStack
from dataclasses import replace
from typing import NoReturn, Protocol

import structlog

from memscaler.config.schema import Settings
from memscaler.core.errors import MemscalerError
from memscaler.core.model import SECOND_NS
from memscaler.core.stages import Sleep
from memscaler.daemon import sleep_picture, sleeper_words
from memscaler.daemon.governing import Governing
from memscaler.daemon.guardian import ASLEEP
from memscaler.daemon.requests import Document
from memscaler.daemon.sleep_picture import Asking, Key
from memscaler.daemon.sleeper_process import SleeperProcess, Unheard
from memscaler.daemon.sleeper_words import Announce, Done, Forget, Guard, Look
from memscaler.daemon.watching import Watching
from memscaler.kernel.records import IDENTITY, address

FIRST_PAUSE_NS, LONGEST_PAUSE_NS = SECOND_NS // 10, 60 * SECOND_NS  # somebody may be waiting for a server
STEADY_NS = 60 * SECOND_NS  # who has lived for so long may begin with the first pause again
REARM_NS = SECOND_NS // 10
SLOW_NS = 60 * SECOND_NS  # it has had all the time that leaving may take: said again so often
STILL_NS, LATE_NS = 5 * SECOND_NS, 60 * SECOND_NS  # who does not read for so long stands still; before its first word
DEAF_NS = 2 * SECOND_NS  # who has closed its socket is gone by then, or has lost its mind
END_GRACE_S = 5.0  # to say goodbye, beside what leaving a stage may take
MOST_AT_ONCE = 200  # messages of one turn of the loop
MOST_ANNOUNCED = 256
WELL = "exit code 0"
NO_STAGE = "no deeper sleep is configured, so there is nothing to leave or to enter"

log = structlog.get_logger()


class Book(Protocol):
    """Who writes down what it tells; the answer is the GPUs to sample."""

    def slept(self, sleep: Sleep) -> Iterable[str]: ...


class Sleeper:
    """Used by the loop's thread. start None: a dry run has none.

    sample: has a GPU's power read, because something about it has changed.
    """

    def __init__(
        self,
        start: Callable[[], SleeperProcess] | None,
        settings: Settings,
        epoll: select.epoll,
        governing: Governing,
        watching: Watching,
        book: Book,
        sample: Callable[[str], None],
    ) -> None:
        self._start, self._settings, self._epoll = start, settings, epoll
        self._governing, self._watching = governing, watching
        self._book, self._sample = book, sample
        self._names = sleep_picture.names_of(settings)
        self._process: SleeperProcess | None = None
        self._sleep = Sleep()
        self._gist: object = None
        self._guards: frozenset[Key] = frozenset()
        self._slots: Mapping[Key, int] = {}
        self._rung: dict[Key, int] = {}
        self._rearm_due_ns = self._start_due_ns = self._end_by_ns = self._started_ns = self._deaf_ns = 0
        self._unread_ns = 0
        self._has_spoken = False
        self._pause_ns = FIRST_PAUSE_NS
        self._announced: dict[int, ExitStack] = {}
        self._asked: dict[int, Future[Document]] = {}
        self._number = 0

    # ---- life -----------------------------------------------------------------------------------------------------

    @property
    def gone(self) -> bool:
        """True when nobody need wait for it any more at the end."""
        return self._process is None or (0 < self._end_by_ns <= time.monotonic_ns())

    @property
    def due_ns(self) -> list[int]:
        """When to call `turn` at the latest."""
        deaf_ns = self._deaf_ns + DEAF_NS if self._deaf_ns else 0
        still_ns = self._unread_ns + self._patience_ns if self._unread_ns else 0
        due_ns = (self._rearm_due_ns, self._start_due_ns, self._end_by_ns, deaf_ns, still_ns)
        return [at_ns for at_ns in due_ns if at_ns]

    def begin(self) -> None:
        """Start it, if a stage is configured, or if one was that is not left yet."""
        if self._start is None or self._process is not None:
            return
        if self._settings.stages or self._is_anything_left():
            self._start_now()

    def _is_anything_left(self) -> bool:
        return any((self._settings.runtime_dir / ASLEEP).glob("*.json"))

    def follow(self, settings: Settings) -> None:
        """Other settings from now on; without stages it leaves all that there are, and goes."""
        if self._process is not None and not settings.stages:
            self.end()  # with the time that its stages may take
        self._settings, self._names = settings, sleep_picture.names_of(settings)
        if self._process is None:
            self._start_due_ns = 0
            self._say_what_is_not("")
            self.begin()
        elif not self._end_by_ns:  # else the next one is told, when this one has gone
            self._tell("settings", self._rules())
            self._show("the settings have changed")

    def end(self, *, stop: bool = False) -> None:
        """It is to leave every stage and to go; `gone` tells when. stop: the governor ends, it is not replaced."""
        if stop:
            self._start = None
        self._start_due_ns = 0
        if self._process is not None and not self._end_by_ns:
            longest_s = {rule.stage: 0.0 for rule in self._settings.stages}
            for rule in self._settings.stages:
                longest_s[rule.stage] = max(longest_s[rule.stage], rule.leave_timeout_s)
            patience_s = sum(longest_s.values()) + END_GRACE_S  # a server may be in all of them
            self._end_by_ns = time.monotonic_ns() + round(patience_s * SECOND_NS)
            self._tell("end", {})

    def hurry(self) -> None:
        """The operator does not want to wait: its journal says what is left."""
        if self._process is not None and self._end_by_ns:
            self._end_by_ns = time.monotonic_ns()

    def close(self) -> None:
        """The governor's end. One that is there still goes on alone: it leaves every stage, as its socket closes."""
        self._refuse_all("memscaler ends")
        self._forget_all()
        if self._process is not None:
            log.warning("sleeper.left", pid=self._process.pid, hint="it goes on; see `memscaler restore`")
            self._let_go()

    def _start_now(self) -> None:
        assert self._start is not None  # noqa: S101  # for the type checkers
        self._start_due_ns, self._started_ns, self._has_spoken = 0, time.monotonic_ns(), False
        try:
            self._process = self._start()
        except OSError as error:
            self._failed(f"it cannot be started: {error}")
            return
        self._epoll.register(self._process.pidfd, select.EPOLLIN)
        self._epoll.register(self._process.fd, select.EPOLLIN)
        log.info("sleeper.started", pid=self._process.pid)
        self._sleep = replace(self._sleep, pid=self._process.pid, problem="")  # until it tells
        self._book.slept(self._sleep)
        self._tell("settings", self._rules())
        self._show("the start")
        if not self._settings.stages:  # only for what is left
            self.end()

    def _died(self) -> None:
        assert self._process is not None  # noqa: S101  # for the type checkers
        self._hear_the_rest()
        how = self._let_go()
        self._guard(frozenset())
        self._forget_all()
        is_to_end, self._end_by_ns = bool(self._end_by_ns), 0
        if is_to_end and (how == WELL or self._start is None or not self._is_anything_left()):
            if how == WELL:
                log.info("sleeper.ended", how=how)
            else:
                log.warning("sleeper.ended", how=how, hint="something may still sleep: memscaler restore")
            self._refuse_all("memscaler sleeps no deeper from now on")
            self._say_what_is_not("")
            if self._settings.stages and self._start is not None:
                self._start_now()  # they were configured again while it was on its way out
            return
        self._refuse_all("the sleeper has died")
        self._failed(how)

    def _failed(self, why: str) -> None:
        now_ns = time.monotonic_ns()
        if now_ns - self._started_ns > STEADY_NS:
            self._pause_ns = FIRST_PAUSE_NS
        self._start_due_ns = now_ns + self._pause_ns if self._start is not None else 0
        pause_s = self._pause_ns / SECOND_NS
        self._pause_ns = min(2 * self._pause_ns, LONGEST_PAUSE_NS)
        log.error("sleeper.died", err=why, again_in_s=pause_s, hint="the next one leaves every stage first")
        self._say_what_is_not(f"the sleeper has died ({why}); the next one starts in {pause_s:g} s")

    def _let_go(self) -> str:
        assert self._process is not None  # noqa: S101  # for the type checkers
        for descriptor in (self._process.pidfd, *([] if self._deaf_ns else [self._process.fd])):
            self._epoll.unregister(descriptor)
        self._deaf_ns = self._rearm_due_ns = self._unread_ns = 0
        how = self._process.close()
        self._process = None
        return how

    def _say_what_is_not(self, problem: str) -> None:
        """It does not run."""
        kept = self._sleep if problem else Sleep()  # what it told last stays true until the next one has looked
        self._sleep = replace(kept, pid=None, problem=problem)
        self._book.slept(self._sleep)

    # ---- the loop -------------------------------------------------------------------------------------------------

    def heed(self, ready: set[int]) -> None:
        """Descriptors of the epoll that are ready."""
        if self._process is None:
            return
        if self._process.fd in ready:
            self._hear()
        if self._process.pidfd in ready:
            self._died()

    def turn(self, now_ns: int) -> None:
        """At the end of each turn of the loop: tell what has changed, and do what is due."""
        if self._start_due_ns and now_ns >= self._start_due_ns and self._start is not None:
            self._start_now()
        if self._process is None:
            return
        self._look_whether_it_reads(self._process, now_ns)
        gist = sleep_picture.gist(self._governing, self._watching, now_ns)
        if gist != self._gist:
            self._guard(self._guards)  # its watches may have other slots now
            self._show("something has changed")
        elif rang := self._rang():
            self._show("somebody came", rang)
        if self._deaf_ns and now_ns >= self._deaf_ns + DEAF_NS:
            self._deaf_ns = now_ns
            self._process.kill()
        if self._start is not None and 0 < self._end_by_ns <= now_ns:
            self._end_by_ns = now_ns + SLOW_NS
            log.warning("sleeper.slow_to_leave", pid=self._process.pid, hint="see `memscaler status`")
        if self._rearm_due_ns and now_ns >= self._rearm_due_ns:
            self._rearm()

    @property
    def _patience_ns(self) -> int:
        return STILL_NS if self._has_spoken else LATE_NS

    def _look_whether_it_reads(self, process: SleeperProcess, now_ns: int) -> None:
        """Before it is told more: what it was told in earlier turns."""
        if self._deaf_ns or not process.unread:
            self._unread_ns = 0
        elif not self._unread_ns:
            self._unread_ns = now_ns
        elif now_ns >= self._unread_ns + self._patience_ns:
            self._unread_ns = now_ns
            log.error("sleeper.stands_still", pid=process.pid, hint="it is killed; the next one leaves every stage")
            process.kill()

    def resumed(self, slept_s: float) -> None:
        """The machine has slept."""
        if self._process is not None:
            self._tell("resumed", {"slept_s": slept_s})
            self._show("the machine has slept")

    def ask(self, what: str, answer: Future[Document], **wanted: object) -> None:
        """Pass on what an operator wants; the answer comes when it knows. Raise MemscalerError."""
        if self._process is None or self._end_by_ns:
            self._refuse()
        self._number += 1
        self._asked[self._number] = answer
        self._tell("do", {"id": self._number, "what": what, **wanted})

    def _refuse(self) -> NoReturn:
        if self._sleep.problem:
            raise MemscalerError(self._sleep.problem, hint="see the log")
        if self._process is not None:
            raise MemscalerError("memscaler is about to end")
        if self._settings.stages:
            raise MemscalerError("in a dry run there is no deeper sleep")
        raise MemscalerError(NO_STAGE, hint="add a [[stage]] to the configuration; see docs/sleep.md")

    # ---- talking --------------------------------------------------------------------------------------------------

    def _rules(self) -> dict[str, object]:
        gpus = self._watching.gpu_names(name for rule in self._settings.stages for name in rule.servers)
        return {"stages": self._settings.stages, "suspend": self._settings.suspend, "gpu_names": gpus}

    def _show(self, reason: str, rang: Iterable[Key] = (), number: int = 0, doubtful: Iterable[Key] = ()) -> None:
        now_ns = time.monotonic_ns()
        self._gist = sleep_picture.gist(self._governing, self._watching, now_ns)
        come = {*rang, *self._rang()}
        if come:
            self._rearm_due_ns = self._rearm_due_ns or now_ns + REARM_NS
        asking = Asking(reason, number, come, self._slots.keys(), frozenset(doubtful))
        self._tell(
            "seen", sleep_picture.picture(self._governing, self._watching, self._names, time.monotonic_ns(), asking)
        )

    def _tell(self, word: str, what: object) -> None:
        if self._process is None or self._deaf_ns:
            return
        try:
            self._process.tell(sleeper_words.write(word, what))
        except Unheard as error:
            self._lose(error)
        except ValueError as error:
            log.error("sleeper.not_told", word=word, err=str(error))
        self._wait_to_write()

    def _lose(self, error: Unheard) -> None:
        """It is about to die, or to end well, which the pidfd tells; who does neither is killed."""
        assert self._process is not None  # noqa: S101  # for the type checkers
        if self._deaf_ns:
            return  # an answer could not be told, and now there is nothing more to hear
        log.debug("sleeper.unheard", err=str(error))
        self._deaf_ns = time.monotonic_ns()
        self._epoll.unregister(self._process.fd)

    def _wait_to_write(self) -> None:
        if self._process is not None and not self._deaf_ns:
            wanted = select.EPOLLIN | (select.EPOLLOUT if self._process.waiting else 0)
            self._epoll.modify(self._process.fd, wanted)

    def _hear(self) -> None:
        assert self._process is not None  # noqa: S101  # for the type checkers
        try:
            self._process.flush()
            for _ in range(MOST_AT_ONCE):
                message = self._process.hear()
                if message is None:
                    break
                self._obey(message)
        except Unheard as error:
            self._lose(error)
        except ValueError as error:
            log.error("sleeper.makes_no_sense", err=str(error))
            self._process.kill()
        self._wait_to_write()

    def _hear_the_rest(self) -> None:
        """What it said last, before it went: how things are."""
        with contextlib.suppress(Unheard, ValueError):
            for _ in range(MOST_AT_ONCE):
                message = self._process.hear() if self._process is not None else None
                if message is None:
                    return
                said = sleeper_words.read(message)
                if isinstance(said, Sleep | Done):
                    self._take(said)

    def _obey(self, message: bytes) -> None:
        self._has_spoken = True
        match sleeper_words.read(message):
            case Guard(number, keys, on):
                self._guard(self._guards | set(keys) if on else self._guards - set(keys))
                self._compare_and_show("guarded" if on else "guarded no more", number, keys)
            case Look(number):
                self._compare_and_show("looked", number, [each.key for each in self._watching.all])
            case Announce() as announce:
                self._tell("announced", {"id": announce.id, "ok": self._announce(announce)})
            case Forget(number):
                if number in self._announced:
                    self._announced.pop(number).close()
            case Sleep() | Done() as told:
                self._take(told)

    def _take(self, told: Sleep | Done) -> None:
        if isinstance(told, Sleep):
            pid = self._process.pid if self._process is not None else None
            self._sleep = replace(told, pid=pid, problem=told.problem)
            for uuid in self._book.slept(self._sleep):
                self._sample(uuid)
            return
        answer = self._asked.pop(told.id, None)
        if answer is not None:
            with contextlib.suppress(InvalidStateError):  # the asker has given up
                if told.ok:
                    answer.set_result(dict(told.document))
                else:
                    answer.set_exception(MemscalerError(told.error, hint=told.hint or None))

    def _refuse_all(self, why: str) -> None:
        for answer in self._asked.values():
            with contextlib.suppress(InvalidStateError):
                answer.set_exception(MemscalerError(why, hint="see the log"))
        self._asked.clear()

    # ---- guards ---------------------------------------------------------------------------------------------------

    def _guard(self, keys: frozenset[Key]) -> None:
        """These are armed from now on, those that there are. What rang before is what is seen then."""
        if keys != self._guards:
            self._guards = keys
            self._watching.guard(keys)
        slots = sleep_picture.slots_of(self._watching, keys)
        if slots != self._slots:
            for key, slot in slots.items():
                if self._slots.get(key) != slot:
                    self._rung[key] = self._governing.rung(slot)
            self._slots = slots
            self._rung = {key: count for key, count in self._rung.items() if key in slots}
            self._governing.guard(frozenset(slots.values()))

    def _rang(self) -> list[Key]:
        """The guarded watches that have rung since this was asked last."""
        rang = []
        for key, slot in self._slots.items():
            count = self._governing.rung(slot)
            if count != self._rung[key]:
                self._rung[key] = count
                rang.append(key)
        return rang

    def _rearm(self) -> None:
        """What came meanwhile is seen, because the counters are read afterwards."""
        self._rearm_due_ns = 0
        slots = frozenset(self._slots.values())
        if slots:
            self._governing.arm(slots)
            keys = list(self._slots)
            doubtful = [] if self._governing.compare(list(slots)) else keys
            self._show("armed again", doubtful=doubtful)

    def _compare_and_show(self, reason: str, number: int, keys: Iterable[Key]) -> None:
        slots = sleep_picture.slots_of(self._watching, set(keys))
        guarded = [slot for key, slot in slots.items() if key in self._slots]
        rang = self._rang()
        self._governing.arm(guarded)
        doubtful = () if self._governing.compare(list(slots.values())) else tuple(slots)
        self._show(reason, rang, number, doubtful)

    # ---- its own connections --------------------------------------------------------------------------------------

    def _announce(self, wanted: Announce) -> bool:
        """False: it would count, as another connection of the same name does."""
        watched = sleep_picture.watched(self._watching, wanted.key)
        if watched is None:
            return True  # nobody counts there
        if len(self._announced) >= MOST_ANNOUNCED or wanted.id in self._announced:
            return False
        try:
            here, there = address(wanted.local[0]), address(wanted.to[0])
            identity = IDENTITY.pack(watched.watch.netns, wanted.to[1], wanted.local[1], 0, there, here)
            stack = ExitStack()
            stack.enter_context(self._governing.ledger.own.announced(identity))
        except (OSError, ValueError, OverflowError):
            return False
        except Exception as error:  # noqa: BLE001  # struct.error: a port that is none
            log.error("sleeper.makes_no_sense", err=str(error))
            return False
        self._announced[wanted.id] = stack
        return True

    def _forget_all(self) -> None:
        for stack in self._announced.values():
            stack.close()
        self._announced.clear()
