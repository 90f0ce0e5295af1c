"""A child's process: what is the same in each of them, around its life."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import NoReturn

from memscaler.child.lines import speak, watch_loop


def live(name: str, form: str, level: str, life: Callable[[], Coroutine[None, None, bool]]) -> NoReturn:
    """Until the governor ends, or has gone. name: in the log. form, level: of the log, as in the settings.

    life: true if it leaves nothing behind: exit status 0; 1: its journal says what is.
    """
    # Who stops a unit or presses Ctrl-C means the governor, who then says `end`, or is gone: both are heard.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    speak(name, form, level)

    async def run() -> bool:
        watch_loop(name)
        return await life()

    well = asyncio.run(run())
    sys.stderr.flush()
    os._exit(0 if well else 1)  # a thread may hang in a driver: nobody waits for it
