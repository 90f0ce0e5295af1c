"""A child that acts for the governor, and whose eyes the governor is: its life, its link, and the watches it guards.

The child decides and acts; the governor shows it what it sees, keeps the watches armed that it names (its guards), and
believes nothing of what it tells: that is only shown. Nothing here waits, and nothing here runs where nothing of the
kind is configured. The child's side is in memscaler/child.

    told at once     a GPU's public state or hold has changed; a watch, its GPUs or its processes have; somebody came to
                     a guarded watch; a reload; the machine has slept
    told when asked  `look` and `guard` compare with the sockets first

A guarded watch that has rung is armed again after REARM_NS: so a crowd of clients is told ten times a second at most.
A child that dies is started again after a pause that doubles, up to a minute; a new one first undoes what the journal
tells. One that reads no more (a debugger, SIGSTOP) is killed: nobody would undo what it has done. What a crash has left
is undone even where nothing is configured any more.
"""

from __future__ import annotations

import contextlib
import select
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from memscaler.config.schema import Settings
from memscaler.core.model import SECOND_NS
from memscaler.daemon import child_picture, child_words, journals
from memscaler.daemon.child_picture import Asking, Key
from memscaler.daemon.child_process import ChildProcess, Unheard
from memscaler.daemon.child_words import Guard, Look
from memscaler.daemon.governing import Governing
from memscaler.daemon.guards import Guards
from memscaler.daemon.watching import Watching

FIRST_PAUSE_NS, LONGEST_PAUSE_NS = SECOND_NS // 10, 60 * SECOND_NS  # somebody may be waiting for a server
STEADY_NS = 60 * SECOND_NS  # who has lived for so long may begin with the first pause again
REARM_NS = SECOND_NS // 10
SLOW_NS = 60 * SECOND_NS  # it has had all the time that undoing may take: said again so often
STILL_NS, LATE_NS = 5 * SECOND_NS, 60 * SECOND_NS  # who does not read for so long stands still; before its first word
DEAF_NS = 2 * SECOND_NS  # who has closed its socket is gone by then, or has lost its mind
MOST_AT_ONCE = 200  # messages of one turn of the loop
WELL = "exit code 0"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Kind:
    """Of child. name: in the log. journal: its folder (journals.py).

    next_one: what the next one does first. left: what to say of one that has left something. no_more: what is not done
    any more once it has ended.
    """

    name: str
    journal: str
    words: Mapping[str, type[Any]]
    next_one: str
    left: str
    no_more: str


