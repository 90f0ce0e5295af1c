"""Work that may hang (a driver, a file on another machine) beside the event loop, in a thread that holds up no end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

Value = TypeVar("Value")


async def aside(work: Callable[[], Value]) -> Value:
    """What it answers, or raises. Whoever gives up waiting leaves it behind."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Value] = loop.create_future()

    def settle(value: Value | None, error: Exception | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(value)  # type: ignore[arg-type]  # there is one where there is no error

    def run() -> None:
        value, failed = None, None
        try:
            value = work()
        except Exception as error:  # noqa: BLE001  # raised where it is waited for
            failed = error
        with suppress(RuntimeError):  # the loop is over
            loop.call_soon_threadsafe(settle, value, failed)

    threading.Thread(target=run, name="aside", daemon=True).start()
    return await answer


async def aside_within(seconds: float, work: Callable[[], Value], otherwise: Value) -> Value:
    """The same; `otherwise` if it takes longer."""
    try:
        async with asyncio.timeout(seconds):
            return await aside(work)
    except TimeoutError:
        return otherwise
