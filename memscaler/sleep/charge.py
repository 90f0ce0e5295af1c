"""One server that goes down the ladder: carries out what `ladder` says, and tells it what has happened.

In the sleeper's event loop. Drivers are called in threads beside it, one at a time for each server; a call that hangs
holds up nobody else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import structlog

from memscaler.config.stages import StageRule
from memscaler.core.stages import Rung, SleepingServer, Stage, StageTotals
from memscaler.servers.aside import aside
from memscaler.sleep import ladder, moves
from memscaler.sleep.drivers import protocol
from memscaler.sleep.drivers.protocol import Call, Driver, Target
from memscaler.sleep.journal import Entry, Journal
from memscaler.sleep.moves import Phase, Standing

KEPT_WAKES = 10
SHORTEST_PAUSE_S = 0.01  # a timer may be a little early

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Around:
    """What all servers share. arm: guard a watch, and tell a Sight with this call. changed: something is to be told."""

    drivers: Mapping[Stage, Driver]
    journal: Journal
    arm: Callable[[str, int], None]
    disarm: Callable[[str], None]
    changed: Callable[[], None]


class Charge:
    """server: as seen last. rules: those that hold for it, in the ladder's order."""

    def __init__(self, server: Target, around: Around, found: Entry | None = None) -> None:
        self.server = server
        self.rules: tuple[StageRule, ...] = ()
        self.standing = Standing(since_s=_now_s(), quiet_from_s=_now_s())
        self.moved = asyncio.Event()
        self.asleep_by = ""
        self._around = around
        self._memos: dict[Stage, Mapping[str, Any]] = {}
        self._entered: set[Stage] = set()
        self._totals: dict[Stage, StageTotals] = {}
        self._down: tuple[Stage, float] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        if found is not None:
            self._memos = {spell.rule.stage: spell.memo for spell in found.spells}
            self._entered = set(self._memos)
            held = tuple(spell.rule for spell in found.spells)
            self._take(self.standing, ladder.found(held, _now_s()))

    def post(self, event: moves.Event) -> None:
        """It has happened, or is wanted."""
        self._step(event, _now_s())

    def _ring(self) -> None:
        """Its timer, which may be a little early."""
        now_s, due_s = _now_s(), self.standing.due_s
        self._step(moves.Tick(), now_s if due_s is None else max(now_s, due_s))

    def _step(self, event: moves.Event, now_s: float) -> None:
        before = self.standing
        self._take(before, ladder.step(before, event, now_s, self.rules))

    def configure(self, rules: tuple[StageRule, ...]) -> None:
        """Other rules may hold from now on. What is entered keeps those with which it was."""
        if rules != self.rules:
            self.rules = rules
            self.post(moves.Tick())

    @property
    def is_gone(self) -> bool:
        """Nobody watches it, and nothing of it is down."""
        return self.standing.seen is None and self.standing.is_up

    def close(self) -> None:
        """Nothing of it happens any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def until(self, reached: Callable[[Standing], bool]) -> Standing:
        """How it stands when that is so. Put a limit to it: that may be never."""
        while not reached(self.standing):
            await self.moved.wait()
        return self.standing

    # ---- what is to be done --------------------------------------------------------------------------------------

    def _take(self, before: Standing, done: moves.Step) -> None:
        self.standing = done.standing
        self._count()
        for action in done.actions:
            self._do(action)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.standing.due_s is not None:
            pause_s = max(self.standing.due_s - _now_s(), SHORTEST_PAUSE_S)
            self._timer = asyncio.get_running_loop().call_later(pause_s, self._ring)
        if self.standing != before:
            self._say(before)
            self.moved.set()
            self.moved = asyncio.Event()
            self._around.changed()

    def _do(self, action: moves.Action) -> None:
        match action:
            case moves.Arm(call):
                self._around.arm(self.server.key, call)
            case moves.Disarm():
                self._around.disarm(self.server.key)
            case moves.Enter(call, rule):
                self._begin(self._enter(call, rule))
            case moves.Leave(call, rule, why):
                log.debug("stage.leaving", server=str(self.server), stage=str(rule.stage), reason=why)
                self._begin(self._leave(call, rule, why))

    def _begin(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _enter(self, call: int, rule: StageRule) -> None:
        driver, server = self._around.drivers.get(rule.stage), self.server
        if driver is None:
            self.post(moves.NotPossible(call, f"there is no {rule.stage} here"))
            return
        limit = Call.within(rule.enter_timeout_s, lambda: bool(self.standing.up_for))
        event = await aside(partial(_entering, driver, server, rule, limit, call, self._write))
        if isinstance(event, (moves.Undone, moves.NotPossible)):
            self._forget(rule)  # it is up as before
        elif isinstance(event, moves.Entered):
            told = self._totals.get(rule.stage, StageTotals())
            self._totals[rule.stage] = replace(told, entered=told.entered + 1)
            self._entered.add(rule.stage)
        self.post(event)

    def _write(self, server: Target, rule: StageRule, memo: Mapping[str, Any]) -> None:
        """In the thread: before the act, and on disk."""
        self._around.journal.add(server, rule, memo)
        self._memos[rule.stage] = memo

    async def _leave(self, call: int, rule: StageRule, why: str) -> None:
        driver, began_s = self._around.drivers.get(rule.stage), _now_s()
        memo = self._memos.get(rule.stage)
        if driver is None or memo is None:
            self.post(moves.NotLeft(call, f"nobody knows how to leave {rule.stage}"))
            return
        event = await aside(partial(_leaving, driver, memo, rule, call))
        if isinstance(event, moves.Left):
            self._forget(rule)
            if rule.stage in self._entered:  # else it never was: that is no wake
                self._entered.discard(rule.stage)
                if why == ladder.STARTED:
                    self.post(event)
                    return  # how long we took says nothing: it was up, or nearly
                told = self._totals.get(rule.stage, StageTotals())
                wakes_s = (*told.wakes_s, round(_now_s() - began_s, 3))[-KEPT_WAKES:]
                self._totals[rule.stage] = replace(told, left=told.left + 1, wakes_s=wakes_s)
        self.post(event)

    def _forget(self, rule: StageRule) -> None:
        try:
            self._around.journal.take(self.server, rule)
        except OSError as error:
            log.warning("sleep.journal_failed", server=str(self.server), err=str(error))

    # ---- what is told --------------------------------------------------------------------------------------------

    def report(self) -> SleepingServer:
        at, now_s, now_unix_s = self.standing, _now_s(), time.time()
        ahead = ladder.next_stage(at, self.rules)
        resting = at.phase in (Phase.RESTING, Phase.ARMING, Phase.LOOKING)
        due_s = ahead.due_s if resting else None
        on_way = at.entering.stage if at.entering is not None else at.stage
        asleep_by = self.asleep_by if at.rung is Rung.UP else ""
        return SleepingServer(
            name=self.server.name or f"port {self.server.port}",
            port=self.server.port,
            scope=self.server.scope,
            gpus=self.server.gpus,
            stage=on_way,
            rung=at.rung,
            since_unix_s=round(now_unix_s - now_s + at.since_s, 3),
            asleep_by=asleep_by,
            next=ahead.rule.stage if ahead.rule is not None and resting else None,
            next_unix_s=None if due_s is None else round(now_unix_s - now_s + due_s, 3),
            why_not=ahead.why_not if resting else "",
            missing=bool(at.missing),
            note=at.said,
            totals=dict(self._totals),
        )

    def _count(self) -> None:
        now_s, at = _now_s(), self.standing
        stage = at.stage if at.rung is Rung.DOWN else None
        was = self._down
        if (was[0] if was is not None else None) is not stage:
            if was is not None:
                told = self._totals.get(was[0], StageTotals())
                self._totals[was[0]] = replace(told, seconds=round(told.seconds + now_s - was[1], 3))
            self._down = None if stage is None else (stage, now_s)

    def _say(self, before: Standing) -> None:
        """What went wrong. What went right the governor says, from the report."""
        at, name = self.standing, str(self.server)
        for stage, failure in at.failures.items():
            if failure.times > (before.failures[stage].times if stage in before.failures else 0):
                told = self._totals.get(stage, StageTotals())
                self._totals[stage] = replace(told, failed=told.failed + 1)
                again_s = round(failure.again_s - _now_s(), 1)
                log.warning("stage.failed", server=name, stage=str(stage), err=failure.why, again_s=again_s)
        for stage, why in at.passed.items():
            if stage not in before.passed:
                log.info("stage.not_possible", server=name, stage=str(stage), reason=why)
        if at.rung is Rung.STUCK and (before.rung is not Rung.STUCK or at.said != before.said):
            hint = "it is tried again and again; `memscaler status` tells"
            log.error("stage.stuck", server=name, stage=str(at.stage or ""), err=at.said, hint=hint)


def _entering(
    driver: Driver,
    server: Target,
    rule: StageRule,
    limit: Call,
    call: int,
    write: Callable[[Target, StageRule, Mapping[str, Any]], None],
) -> moves.Event:
    """In a thread. Nothing has happened to the server before the memo is written."""
    acts = False
    try:
        if why := driver.possible(server, rule, limit):
            return moves.NotPossible(call, why)
        memo = driver.prepare(server, rule, limit)
        write(server, rule, memo)
        acts = True
        driver.enter(memo, limit)
    except (protocol.Later, protocol.Gone) as error:
        return moves.NotPossible(call, protocol.said(error), lasting=False)
    except protocol.Undone as error:
        return moves.Undone(call, protocol.said(error), error.for_good)
    except Exception as error:  # noqa: BLE001  # a mistake in a driver is told like any other failure
        return moves.HalfWay(call, protocol.said(error)) if acts else moves.Undone(call, protocol.said(error))
    return moves.Entered(call)


def _leaving(driver: Driver, memo: Mapping[str, Any], rule: StageRule, call: int) -> moves.Event:
    """In a thread."""
    try:
        driver.leave(memo, Call.within(rule.leave_timeout_s))
    except protocol.Gone as error:
        # Another process of this server may serve there already, except where its keeper has just said that none does.
        return moves.Left(call, protocol.said(error) if rule.stage is Stage.STOP_SERVER else "")
    except Exception as error:  # noqa: BLE001  # it is not up, whatever the reason
        return moves.NotLeft(call, protocol.said(error))
    return moves.Left(call)


def _now_s() -> float:
    return time.monotonic()
