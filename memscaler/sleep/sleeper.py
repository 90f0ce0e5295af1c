"""The sleeper: hears the governor, keeps a Charge for each watched server, and tells how they stand.

One event loop (child/life.py). Every stage is left before it ends, as long as that may take.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import structlog

from memscaler.child.life import Kind, Life
from memscaler.child.link import Resumed, Seen
from memscaler.core.stages import MachineSleep, Rung, Sleep, Stage
from memscaler.daemon.child_words import Done, Guard, Look
from memscaler.servers.aside import aside
from memscaler.sleep import charge as charges
from memscaler.sleep import moves
from memscaler.sleep.by_themselves import ByThemselves
from memscaler.sleep.charge import Charge
from memscaler.sleep.drivers import make
from memscaler.sleep.drivers.protocol import Target
from memscaler.sleep.ending import machine_is_stopping
from memscaler.sleep.fitting import told_in_short
from memscaler.sleep.journal import Entry, Journal
from memscaler.sleep.ladder import MARGIN_S
from memscaler.sleep.link import Announced, Do, FromSleeper, Link, Rules, encode, from_governor
from memscaler.sleep.looks import Looks
from memscaler.sleep.machine import BringBack, NotPrepared, Prepare, Quiet
from memscaler.sleep.scope import names_by_uuid, rules_for, suspend_rule
from memscaler.sleep.sight import sight_of
from memscaler.sleep.suspending import Report, Slept, Suspending
from memscaler.sleep.voice import Voice
from memscaler.sleep.wishes import Wishes

SHORTEST_END_S = 5.0
SHUTDOWN_S = 20.0  # of the machine: what is asleep ends with it
KIND = Kind("sleeper", undoing="servers of an earlier memscaler are being brought back", doubt="a server may be down")

log = structlog.get_logger()


class Sleeper(Life[FromSleeper, Journal]):
    """One run. Make it in the loop's thread."""

    def __init__(self, link: Link, runtime_dir: Path, around: make.Around | None = None) -> None:
        """around: of the drivers, for tests; its announcements are ours."""
        super().__init__(KIND, link, from_governor, Journal(runtime_dir))
        self._voice = Voice(self._loop, self._send, lambda: self._link is not None)
        base = around or make.Around(runtime_dir)
        mine = replace(base, announce=self._voice.announced, refused=self._refused, gvm=lambda: self.rules.gvm)
        self._alone = ByThemselves(make.managers(mine), self.changed)
        self._around = charges.Around(make.drivers(mine), self.journal, self._arm, self._disarm, self.changed)
        self.charges: dict[str, Charge] = {}
        self.rules = Rules()
        self.gpu_names: Mapping[str, str] = {}
        self._seen: Seen | None = None
        self._calls: dict[int, tuple[str, int]] = {}
        self.looks = Looks(self._look, self._tell_quiet)
        self._ids = itertools.count(1)
        self._began_s = time.monotonic()
        self._machine = MachineSleep()
        self._unreachable = ""
        self._told: Sleep | None = None
        self._quiet: Quiet | None = None
        self.suspending = Suspending(runtime_dir, self._from_thread)
        self.wishes = Wishes(self)

    # ---- what kind of child it is ------------------------------------------------------------------------------------

    def _adopt(self, entries: tuple[Entry, ...]) -> None:
        for entry in entries:
            log.warning("stage.found", server=str(entry.server), stage=str(entry.spells[-1].rule.stage))
            self.charges[entry.server.key] = Charge(entry.server, self._around, entry)
        self.changed()

    def _begin(self) -> None:
        self.suspending.start()
        if self._seen is not None:
            self._picture(self._seen)
        self._configure()

    @property
    def _is_busy(self) -> bool:
        return any(not charge.standing.is_up for charge in self.charges.values())

    # ---- the governor --------------------------------------------------------------------------------------------

    def _hear(self, message: object) -> None:
        match message:
            case Seen():
                self._seen = message
                if self._owns:
                    self._picture(message)
                self.looks.seen(message.id)
            case Rules():
                self.rules, self.gpu_names = message, names_by_uuid(message)
                if self._owns:
                    self._configure()
            case Do():
                self.wishes.do(message)
            case Resumed():
                self._send(Look(0))
            case Announced():
                self._voice.answer(message)

    def _hang_up(self) -> None:
        super()._hang_up()
        self._voice.hang_up()

    def answer(self, done: Done) -> None:
        """To an operator's wish."""
        self._send(done)

    def _arm(self, key: str, call: int) -> None:
        number = next(self._ids)
        self._calls = {other: each for other, each in self._calls.items() if each[0] != key}
        self._calls[number] = key, call
        self._send(Guard(number, (key,), on=True))

    def _disarm(self, key: str) -> None:
        self._send(Guard(next(self._ids), (key,), on=False))

    def _look(self) -> int:
        number = next(self._ids)
        self._send(Look(number))
        return number

    # ---- the picture ---------------------------------------------------------------------------------------------

    def _picture(self, seen: Seen) -> None:
        asked, call = self._calls.pop(seen.id, ("", 0))
        for server in seen.servers:
            target = Target(server.key, server.port, server.scope, server.name, server.gpus, server.pids)
            charge = self.charges.get(server.key)
            if charge is None:
                charge = self.charges[server.key] = Charge(target, self._around)
            elif not server.gpus and not charge.standing.is_up:  # stopped or checkpointed, it is on no GPU
                target = Target(server.key, server.port, server.scope, server.name, charge.server.gpus, server.pids)
            charge.server = target
            charge.configure(rules_for(target, self.rules))
            charge.post(sight_of(server, target, seen, call if server.key == asked else 0, self.gpu_names))
            if server.live or server.rang:
                charge.asleep_by = ""
        there = {server.key for server in seen.servers}
        for key, charge in list(self.charges.items()):
            if key not in there:
                charge.post(moves.Gone())
                if charge.is_gone:
                    charge.close()
                    del self.charges[key]
        self._alone.look(self.charges)
        self.changed()

    def _configure(self) -> None:
        for charge in list(self.charges.values()):
            charge.configure(rules_for(charge.server, self.rules))
        suspend = suspend_rule(self.rules)
        self.suspending.configure(None if suspend is None else suspend.after_s, self.rules.suspend)
        self.changed()

    def _refused(self, sentence: str) -> None:
        """In a driver's thread: a supervisor may not be asked, or may be again."""
        self._in_loop(self._say_unreachable, sentence)

    def _say_unreachable(self, sentence: str) -> None:
        if sentence != self._unreachable:
            self._unreachable = sentence
            if sentence:
                log.warning("sleeper.refused", err=sentence)
            self.changed()

    # ---- the machine ---------------------------------------------------------------------------------------------

    def _from_thread(self, report: Report) -> None:
        self._in_loop(self._suspending_said, report)

    def _suspending_said(self, report: Report) -> None:
        match report:
            case Prepare():
                self.wishes.prepare(report)
            case BringBack():
                self.wishes.bring_back(report)
            case Slept(slept_s):
                log.info("machine.resumed", slept_s=round(slept_s, 1))
                self._send(Look(0))
            case MachineSleep():
                self._machine = report
                self.changed()
            case Done():
                self.answer(report)

    def _tell_quiet(self) -> None:
        quiet = self._quiet_now()
        if quiet != self._quiet:
            self._quiet = quiet
            self.suspending.tell(quiet)
        leaving = next((each for each in self.charges.values() if each.standing.rung is Rung.LEAVING), None)
        if self.wishes.preparing and leaving is not None:
            self.suspending.tell(NotPrepared(f"{leaving.server}: {leaving.standing.up_for}"))

    def _quiet_now(self) -> Quiet:
        if self._seen is None:
            return Quiet(None, "the servers have not been looked at yet")
        since_s = self._began_s
        for charge in self.charges.values():
            seen, at = charge.standing.seen, charge.standing
            if seen is not None and seen.live:
                return Quiet(None, f"{charge.server} is used")
            if seen is not None and seen.held:
                return Quiet(None, f"{charge.server}: {seen.held}")
            if at.rung in (Rung.LEAVING, Rung.STUCK):
                return Quiet(None, f"{charge.server}: {at.up_for or at.said}")
            since_s = max(since_s, at.quiet_from_s, 0.0 if seen is None else seen.active_s)
        return Quiet(since_s)

    # ---- what is told --------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        if self._owns:
            self._tell_quiet()
        servers = tuple(charge.report() for _, charge in sorted(self.charges.items()) if not charge.is_gone)
        problem = "; ".join(filter(None, (self._problem, self._unreachable)))
        told = Sleep(os.getpid(), servers, self._machine, problem)
        if told != self._told:
            self._told = told
            self._send(told_in_short(told, _fits))

    # ---- the end -------------------------------------------------------------------------------------------------

    async def _undo_all(self) -> bool:
        well = await self._leave_all()
        self.suspending.close()
        return well

    async def _leave_all(self) -> bool:
        """Every stage."""
        ending = list(self.charges.values())
        stopping = bool(ending) and await aside(machine_is_stopping)
        if stopping:
            stay = [charge for charge in ending if charge.standing.stage is Stage.STOP_SERVER]
            ending = [charge for charge in ending if charge not in stay]
            for charge in stay:
                charge.close()
        limit_s = SHORTEST_END_S
        for charge in ending:
            charge.post(moves.End())
            rules = (*charge.standing.held, *((charge.standing.entering,) if charge.standing.entering else ()))
            limit_s = max(limit_s, sum(rule.leave_timeout_s + MARGIN_S for rule in rules))
        limit_s = min(limit_s, SHUTDOWN_S) if stopping else limit_s
        try:
            async with asyncio.timeout(limit_s):
                await asyncio.gather(*(charge.until(_is_up) for charge in ending))
        except TimeoutError:
            left = [str(charge.server) for charge in ending if not charge.standing.is_up]
            log.error("sleeper.ended_early", servers=left, hint="memscaler restore")
            return False
        return True


def _fits(told: Sleep) -> bool:
    try:
        encode(told)
    except ValueError:
        return False
    return True


def _is_up(at: moves.Standing) -> bool:
    return at.is_up
