"""The arbiter's end of the urgent channel (memscaler/daemon/urgent.py), and a thread that serves it.

It does what must come before a GPU's clocks are touched, from what was prepared, and answers. A question whether a GPU
may be parked reads GVM's files, which may hang: it has a lane of its own, and holds up no wake.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from typing import Any

import structlog

from memscaler.gvm.slow import Lanes

MOST_BYTES = 4096

log = structlog.get_logger()


class Urgent:
    """wake(uuid, rang): returns when what is to be done first is done; awake() follows, when that was answered.

    park(uuid): why not, or ""; may hang.
    """

    def __init__(
        self,
        end: socket.socket,
        wake: Callable[[str, bool], None],
        awake: Callable[[], None],
        park: Callable[[str], str],
    ) -> None:
        end.setblocking(True)
        self._end, self._wake, self._awake, self._park = end, wake, awake, park
        self._lanes = Lanes()

    def start(self) -> None:
        """It ends when the governor's end is closed, or with the process."""
        threading.Thread(target=self._run, name="urgent", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                data = self._end.recv(MOST_BYTES)
            except InterruptedError:
                continue
            except OSError:
                return
            if not data:
                return  # the link tells the rest
            try:
                self._heed(json.loads(data))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                log.error("urgent.makes_no_sense", err=str(error))
            except Exception as error:  # the next wake is to be served all the same
                log.exception("urgent.failed", err=str(error))

    def _heed(self, asked: dict[str, Any]) -> None:
        number = int(asked["n"])
        if "wake" in asked:
            try:
                self._wake(str(asked["wake"]), bool(asked.get("rang", True)))
            finally:
                self._answer({"n": number})
                self._awake()
        elif "park" in asked:
            uuid = str(asked["park"])
            self._lanes.do(uuid, lambda: self._may_park(uuid, number))

    def _may_park(self, uuid: str, number: int) -> None:
        word = "GVM cannot be asked"
        try:
            word = self._park(uuid)
        finally:
            self._answer({"n": number, "word": word})

    def _answer(self, what: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # nobody waits any more
            self._end.send(json.dumps(what).encode(), socket.MSG_DONTWAIT)
