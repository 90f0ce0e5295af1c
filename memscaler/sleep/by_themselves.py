"""Whether quiet servers sleep by themselves, or by another manager's doing: asked seldom, and it wakes nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial

from memscaler.servers.aside import aside
from memscaler.sleep.charge import Charge
from memscaler.sleep.drivers.managers import Managers
from memscaler.sleep.drivers.protocol import Call

FIRST_ASK_S, LONGEST_ASK_S = 30.0, 3600.0  # between questions to one server
ASK_LIMIT_S = 5.0


class ByThemselves:
    """Of one sleeper, in its loop's thread. changed: something is to be told."""

    def __init__(self, managers: Managers, changed: Callable[[], None]) -> None:
        self._managers, self._changed = managers, changed
        self._asks: dict[str, asyncio.Task[None]] = {}

    def look(self, charges: Mapping[str, Charge]) -> None:
        """After each picture: those that have become quiet are asked from now on, until somebody comes."""
        for key, charge in charges.items():
            if charge.rules and key not in self._asks and _is_quiet(charge):
                self._asks[key] = asyncio.get_running_loop().create_task(self._ask(key, charges))

    async def _ask(self, key: str, charges: Mapping[str, Charge]) -> None:
        charge, pause_s = charges[key], FIRST_ASK_S
        while True:
            await asyncio.sleep(pause_s)
            if charges.get(key) is not charge:
                break
            if not _is_quiet(charge):
                charge.asleep_by = ""
                break
            by = await aside(partial(self._managers.asleep_by, charge.server, Call.within(ASK_LIMIT_S)))
            if by != charge.asleep_by:
                charge.asleep_by = by
                self._changed()
            pause_s = min(pause_s * 2, LONGEST_ASK_S)
        self._asks.pop(key, None)


def _is_quiet(charge: Charge) -> bool:
    at = charge.standing
    return at.seen is not None and at.seen.parked and not at.seen.live and at.is_up and not at.ending
