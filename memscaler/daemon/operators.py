"""What operators ask for over the control socket: done or answered, or refused with what to do instead.

A question about the present waits for fresh readings (answers.py). What makes a GPU behave otherwise is a lease's
matter (steering.py), what sleeps deeper the sleeper's, and a release is the end of this run (ending.py).
"""

from __future__ import annotations

import time
from functools import partial

from memscaler.core.errors import MemscalerError
from memscaler.core.model import SECOND_NS
from memscaler.core.snapshot import Released
from memscaler.daemon import verify
from memscaler.daemon.answers import Answers, then, whole_status
from memscaler.daemon.ending import End
from memscaler.daemon.parts import Parts
from memscaler.daemon.requests import Asked, ReleaseWanted, ReloadWanted, Status, Verify
from memscaler.daemon.sleep_requests import SleepWanted, SuspendWanted, WakeWanted, words_of
from memscaler.daemon.sleeper import Sleeper
from memscaler.daemon.steering import Steering
from memscaler.daemon.teller import Teller

VERIFY_WAIT_NS = 3 * SECOND_NS  # a park that settles is waited for; the control socket gives up after 10 s


class Operators:
    """Used by the loop's thread."""

    def __init__(
        self, parts: Parts, answers: Answers, teller: Teller, steering: Steering, sleeper: Sleeper, end: End
    ) -> None:
        self._gpu_users, self._supervised, self._plan = parts.gpu_users, parts.supervised, parts.plan
        self._answers, self._teller, self._steering = answers, teller, steering
        self._sleeper, self._end = sleeper, end

    def answer(self, asked: Asked) -> None:
        """The answer goes to who asked, now or when it is known."""
        try:
            match asked.request:
                case Status():
                    look = partial(whole_status, servers=self._gpu_users(), supervised=self._supervised)
                    self._answers.want(then(asked.answer, look))
                case Verify():
                    check = partial(verify.document, asked_ns=time.monotonic_ns(), know=self._teller.know)
                    self._answers.want(then(asked.answer, check), fresh_ns=0, wait_ns=VERIFY_WAIT_NS)
                case ReloadWanted():
                    self._plan(asked.answer)
                case ReleaseWanted(reason):
                    self._end.release(Released(asked.peer.name, reason, time.time()), asked.answer)
                case WakeWanted() | SleepWanted() | SuspendWanted() as wanted:
                    what, words = words_of(wanted, asked.peer)
                    self._sleeper.ask(what, asked.answer, **words)
                case steered:
                    self._steering.obey(steered, asked.peer, asked.answer)
        except MemscalerError as error:
            asked.answer.set_exception(error)
