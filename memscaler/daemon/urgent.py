"""The urgent channel to the arbiter: what must be done on a GPU's applications before its clocks are touched.

Used by the actuators' threads, while the loop's thread attaches and detaches arbiters. One SOCK_SEQPACKET pair, small
JSON objects, each answered with its number, in any order:

    {"wake": UUID, "n": N, "rang": true}   a client rang (false: a hold, a stop, a doubt); what is to be done first is
                                           done when {"n": N} comes
    {"park": UUID, "n": N}                 may it be parked? {"n": N, "word": ""}, or why not

A wake waits WAKE_WAIT_S at most, then the clocks are touched anyway; a GPU that is not in `first` waits for nothing.
After an answer that did not come in time nobody waits for another one until something has come: so an arbiter that
hangs delays one wake, not each.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import socket
import threading
from collections.abc import Collection
from time import monotonic_ns
from typing import Any

WAKE_WAIT_S = 0.005
PARK_WAIT_S = 0.050
MOST_BYTES = 4096
NOT_ANSWERED = "it is not known whether kernels are pending: the arbiter does not answer"


class Urgent:
    """The governor's end. first: the GPUs for which something is to be done first; gvm: parks are asked for."""

    def __init__(self) -> None:
        self.first: Collection[str] = frozenset()
        self.gvm = False
        self._channel: _Channel | None = None

    def attach(self, end: socket.socket) -> None:
        """A new arbiter's; `end` is ours from now on."""
        self.detach()
        self._channel = _Channel(end)

    def detach(self) -> None:
        """It has gone, or nothing is to be asked any more."""
        self.first, self.gvm = frozenset(), False
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def before_wake(self, gpu: str, rang: bool) -> None:  # noqa: FBT001  # as an actuator calls it
        """Its clocks are about to be touched. Returns soon, whatever happens."""
        if gpu in self.first and (channel := self._channel) is not None:
            channel.ask({"wake": gpu, "rang": rang}, WAKE_WAIT_S)

    def may_park(self, gpu: str) -> str:
        """Why it must not be parked now; "" if it may."""
        if not self.gvm or (channel := self._channel) is None:
            return ""
        answer = channel.ask({"park": gpu}, PARK_WAIT_S)
        if answer is None:
            return "" if channel.closed else NOT_ANSWERED  # one that has died is nobody's doubt
        word = answer.get("word", "")
        return word if isinstance(word, str) else NOT_ANSWERED


class _Question:
    """One that waits. bell: an eventfd; somebody else has read the answer."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] | None = None
        self.bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


class _Channel:
    """One arbiter's. Whoever waits reads for all; the socket is closed when the last of them has gone."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end
        self._lock = threading.Lock()  # of what is below; held for no longer than a system call
        self._users = 0
        self._waiting: dict[int, _Question] = {}
        self._numbers = itertools.count(1)
        self._late = False  # it has not answered in time, and nothing was heard since
        self.closed = False

    def close(self) -> None:
        """Nobody waits for it from now on."""
        with self._lock:
            self.closed = True
            with contextlib.suppress(OSError):
                self._end.shutdown(socket.SHUT_RDWR)  # those who wait hear it
            self._close_unused()

    def _close_unused(self) -> None:
        if self.closed and not self._users:
            self._end.close()

    def ask(self, what: dict[str, Any], wait_s: float) -> dict[str, Any] | None:
        """The answer; None if there is none in time."""
        with self._lock:
            if self.closed:
                return None
            self._users += 1
        try:
            return self._ask(what, monotonic_ns() + round(wait_s * 1e9))
        except (OSError, ValueError):  # it is gone, does not read, or makes no sense: the link tells the loop
            return None
        finally:
            with self._lock:
                self._users -= 1
                self._close_unused()

    def _ask(self, what: dict[str, Any], until_ns: int) -> dict[str, Any] | None:
        is_waited_for = self._answers()
        number, question = next(self._numbers), _Question()
        with self._lock:
            self._waiting[number] = question
        try:
            self._end.send(json.dumps({**what, "n": number}).encode())
            if is_waited_for:
                self._late = not self._is_answered(question, until_ns)
        finally:
            with self._lock:  # nobody rings its bell any more
                del self._waiting[number]
            os.close(question.bell)
        return question.answer

    def _answers(self) -> bool:
        """Whether it answers in time, as far as is known: it may have come to itself."""
        if self._late:
            self._read_all()
        return not self._late

    def _is_answered(self, question: _Question, until_ns: int) -> bool:
        """In time."""
        poll = select.poll()
        poll.register(self._end, select.POLLIN)
        poll.register(question.bell, select.POLLIN)
        while question.answer is None and (left_ns := until_ns - monotonic_ns()) > 0:
            if poll.poll(left_ns / 1e6):
                self._read_all()
        return question.answer is not None

    def _read_all(self) -> None:
        """Everybody's answers. Raise OSError if there will be no more, ValueError."""
        while True:
            try:
                data = self._end.recv(MOST_BYTES)
            except (BlockingIOError, InterruptedError):
                return
            if not data:
                raise ConnectionResetError("it has closed its socket")
            answer = json.loads(data)
            if not isinstance(answer, dict) or not isinstance(answer.get("n"), int):
                raise ValueError("not an answer")
            self._late = False
            with self._lock:
                question = self._waiting.get(answer["n"])
                if question is not None:
                    question.answer = answer
                    os.eventfd_write(question.bell, 1)
