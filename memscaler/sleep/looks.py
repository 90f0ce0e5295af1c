"""Waiting for a fresh picture of the servers: whoever came while no watch was armed has not been told of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LOOK_S = 5.0  # for an answer of the governor


class Looks:
    """Those that are under way. For the loop's thread."""

    def __init__(self, ask: Callable[[], int], heard: Callable[[], None]) -> None:
        """ask: the governor for a look; the number that its answer will bear. heard: after that was taken in."""
        self._ask, self._heard = ask, heard
        self._waiting: dict[int, asyncio.Event] = {}

    def seen(self, number: int) -> None:
        """A picture has been taken in."""
        if number in self._waiting:
            self._waiting[number].set()

    async def fresh(self) -> bool:
        """Until the picture is of a time after this was called. False: the governor does not answer in time."""
        number, answered = self._ask(), asyncio.Event()
        self._waiting[number] = answered
        try:
            async with asyncio.timeout(LOOK_S):
                await answered.wait()
        except TimeoutError:
            return False
        finally:
            del self._waiting[number]
        self._heard()
        return True