class Child(ABC):
    """Used by the loop's thread. start None: a dry run has none."""

    def __init__(
        self,
        kind: Kind,
        start: Callable[[], ChildProcess] | None,
        settings: Settings,
        epoll: select.epoll,
        governing: Governing,
        watching: Watching,
    ) -> None:
        self._kind, self._start, self._settings, self._epoll = kind, start, settings, epoll
        self._governing, self._watching = governing, watching
        self._names = child_picture.names_of(settings)
        self._guards = Guards(kind.name, governing, watching)
        self._process: ChildProcess | None = None
        self._gist: object = None
        self._rearm_due_ns = self._start_due_ns = self._end_by_ns = self._started_ns = self._deaf_ns = 0
        self._unread_ns = 0
        self._has_spoken = False
        self._pause_ns = FIRST_PAUSE_NS

    # ---- what kind of child it is -----------------------------------------------------------------------------------

    @abstractmethod
    def _is_wanted(self) -> bool:
        """Whether there is anything to do by the settings."""

    @abstractmethod
    def _rules(self) -> object:
        """What it is told as `settings`."""

    @abstractmethod
    def _patience_s(self) -> float:
        """How long it may take to undo everything and go."""

    @abstractmethod
    def _runs(self, process: ChildProcess) -> None:
        """It has just been started."""

    @abstractmethod
    def _said(self, said: object) -> None:
        """A word that is not common to all children."""

    @abstractmethod
    def _says_last(self, said: object) -> None:
        """Of what it said before it died, how things are."""

    @abstractmethod
    def _stopped(self, why: str) -> None:
        """It runs no more. why: whoever waits for an answer is told."""

    @abstractmethod
    def _say_what_is_not(self, problem: str) -> None:
        """It does not run; why, "" if it need not."""

    def _longest_pause_ns(self) -> int:
        """Before the next one is started."""
        return LONGEST_PAUSE_NS

    def _guarded(self, keys: frozenset[Key]) -> None:
        """Guards have changed."""
        self._guards.want(keys)

    # ---- life -----------------------------------------------------------------------------------------------------

    @property
    def gone(self) -> bool:
        """True when nobody need wait for it any more at the end."""
        return self._process is None or (0 < self._end_by_ns <= time.monotonic_ns())

    @property
    def due_ns(self) -> list[int]:
        """When to call `turn` at the latest."""
        deaf_ns = self._deaf_ns + DEAF_NS if self._deaf_ns else 0
        still_ns = self._unread_ns + self._still_after_ns if self._unread_ns else 0
        due_ns = (self._rearm_due_ns, self._start_due_ns, self._end_by_ns, deaf_ns, still_ns)
        return [at_ns for at_ns in due_ns if at_ns]

    @property
    def has_left_something(self) -> bool:
        """Whether its journal tells of anything."""
        return journals.tells_of_something(self._settings.runtime_dir, self._kind.journal)

    def begin(self) -> None:
        """Start it, if there is anything to do, or anything that is not undone yet."""
        if self._start is None or self._process is not None:
            return
        if self._is_wanted() or self.has_left_something:
            self._start_now()

    def follow(self, settings: Settings) -> None:
        """Other settings from now on; with nothing to do it undoes all that there is, and goes."""
        before, self._settings = self._settings, settings
        is_wanted = self._is_wanted()
        if self._process is not None and not is_wanted:
            self._settings = before  # with the time that undoing those may take
            self.end()
        self._settings, self._names = settings, child_picture.names_of(settings)
        if self._process is None:
            self._start_due_ns = 0
            self._say_what_is_not("")
            self.begin()
        elif not self._end_by_ns:  # else the next one is told, when this one has gone
            self._tell("settings", self._rules())
            self._show("the settings have changed")

    def end(self, *, stop: bool = False) -> None:
        """It is to undo everything and to go; `gone` tells when. stop: the governor ends, it is not replaced."""
        if stop:
            self._start = None
        self._start_due_ns = 0
        if self._process is not None and not self._end_by_ns:
            self._end_by_ns = time.monotonic_ns() + round(self._patience_s() * SECOND_NS)
            self._tell("end", {})

    def hurry(self) -> None:
        """The operator does not want to wait: its journal says what is left."""
        if self._process is not None and self._end_by_ns:
            self._end_by_ns = time.monotonic_ns()

    def close(self) -> None:
        """The governor's end. One that is there still goes on alone: it undoes everything, as its socket closes."""
        self._stopped("memscaler ends")
        if self._process is not None:
            log.warning(self._event("left"), pid=self._process.pid, hint="it goes on; see `memscaler restore`")
            self._let_go()

    def _start_now(self) -> None:
        assert self._start is not None  # noqa: S101  # for the type checkers
        self._start_due_ns, self._started_ns, self._has_spoken = 0, time.monotonic_ns(), False
        try:
            process = self._process = self._start()
        except OSError as error:
            self._failed(f"it cannot be started: {error}")
            return
        self._epoll.register(process.pidfd, select.EPOLLIN)
        self._epoll.register(process.fd, select.EPOLLIN)
        log.info(self._event("started"), pid=process.pid)
        self._runs(process)
        self._tell("settings", self._rules())
        self._show("the start")
        if not self._is_wanted():  # only for what is left
            self.end()

    def _died(self) -> None:
        self._hear_the_rest()
        how = self._let_go()
        self._guarded(frozenset())
        is_to_end, self._end_by_ns = bool(self._end_by_ns), 0
        if is_to_end and (how == WELL or self._start is None or not self.has_left_something):
            if how == WELL:
                log.info(self._event("ended"), how=how)
            else:
                log.warning(self._event("ended"), how=how, hint=self._kind.left)
            self._stopped(self._kind.no_more)
            self._say_what_is_not("")
            if self._start is not None and self._is_wanted():
                self._start_now()  # it was configured again while it was on its way out
            return
        self._stopped(f"the {self._kind.name} has died")
        self._failed(how)

    def _failed(self, why: str) -> None:
        now_ns, name = time.monotonic_ns(), self._kind.name
        if now_ns - self._started_ns > STEADY_NS:
            self._pause_ns = FIRST_PAUSE_NS
        pause_ns = min(self._pause_ns, self._longest_pause_ns())
        self._start_due_ns = now_ns + pause_ns if self._start is not None else 0
        pause_s = pause_ns / SECOND_NS
        self._pause_ns = min(2 * self._pause_ns, LONGEST_PAUSE_NS)
        log.error(self._event("died"), err=why, again_in_s=pause_s, hint=f"the next one {self._kind.next_one} first")
        self._say_what_is_not(f"the {name} has died ({why}); the next one starts in {pause_s:g} s")

    def _event(self, what: str) -> str:
        """Its name in the log."""
        return f"{self._kind.name}.{what}"

    def _let_go(self) -> str:
        assert self._process is not None  # noqa: S101  # for the type checkers
        for descriptor in (self._process.pidfd, *([] if self._deaf_ns else [self._process.fd])):
            self._epoll.unregister(descriptor)
        self._deaf_ns = self._rearm_due_ns = self._unread_ns = 0
        how = self._process.close()
        self._process = None
        return how

    # ---- the loop -------------------------------------------------------------------------------------------------

    def heed(self, ready: set[int]) -> None:
        """Descriptors of the epoll that are ready."""
        if self._process is None:
            return
        if self._process.fd in ready:
            self._hear()
        if self._process.pidfd in ready:
            self._died()

    def rung(self) -> None:
        """The doorbell has rung: who came to a guarded watch is told before anything else is thought of."""
        if self._process is not None and (rang := self._guards.rang()):
            self._show("somebody came", rang)

    def turn(self, now_ns: int) -> None:
        """At the end of each turn of the loop: tell what has changed, and do what is due."""
        if self._start_due_ns and now_ns >= self._start_due_ns and self._start is not None:
            self._start_now()
        if self._process is None:
            return
        self._look_whether_it_reads(self._process, now_ns)
        gist = child_picture.gist(self._governing, self._watching, now_ns)
        if gist != self._gist:
            self._guarded(self._guards.keys)  # its watches may have other slots now
            self._show("something has changed")
        else:
            self.rung()
        if self._deaf_ns and now_ns >= self._deaf_ns + DEAF_NS:
            self._deaf_ns = now_ns
            self._process.kill()
        if self._start is not None and 0 < self._end_by_ns <= now_ns:
            self._end_by_ns = now_ns + SLOW_NS
            log.warning(self._event("slow_to_leave"), pid=self._process.pid, hint="see `memscaler status`")
        if self._rearm_due_ns and now_ns >= self._rearm_due_ns:
            self._rearm()

    @property
    def _still_after_ns(self) -> int:
        return STILL_NS if self._has_spoken else LATE_NS

    def _look_whether_it_reads(self, process: ChildProcess, now_ns: int) -> None:
        """Before it is told more: what it was told in earlier turns."""
        if self._deaf_ns or not process.unread:
            self._unread_ns = 0
        elif not self._unread_ns:
            self._unread_ns = now_ns
        elif now_ns >= self._unread_ns + self._still_after_ns:
            self._unread_ns = now_ns
            hint = f"it is killed; the next one {self._kind.next_one}"
            log.error(self._event("stands_still"), pid=process.pid, hint=hint)
            process.kill()

    def resumed(self, slept_s: float) -> None:
        """The machine has slept."""
        if self._process is not None:
            self._tell("resumed", {"slept_s": slept_s})
            self._show("the machine has slept")

    # ---- talking --------------------------------------------------------------------------------------------------

    def _show(self, reason: str, rang: Iterable[Key] = (), number: int = 0, doubtful: Iterable[Key] = ()) -> None:
        now_ns = time.monotonic_ns()
        self._gist = child_picture.gist(self._governing, self._watching, now_ns)
        come = {*rang, *self._guards.rang()}
        if come:
            self._rearm_due_ns = self._rearm_due_ns or now_ns + REARM_NS
        asking = Asking(reason, number, come, self._guards.armed, frozenset(doubtful))
        picture = child_picture.picture(self._governing, self._watching, self._names, time.monotonic_ns(), asking)
        self._tell("seen", picture)

    def _tell(self, word: str, what: object) -> None:
        if self._process is None or self._deaf_ns:
            return
        try:
            self._process.tell(child_words.write(word, what))
        except Unheard as error:
            self._lose(error)
        except ValueError as error:
            log.error(self._event("not_told"), word=word, err=str(error))
        self._wait_to_write()

    def _lose(self, error: Unheard) -> None:
        """It is about to die, or to end well, which the pidfd tells; who does neither is killed."""
        assert self._process is not None  # noqa: S101  # for the type checkers
        if self._deaf_ns:
            return  # an answer could not be told, and now there is nothing more to hear
        log.debug(self._event("unheard"), err=str(error))
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
            log.error(self._event("makes_no_sense"), err=str(error))
            self._process.kill()
        self._wait_to_write()

    def _hear_the_rest(self) -> None:
        """What it said last, before it went: how things are."""
        with contextlib.suppress(Unheard, ValueError):
            for _ in range(MOST_AT_ONCE):
                message = self._process.hear() if self._process is not None else None
                if message is None:
                    return
                self._says_last(child_words.read(self._kind.words, message))

    def _obey(self, message: bytes) -> None:
        self._has_spoken = True
        match child_words.read(self._kind.words, message):
            case Guard(number, keys, on):
                self._guarded(self._guards.keys | set(keys) if on else self._guards.keys - set(keys))
                self._compare_and_show("guarded" if on else "guarded no more", number, keys)
            case Look(number):
                self._compare_and_show("looked", number, [each.key for each in self._watching.all])
            case said:
                self._said(said)

    def _compare_and_show(self, reason: str, number: int, keys: Iterable[Key]) -> None:
        rang, doubtful = self._guards.compare(keys)
        self._show(reason, rang, number, doubtful)

    def _rearm(self) -> None:
        """What came meanwhile is seen, because the counters are read afterwards."""
        self._rearm_due_ns = 0
        doubtful = self._guards.arm_again()
        if doubtful is not None:
            self._show("armed again", doubtful=doubtful)
