"""The arbiter: hears the governor, has processes looked for, and tells how things are. What it does is hands.py's.

One event loop (child/life.py), beside the urgent thread and the lanes.
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

from memscaler.child.journal import Rival
from memscaler.child.life import Kind, Life
from memscaler.child.link import Resumed, Seen, ServerSeen
from memscaler.core.gpuctl import Gpuctl
from memscaler.daemon.child_words import Done, Guard, Look
from memscaler.gvm import prepared, told
from memscaler.gvm.acts import Acts
from memscaler.gvm.hands import Hands
from memscaler.gvm.journal import STILL_S, Entry, Journal
from memscaler.gvm.link import FromArbiter, Link, Read, Rules, from_governor
from memscaler.gvm.prepared import Looking, Picture, Prepared
from memscaler.gvm.rules import UNKNOWN_GPUS, Ask, Sight
from memscaler.gvm.turning import Here
from memscaler.gvm.urgent import Urgent
from memscaler.gvm.wanted import RuleAt
from memscaler.servers.aside import aside, aside_within

LOOK_EVERY_S = 60.0  # for processes, while no rule is in force
AFTER_S = 0.2  # when a rule comes into force
AGAIN_S = 0.5  # after a mistake of ours
READ_S = 0.15  # a `read` is answered within 0.2 s
END_S = 10.0  # for everything to be put back; what takes longer is left to the journal
LOWEST = frozenset({"parked", "unmanaged"})  # public states: as low as this GPU goes
KIND = Kind(
    "arbiter",
    undoing="what an earlier memscaler has set on processes is being put back",
    doubt="something may be frozen",
)

log = structlog.get_logger()


class Arbiter(Life[FromArbiter, Journal]):
    """One run. Make it in the loop's thread."""

    def __init__(self, link: Link, urgent: socket.socket, runtime_dir: Path) -> None:
        super().__init__(KIND, link, from_governor, Journal(runtime_dir))
        self._rival = Rival(self.journal, STILL_S)
        self.hands = Hands(Acts(self.journal), self._asked, self._from_thread)
        self._urgent = Urgent(urgent, self.hands.coming, self.hands.came, self._may_park)
        self._looking = Looking()
        self._rules = Rules()
        self._seen: Seen | None = None
        self._ids = itertools.count(1)
        self._calls: dict[int, dict[RuleAt, int]] = {}
        self._guarded: frozenset[str] = frozenset()
        self._readings, self._read_unix_s = Prepared().readings, 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._told: object = None
        self._look_wanted = asyncio.Event()
        self._looked_for: object = None
        self._every_s = math.inf
        self._stirred = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- what kind of child it is ------------------------------------------------------------------------------------

    def _adopt(self, entries: tuple[Entry, ...]) -> None:
        self.hands.adopt(entries)

    def _begin(self) -> None:
        self._urgent.start()
        self._work(self._look_for_ever())
        self._configure()

    def _wait_for(self) -> None:
        self._rival.look(time.monotonic())

    @property
    def _is_busy(self) -> bool:
        return self.hands.is_busy

    def _work(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- the governor ------------------------------------------------------------------------------------------------

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
                self._work(self._read(number))
            case Resumed():
                self._send(Look(0))

    # ---- what the hands want -----------------------------------------------------------------------------------------

    def _asked(self, at: RuleAt, what: Ask, call: int) -> None:
        """From any thread."""
        self._in_loop(self._ask, at, what, call)

    def _ask(self, at: RuleAt, what: Ask, call: int) -> None:
        number = next(self._ids)
        self._calls[number] = {at: call}
        if what is Ask.GUARD:
            self._guarded |= {at[1]}
            self._send(Guard(number, (at[1],), on=True))
        else:
            self._send(Look(number))

    def _from_thread(self) -> None:
        self._in_loop(self.changed)

    def changed(self) -> None:
        """Something is to be guarded, timed or told, soon."""
        self._stirred.set()
        self._keep_guards()
        self._set_timer()
        before, self._every_s = self._every_s, self.hands.look_every_s()
        if self._every_s < before:  # who has come since the last look; not before whoever waits has been served
            self._loop.call_later(AFTER_S, self._look_wanted.set)
        super().changed()

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
                found = await aside(partial(self._look, picture))
            except Exception as error:  # it must go on, and tell
                log.exception("gpuctl.look_failed", err=str(error))
                found = Prepared(problem=f"processes cannot be looked for: {error}")
            if rules is self._rules:
                if not found.problem:
                    self._readings, self._read_unix_s = found.readings, found.read_unix_s
                self._found(found)
            else:
                self._look_wanted.set()

    def _look(self, picture: Picture) -> Prepared:
        """In a thread of its own."""
        found = self._looking.look(picture)
        self.hands.draft(found)
        return found

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
        self._told = None  # it is told whatever it is
        self._report()
        self._send(Done(number, readings is not None, "" if readings is not None else failed))

    # ---- what is told ------------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        self.hands.speak()
        how: Gpuctl = told.gpuctl(self.hands, self._readings, self._read_unix_s, self._problem)
        gist = told.gist(how)
        if gist != self._told:
            self._told = gist
            self._send(how)

    # ---- the end -----------------------------------------------------------------------------------------------------

    async def _undo_all(self) -> bool:
        well = await self._put_all_back()
        self.hands.draft(Prepared())
        return well if self._owns else not self.journal.tells_of_something

    async def _put_all_back(self) -> bool:
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
