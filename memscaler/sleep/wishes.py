"""What operators, the gateway and the suspend stage want of the servers, carried out and answered."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any

import structlog

from memscaler.config.stages import StageRule
from memscaler.core.stages import Rung, Stage
from memscaler.daemon.child_words import Done
from memscaler.sleep import ladder, moves
from memscaler.sleep.charge import Charge
from memscaler.sleep.link import Do
from memscaler.sleep.machine import Back, BringBack, NotPrepared, Prepare, Prepared
from memscaler.sleep.moves import DEPTH, Phase, Standing
from memscaler.sleep.scope import names
from memscaler.sleep.sight import hold_hint
from memscaler.sleep.told import who

if TYPE_CHECKING:
    from memscaler.sleep.sleeper import Sleeper

LONGEST_S = 900.0  # whoever asked has given up by then
MOST_TOLD = 3  # reasons
ON_ITS_WAY = frozenset({Phase.ARMING, Phase.ENTERING, Phase.LOOKING})
_LISTED = "memscaler servers list tells how it stands"
_MACHINE = frozenset({"suspend", "never", "allow"})

log = structlog.get_logger()


class Wishes:
    """Of one sleeper. preparing: servers are being taken down for a suspend, or are down for it."""

    def __init__(self, sleeper: Sleeper) -> None:
        self._sleeper = sleeper
        self._tasks: set[asyncio.Task[None]] = set()
        self._preparation: asyncio.Task[None] | None = None
        self.preparing = False

    def do(self, wish: Do) -> None:
        """An operator's, or the gateway's. Done follows."""
        if wish.what == "suspend":
            self._begin(self._answered(wish, self._suspend(wish)))
            return
        if wish.what in _MACHINE:
            self._sleeper.suspending.ask(wish)
            return
        chosen, unknown = self._chosen(wish.servers)
        if unknown:
            there = ", ".join(str(charge.server) for charge in self._sleeper.charges.values()) or "none"
            hint = f"there are: {there}"
            self._sleeper.answer(Done(wish.id, ok=False, error=f"no watched server is {unknown}", hint=hint))
        elif wish.what == "wake":
            self._begin(self._answered(wish, self._wake(wish, chosen)))
        else:
            self._begin(self._answered(wish, self._put_to_sleep(wish, chosen)))

    def prepare(self, what: Prepare) -> None:
        """Take the servers down for a suspend; Prepared or NotPrepared follows."""
        self._stop_preparing()
        self.preparing = True
        self._preparation = self._begin(self._prepare(what))

    def bring_back(self, what: BringBack) -> None:
        """All servers; Back follows."""
        self._stop_preparing()
        self._begin(self._bring_back(what))

    def _stop_preparing(self) -> None:
        self.preparing = False
        if self._preparation is not None:
            self._preparation.cancel()
            self._preparation = None

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _answered(self, wish: Do, work: Coroutine[Any, Any, None]) -> None:
        """Somebody waits for the end of it, also of a mistake of ours."""
        try:
            await work
        except Exception as error:
            log.exception("sleeper.wish_failed", what=wish.what)
            what = f"{type(error).__name__}: {error}"
            self._sleeper.answer(Done(wish.id, ok=False, error=f"it could not be done: {what}", hint="see the log"))

    def _chosen(self, words: Iterable[str]) -> tuple[list[Charge], str]:
        """Those that are meant, and the first word that means none."""
        charges, gpu_names = list(self._sleeper.charges.values()), self._sleeper.rules.gpu_names
        wanted = tuple(words)
        for word in wanted:
            if not any(names((word,), charge.server, gpu_names) for charge in charges):
                return [], word
        return [charge for charge in charges if names(wanted, charge.server, gpu_names)], ""

    # ---- up ------------------------------------------------------------------------------------------------------

    async def _wake(self, wish: Do, chosen: list[Charge]) -> None:
        began_s = time.monotonic()
        was = {charge.server.key: charge.standing.stage for charge in chosen}
        for charge in chosen:
            charge.post(moves.Up(f"{who(wish.by)} wants it"))
        failed = await _all_up(chosen)
        lost = next((each for each in chosen if _is_lost(each.standing)), None)
        servers = [
            {"name": str(each.server), "was": was[each.server.key], "up": _is_up(each.standing)} for each in chosen
        ]
        document = {"servers": servers, "took_s": round(time.monotonic() - began_s, 3)}
        if failed is None and lost is None:
            self._sleeper.answer(Done(wish.id, document=document))
        elif failed is None and lost is not None:
            error = f"{lost.server} cannot be woken: {lost.standing.missing}"
            self._sleeper.answer(Done(wish.id, ok=False, error=error, hint=_LISTED, document=document))
        elif failed is not None:
            error = f"{failed.server} does not come back: {failed.standing.said or 'it takes too long'}"
            hint = "it is tried again and again; memscaler status tells"
            self._sleeper.answer(Done(wish.id, ok=False, error=error, hint=hint, document=document))

    async def _bring_back(self, what: BringBack) -> None:
        chosen = list(self._sleeper.charges.values())
        for charge in chosen:
            charge.post(moves.Up(what.why))
        failed = await _all_up(chosen)
        self._sleeper.suspending.tell(Back(all_up=failed is None))

    # ---- down ----------------------------------------------------------------------------------------------------

    async def _put_to_sleep(self, wish: Do, chosen: list[Charge]) -> None:
        """Those that have stages; each as deep as was said, or one stage deeper."""
        for charge in chosen:
            why = _cannot(charge, wish.stage)
            if why and (wish.servers or len(chosen) == 1):
                self._sleeper.answer(Done(wish.id, ok=False, error=why, hint=_what_to_do(charge)))
                return
        there = [charge for charge in chosen if not _cannot(charge, wish.stage)]
        able = [charge for charge in there if not _is_deepest(charge)]
        was = {charge.server.key: charge.standing.stage for charge in able}
        for charge in able:
            charge.post(moves.Down(wish.stage))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_S):
                await asyncio.gather(*(charge.until(_has_settled) for charge in able))
        wrong = next((each for each in able if not _went(each, wish.stage, was[each.server.key])), None)
        servers = [{"name": str(each.server), "stage": each.standing.stage} for each in there]
        if not there:
            error = "no server has a stage that it could go down to now"
            hint = "; ".join(_cannot(charge, wish.stage) for charge in chosen[:MOST_TOLD])
            self._sleeper.answer(Done(wish.id, ok=False, error=error, hint=hint))
        elif wrong is not None:
            why = _why_not(wrong, wish.stage)
            error = f"{wrong.server} is not asleep: {why}"
            hint = _what_to_do(wrong)
            self._sleeper.answer(Done(wish.id, ok=False, error=error, hint=hint, document={"servers": servers}))
        else:
            self._sleeper.answer(Done(wish.id, document={"servers": servers}))

    async def _suspend(self, wish: Do) -> None:
        """Now: whoever came while no GPU was parked, and no watch armed, has not been told of yet."""
        if await self._sleeper.looks.fresh() or wish.force:
            self._sleeper.suspending.ask(wish)
        else:
            self._sleeper.answer(Done(wish.id, ok=False, error="who uses the servers is not known", hint="try again"))

    async def _prepare(self, what: Prepare) -> None:
        suspend = self._sleeper.rules.suspend
        chosen = [each for each in self._sleeper.charges.values() if each.standing.held or each.server.pids]
        if suspend.servers != "keep":
            stage = Stage(suspend.servers)
            for charge in chosen:
                own = next((rule for rule in charge.rules if rule.stage is stage), StageRule(stage=stage, after_s=0.0))
                charge.post(moves.Down(rule=own, force=what.force))
            await asyncio.gather(*(charge.until(lambda at: at.phase not in ON_ITS_WAY) for charge in chosen))
            for charge in chosen:
                if why := _not_prepared(charge, stage):
                    # what cannot be stopped is a state of things, which needs no growing pause; what failed is one
                    failed = stage in charge.standing.failures
                    self._sleeper.suspending.tell(NotPrepared(f"{charge.server}: {why}", failed=failed))
                    return
        if not await self._sleeper.looks.fresh() and not what.force:
            self._sleeper.suspending.tell(NotPrepared("who uses the servers is not known"))
            return
        busy = next((each for each in chosen if each.standing.seen is not None and each.standing.seen.live), None)
        if busy is not None and not what.force:
            self._sleeper.suspending.tell(NotPrepared(f"{busy.server} is used"))
        else:
            self._sleeper.suspending.tell(Prepared())


async def _all_up(chosen: list[Charge]) -> Charge | None:
    """None, or the first that does not come back."""
    waits = [charge.until(lambda at: at.is_up or at.rung is Rung.STUCK) for charge in chosen]
    try:
        async with asyncio.timeout(LONGEST_S):
            await asyncio.gather(*waits)
    except TimeoutError:
        pass
    return next((charge for charge in chosen if not charge.standing.is_up), None)


def _is_lost(at: Standing) -> bool:
    """An operator has taken it away while it slept. One that has ended by itself may be about to be back."""
    return at.is_up and at.missing not in ("", ladder.NOBODY)


def _is_up(at: Standing) -> bool:
    return at.is_up and not _is_lost(at)


def _has_settled(at: Standing) -> bool:
    return at.phase not in ON_ITS_WAY and (at.wished is None or at.phase is Phase.HUNG)


def _is_deepest(charge: Charge) -> bool:
    """It is asleep, and there is nothing below."""
    at = charge.standing
    if at.stage is None or at.rung is not Rung.DOWN:
        return False
    return all(DEPTH[rule.stage] <= DEPTH[at.stage] for rule in charge.rules)


def _went(charge: Charge, stage: Stage | None, was: Stage | None) -> bool:
    now = charge.standing.stage
    if now is None or charge.standing.rung is not Rung.DOWN:
        return False
    return DEPTH[now] >= DEPTH[stage] if stage is not None else now is not was


def _why_not(charge: Charge, stage: Stage | None) -> str:
    at = charge.standing
    if at.rung is Rung.STUCK:
        return at.said
    if at.wished is not None:
        return "it takes too long"
    if at.refused:
        return at.refused
    why = (at.passed.get(stage) or at.barred.get(stage)) if stage is not None else ""
    return why or ladder.next_stage(at, charge.rules).why_not or at.said or "somebody came"


def _cannot(charge: Charge, stage: Stage | None) -> str:
    """Why it cannot be put there now, a sentence; "" if it may be tried."""
    at = charge.standing
    deeper = {rule.stage for rule in charge.rules if at.stage is None or DEPTH[rule.stage] > DEPTH[at.stage]}
    as_deep = stage is not None and at.stage is not None and DEPTH[at.stage] >= DEPTH[stage]
    if as_deep or (stage is None and _is_deepest(charge)):
        return ""
    if not deeper or (stage is not None and stage not in deeper):
        return f"no {stage or 'deeper'} stage is configured for {charge.server}"
    return _in_the_way(charge)


def _in_the_way(charge: Charge) -> str:
    """As it stands now."""
    at = charge.standing
    if at.phase is not Phase.RESTING:
        return f"{charge.server} is on its way ({at.rung})"
    if at.missing:
        return f"{charge.server} is not there: {at.missing}"
    if at.seen is None or at.seen.live or at.seen.held:
        return f"{charge.server} is used" if at.seen is None or at.seen.live else f"{charge.server}: {at.seen.held}"
    return ""


def _what_to_do(charge: Charge) -> str:
    """So that it can be put to sleep."""
    at, seen = charge.standing, charge.standing.seen
    if at.phase is not Phase.RESTING:
        return "try again in a moment; memscaler status tells"
    if at.missing:
        return _LISTED
    if seen is not None and seen.held:
        return hold_hint(seen.holds)
    if seen is not None and seen.live:
        return "memscaler status tells its open connections; it can sleep when they have ended"
    if at.refused and not at.passed and not at.barred:
        return "try again when that is mended or over; memscaler status tells"
    return "the [[stage]] tables say what there is: memscaler config show"


def _not_prepared(charge: Charge, stage: Stage) -> str:
    at = charge.standing
    if at.phase is Phase.RESTING and at.stage is not None and DEPTH[at.stage] >= DEPTH[stage]:
        return ""
    if at.phase is not Phase.RESTING or not at.wished:
        return at.up_for or at.said or "somebody came"
    ahead = ladder.next_stage(at, charge.rules)
    kept = '; [suspend] servers = "keep" leaves it running' if stage in {*at.passed, *at.barred} else ""
    return f"it cannot go to {stage}: {ahead.why_not or at.said or 'not now'}{kept}"
