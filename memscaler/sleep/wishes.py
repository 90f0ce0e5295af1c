"""What operators, the gateway and the suspend stage want of the servers, carried out and answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from memscaler.config.stages import StageRule
from memscaler.core.stages import Rung, Stage
from memscaler.daemon.sleeper_words import Done
from memscaler.sleep import ladder, moves
from memscaler.sleep.charge import Charge
from memscaler.sleep.link import Do
from memscaler.sleep.machine import Back, BringBack, NotPrepared, Prepare, Prepared
from memscaler.sleep.moves import DEPTH, Phase, Standing
from memscaler.sleep.scope import names

if TYPE_CHECKING:
    from memscaler.sleep.sleeper import Sleeper

LONGEST_WAKE_S = 900.0  # whoever asked has given up by then
ON_ITS_WAY = frozenset({Phase.ARMING, Phase.ENTERING, Phase.LOOKING})
_MACHINE = frozenset({"suspend", "never", "allow"})


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
            self._begin(self._suspend(wish))
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
            self._begin(self._wake(wish, chosen))
        else:
            self._begin(self._put_to_sleep(wish, chosen))

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
            charge.post(moves.Up(f"{wish.by or 'an operator'} wants it"))
        failed = await _all_up(chosen)
        servers = [
            {"name": str(each.server), "was": was[each.server.key], "up": each.standing.is_up} for each in chosen
        ]
        document = {"servers": servers, "took_s": round(time.monotonic() - began_s, 3)}
        if failed is None:
            self._sleeper.answer(Done(wish.id, document=document))
        else:
            error = f"{failed.server} does not come back: {failed.standing.said or 'it takes too long'}"
            hint = "it is tried again and again; memscaler status tells"
            self._sleeper.answer(Done(wish.id, ok=False, error=error, hint=hint, document=document))

    async def _bring_back(self, what: BringBack) -> None:
        chosen = list(self._sleeper.charges.values())
        for charge in chosen:
            charge.post(moves.Up(what.why))
        await _all_up(chosen)
        self._sleeper.suspending.tell(Back())

    # ---- down ----------------------------------------------------------------------------------------------------

    async def _put_to_sleep(self, wish: Do, chosen: list[Charge]) -> None:
        """Those that have stages; each as deep as was said, or one stage deeper."""
        for charge in chosen:
            why = _cannot(charge, wish.stage)
            if why and (wish.servers or len(chosen) == 1):
                hint = "the [[stage]] tables say what there is: memscaler config show"
                self._sleeper.answer(Done(wish.id, ok=False, error=why, hint=hint))
                return
        able = [charge for charge in chosen if not _cannot(charge, wish.stage)]
        was = {charge.server.key: charge.standing.stage for charge in able}
        for charge in able:
            charge.post(moves.Down(wish.stage))
        await asyncio.gather(*(charge.until(_has_settled) for charge in able))
        wrong = next((each for each in able if not _went(each, wish.stage, was[each.server.key])), None)
        servers = [{"name": str(each.server), "stage": each.standing.stage} for each in able]
        if not able:
            self._sleeper.answer(Done(wish.id, ok=False, error="no server has a stage that it could go down to now"))
        elif wrong is not None:
            why = _why_not(wrong, wish.stage)
            error = f"{wrong.server} is not asleep: {why}"
            self._sleeper.answer(Done(wish.id, ok=False, error=error, document={"servers": servers}))
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
        async with asyncio.timeout(LONGEST_WAKE_S):
            await asyncio.gather(*waits)
    except TimeoutError:
        pass
    return next((charge for charge in chosen if not charge.standing.is_up), None)


def _has_settled(at: Standing) -> bool:
    return at.phase not in ON_ITS_WAY and at.wished is None


def _went(charge: Charge, stage: Stage | None, was: Stage | None) -> bool:
    now = charge.standing.stage
    if now is None or charge.standing.rung is not Rung.DOWN:
        return False
    return DEPTH[now] >= DEPTH[stage] if stage is not None else now is not was


def _why_not(charge: Charge, stage: Stage | None) -> str:
    at = charge.standing
    why = (at.passed.get(stage) or at.barred.get(stage)) if stage is not None else ""
    return why or ladder.next_stage(at, charge.rules).why_not or at.said or "somebody came"


def _cannot(charge: Charge, stage: Stage | None) -> str:
    """Why it cannot be put there now, a sentence; "" if it may be tried."""
    at = charge.standing
    deeper = [rule for rule in charge.rules if at.stage is None or DEPTH[rule.stage] > DEPTH[at.stage]]
    if stage is not None and at.stage is not None and DEPTH[at.stage] >= DEPTH[stage]:
        return ""
    if stage is not None and stage not in {rule.stage for rule in deeper}:
        return f"no {stage} stage is configured for {charge.server}"
    if not deeper:
        deepest = f"{charge.server} is in its deepest stage already ({at.stage})"
        return f"no deeper stage is configured for {charge.server}" if at.stage is None else deepest
    if at.phase is not Phase.RESTING:
        return f"{charge.server} is on its way ({at.rung})"
    if at.seen is None or at.seen.live or at.seen.held:
        return f"{charge.server} is used" if at.seen is None or at.seen.live else f"{charge.server}: {at.seen.held}"
    return ""


def _not_prepared(charge: Charge, stage: Stage) -> str:
    at = charge.standing
    if at.phase is Phase.RESTING and at.stage is not None and DEPTH[at.stage] >= DEPTH[stage]:
        return ""
    if at.phase is not Phase.RESTING or not at.wished:
        return at.up_for or at.said or "somebody came"
    ahead = ladder.next_stage(at, charge.rules)
    kept = '; [suspend] servers = "keep" leaves it running' if stage in {*at.passed, *at.barred} else ""
    return f"it cannot go to {stage}: {ahead.why_not or at.said or 'not now'}{kept}"
