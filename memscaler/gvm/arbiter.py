"""The arbiter: hears the governor, has processes looked for, and tells how things are. What it does is hands.py's.

One event loop, beside the urgent thread and the lanes. It ends when the governor says so, has gone, or stands still:
then nobody tells who comes or goes, and everything is put back first.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import socket
import time
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog

from memscaler.core.gpuctl import Gpuctl
from memscaler.daemon.child_words import Done, Guard, Look
from memscaler.gvm import prepared, told
from memscaler.gvm.acts import Acts
from memscaler.gvm.hands import Hands
from memscaler.gvm.journal import Journal, Rival, anything_to_undo
from memscaler.gvm.link import FromArbiter, Link, Read, Rules, from_governor
from memscaler.gvm.prepared import Looking, Picture, Prepared
from memscaler.gvm.rules import UNKNOWN_GPUS, Ask, Sight
from memscaler.gvm.turning import Here
from memscaler.gvm.urgent import Urgent
from memscaler.gvm.wanted import RuleAt
from memscaler.servers.aside import aside, aside_within
from memscaler.servers.governor_link import End, LinkLost, Resumed, Seen, ServerSeen
from memscaler.servers.standstill import stands_still

SOON_S = 0.02  # reports that follow each other so closely are one
OWN_S = 0.2
STILL_EVERY_S = 0.5  # while a rule is in force: whether the governor stands still; found twice, it does
LOOK_EVERY_S = 60.0  # for processes, while no rule is in force
AFTER_S = 0.2  # when a rule comes into force
AGAIN_S = 0.5  # after a mistake of ours
READ_S = 0.15  # a `read` is answered within 0.2 s
END_S = 10.0  # for everything to be put back; what takes longer is left to the journal
LOWEST = frozenset({"parked", "unmanaged"})  # public states: as low as this GPU goes

log = structlog.get_logger()


class Arbiter:
    """One run. Make it in the loop's thread."""

    def __init__(self, link: Link, urgent: socket.socket, runtime_dir: Path) -> None:
        self._loop = asyncio.get_running_loop()
        self._link: Link | None = link
        self.journal = Journal(runtime_dir)
        self.hands = Hands(Acts(self.journal), self._asked, self._from_thread)
        self._urgent = Urgent(urgent, self.hands.coming, self.hands.came, self._may_park)
        self._looking = Looking()
        self._rules = Rules()
        self._seen: Seen | None = None
        self._ids = itertools.count(1)
        self._calls: dict[int, dict[RuleAt, int]] = {}
        self._guarded: frozenset[str] = frozenset()
        self._problem = ""
        self._readings, self._read_unix_s = Prepared().readings, 0.0
        self._soon: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._told: object = None
        self._look_wanted = asyncio.Event()
        self._looked_for: object = None
        self._every_s = math.inf
        self._stirred = asyncio.Event()
        self._over = asyncio.Event()
        self._governor = os.getppid()
        self._watch: asyncio.Task[None] | None = None
        self._owns = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> bool:
        """Until the end. True if nothing of ours is left anywhere."""
        link = self._link
        if link is None:
            return True
        self._loop.add_reader(link.fileno(), self._readable)
        owned = await self._own()
        if owned is not None:
            self._adopt()
            self._urgent.start()
            self._begin(self._look_for_ever())
            self._configure()
        await self._over.wait()
        self._problem = ""
        well = await self._put_all_back()
        self._report()
        self._hang_up()
        if owned is None:
            return not anything_to_undo(self.journal.runtime_dir)
        self.journal.release(owned)
        return well

    async def _own(self) -> int | None:
        """The journal's lock. Somebody may still be at work: an undo, or an arbiter whose governor has died."""
        rival = Rival(self.journal)
        while not self._over.is_set():
            try:
                return self.journal.own()
            except BlockingIOError:
                rival.look(time.monotonic())
                self._problem = "what an earlier memscaler has set on processes is being put back"
            except OSError as error:
                self._problem = f"cannot write {self.journal.folder}: {error.strerror}"
            self._changed()
            with suppress(TimeoutError):
                async with asyncio.timeout(OWN_S):
                    await self._over.wait()
        return None

    def _adopt(self) -> None:
        found = self.journal.found()
        self._problem, self._owns = "", True
        if found.unreadable:
            self._problem = f"cannot read {', '.join(str(path) for path in found.unreadable)}: something may be frozen"
            log.error("gpuctl.journal_unreadable", files=[str(path) for path in found.unreadable])
        self.hands.adopt(found.entries)

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- the governor --------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            while self._link is not None and (data := self._link.receive()) is not None:
                try:
                    message = from_governor(data)
                except ValueError as error:
                    log.error("arbiter.message_refused", err=str(error))
                    continue
                self._hear(message)
        except LinkLost as error:
            self._lost(error)

    def _hear(self, message: object) -> None:
        match message:
            case Seen():
                self._seen = message
                if self._owns:
                    self._picture(message)
            case Rules():
                self._rules = message
                if self._owns:
                    self._configure()
            case Read(number):
                self._begin(self._read(number))
            case Resumed():
                self._send(Look(0))
            case End():
                self._over.set()

    def _lost(self, error: LinkLost) -> None:
        log.warning("arbiter.governor_gone", err=str(error))
        self._hang_up()
        self._over.set()

    async def _watch_governor(self) -> None:
        """As long as a rule is in force. It may be a moment (a debugger looks, and goes on)."""
        before = False
        while self._link is not None and self.hands.is_busy:
            await asyncio.sleep(STILL_EVERY_S)
            still = stands_still(self._governor)
            if before and still:
                self._lost(LinkLost("the governor stands still"))
            before = still
        self._watch = None

    def _hang_up(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            self._loop.remove_reader(link.fileno())
            self._loop.remove_writer(link.fileno())
            link.close()

    def _send(self, message: FromArbiter) -> None:
        if self._link is None:
            return
        try:
            self._link.send(message)
            if self._link.waiting:
                self._loop.add_writer(self._link.fileno(), self._writable)
        except LinkLost as error:
            self._lost(error)
        except ValueError as error:  # too long
            log.error("arbiter.not_told", err=str(error))

    def _writable(self) -> None:
        if self._link is None:
            return
        try:
            self._link.flush()
            if not self._link.waiting:
                self._loop.remove_writer(self._link.fileno())
        except LinkLost as error:
            self._lost(error)

    # ---- what the hands want -----------------------------------------------------------------------------------------

    def _asked(self, at: RuleAt, what: Ask, call: int) -> None:
        """From any thread."""
        with suppress(RuntimeError):  # the loop is over
            self._loop.call_soon_threadsafe(self._ask, at, what, call)

    def _ask(self, at: RuleAt, what: Ask, call: int) -> None:
        number = next(self._ids)
        self._calls[number] = {at: call}
        if what is Ask.GUARD:
            self._guarded |= {at[1]}
            self._send(Guard(number, (at[1],), on=True))
        else:
            self._send(Look(number))

    def _from_thread(self) -> None:
        with suppress(RuntimeError):  # the loop is over
            self._loop.call_soon_threadsafe(self._changed)

    def _changed(self) -> None:
        """Something is to be guarded, timed or told, soon."""
        self._stirred.set()
        self._keep_guards()
        self._set_timer()
        before, self._every_s = self._every_s, self.hands.look_every_s()
        if self._every_s < before:  # who has come since the last look; not before whoever waits has been served
            self._loop.call_later(AFTER_S, self._look_wanted.set)
        if self._soon is None:
            self._soon = self._loop.call_later(SOON_S, self._report)

    def _keep_guards(self) -> None:
        wanted = self.hands.guarded()
        if more := wanted - self._guarded:
            self._send(Guard(next(self._ids), tuple(sorted(more)), on=True))
        if less := self._guarded - wanted:
            self._send(Guard(next(self._ids), tuple(sorted(less)), on=False))
        self._guarded = wanted

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_s = self.hands.due_s
        if due_s < math.inf:
            self._timer = self._loop.call_later(max(due_s - time.monotonic(), 0.0), self._tick)

    def _tick(self) -> None:
        self._timer = None
        try:
            self.hands.tick()
        except Exception as error:  # somebody may stand still: again soon
            log.exception("gpuctl.tick_failed", err=str(error))
            self._timer = self._loop.call_later(AGAIN_S, self._tick)
        else:
            self._set_timer()

    def _may_park(self, uuid: str) -> str:
        """In a thread; may hang."""
        return prepared.pending(self._rules.gvm, uuid)

    # ---- the picture -------------------------------------------------------------------------------------------------

    def _configure(self) -> None:
        self.hands.configure(self._rules.rules, self._rules.gvm.proc)
        if (seen := self._seen) is not None:  # as of now: questions that follow from an old picture would be late
            servers = tuple(replace(server, rang=False) for server in seen.servers)
            self._picture(replace(seen, at_ns=time.monotonic_ns(), servers=servers))
        self._look_wanted.set()

    def _picture(self, seen: Seen) -> None:
        calls, at_s = self._calls.pop(seen.id, {}), seen.at_ns / 1e9
        names = {uuid: name for name, uuid in self._rules.gpu_names.items()}
        sights = {
            (rule.name, server.key): _sight(server, seen, calls.get((rule.name, server.key), 0), names)
            for rule in self._rules.rules
            for server in seen.servers
            if prepared.applies(rule, server, self._rules.gpu_names)
        }
        self.hands.spare(frozenset(pid for server in seen.servers for pid in server.pids))
        self.hands.seen(sights, {server.key: server.gpus for server in seen.servers}, at_s)
        if _whom(seen) != self._looked_for:
            self._look_wanted.set()
        self._set_timer()

    async def _look_for_ever(self) -> None:
        """When something has changed, while a rule is in force, and every now and then."""
        while not self._over.is_set():
            pause_s = min(self._every_s, LOOK_EVERY_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._look_wanted.wait()
            self._look_wanted.clear()
            seen = self._seen
            if seen is None:
                continue
            self._looked_for = _whom(seen)
            rules = self._rules
            ours = frozenset({os.getpid(), self._governor})
            picture = Picture(rules.rules, seen.servers, rules.gvm, rules.gpu_names, ours)
            try:
                found = await aside(partial(self._looking.look, picture))
            except Exception as error:  # it must go on, and tell
                log.exception("gpuctl.look_failed", err=str(error))
                found = Prepared(problem=f"processes cannot be looked for: {error}")
            if rules is self._rules:
                if not found.problem:
                    self._readings, self._read_unix_s = found.readings, found.read_unix_s
                self._found(found)
            else:
                self._look_wanted.set()

    def _found(self, found: Prepared) -> None:
        try:
            self.hands.found(found)
        except Exception as error:  # the next look is to follow all the same
            log.exception("gpuctl.look_failed", err=str(error))

    async def _read(self, number: int) -> None:
        """Fresh readings for who asks; GVM's files may hang as long as a limit is being lowered."""
        tree = Here.look(self._rules.gvm).tree
        failed = "GVM does not answer in time"
        try:
            readings = await aside_within(READ_S, tree.readings, None)
        except Exception as error:  # noqa: BLE001  # told to who has asked
            readings, failed = None, str(error)
        if readings is not None:
            self._readings, self._read_unix_s = readings, time.time()
        self._report(always=True)
        self._send(Done(number, readings is not None, "" if readings is not None else failed))

    # ---- what is told ------------------------------------------------------------------------------------------------

    def _report(self, *, always: bool = False) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        self.hands.speak()
        if self._watch is None and self._link is not None and self.hands.is_busy:
            self._watch = self._loop.create_task(self._watch_governor())
        how: Gpuctl = told.gpuctl(self.hands, self._readings, self._read_unix_s, self._problem)
        gist = told.gist(how)
        if always or gist != self._told:
            self._told = gist
            self._send(how)

    # ---- the end -----------------------------------------------------------------------------------------------------

    async def _put_all_back(self) -> bool:
        """What cannot be put back within its time is left to the journal."""
        self.hands.end()
        self._set_timer()
        by_s = time.monotonic() + END_S
        while not self.hands.is_clean and (left_s := by_s - time.monotonic()) > 0:
            self._stirred.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._stirred.wait()
        if not self.hands.is_clean:
            log.error("arbiter.ended_early", hint="memscaler restore")
        return self.hands.is_clean


def _sight(server: ServerSeen, seen: Seen, call: int, names: Mapping[str, str]) -> Sight:
    """What the rules go by. A watch whose GPUs nobody knows is not quiet: who knows what it does."""
    states = {uuid: seen.gpus[uuid] for uuid in server.gpus if uuid in seen.gpus}
    awake = "" if states else UNKNOWN_GPUS
    for uuid, gpu in states.items():
        if gpu.held:
            awake = f"{names.get(uuid, f'GPU {uuid}')} is held awake"
        elif gpu.state not in LOWEST:
            awake = f"{names.get(uuid, f'GPU {uuid}')} is {gpu.state}"
    return Sight(seen.at_ns / 1e9, call, server.live, server.rang, server.last_activity_ns / 1e9, awake)


def _whom(seen: Seen) -> object:
    """Who listens where: when that changes, others are meant."""
    return tuple((server.key, server.name, server.gpus, server.pids) for server in seen.servers)
