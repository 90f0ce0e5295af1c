"""A session with one of the driver's libraries, shared by all threads, and how it is opened anew when it went stale.

After a driver reload every handle is stale, and so is the session that they come from. Opening it anew means shutting
it down first, which nobody may do under the feet of another thread:

    a call      notes that it is inside -> barred? leaves and fails -> driver -> leaves
    a renewal   takes the lock -> bars the calls -> waits until nobody is inside -> shuts down and initialises

No call ever waits for a lock. One that hangs keeps the session from being renewed, and nothing else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from threading import get_ident
from typing import Generic, TypeVar

from memscaler.core.errors import GpuCallFailed, GpuError

Value = TypeVar("Value")

PATIENCE_S = 2.0  # with calls under way, and with another thread that opens anew
POLL_S = 0.002
# Some drivers hang after many initialisations (facts/nvml.md (iii)): a session that stays stale is renewed ever rarer.
FIRST_PAUSE_S = 0.5
PAUSE_GROWTH = 2.0
LONGEST_PAUSE_S = 300.0
LONGEST_PAUSE_CLOSED_S = 10.0  # while it cannot be opened at all
FORGET_AFTER_S = 600.0
STALE = 1  # NVML's UNINITIALIZED: what a handle of an earlier session is answered with


class Session:
    """Who is inside a library, and how often it was opened anew: `generation` tells old handles from those of now."""

    def __init__(self, library: str) -> None:
        self.generation = 0
        self._library = library
        self._lock = threading.Lock()
        self._inside: dict[int, str] = {}  # thread -> call; setting and popping items of a dict is atomic
        self._barred_by: int | None = None
        self.start_afresh()

    def start_afresh(self) -> None:
        """The library was just opened, not for the reason that it was stale."""
        self._renewed_s = -FORGET_AFTER_S
        self._pause_s = FIRST_PAUSE_S
        self._failure: GpuError | None = None  # of the last renewal

    def enter(self, call: str, generation: int | None = None) -> None:
        """Say so before a call, and `leave` after it. Raise GpuCallFailed if it may not be made: see the top."""
        me = get_ident()
        self._inside[me] = call
        if self._barred_by is not None and self._barred_by != me:
            self.leave()
            raise GpuCallFailed(f"{call}: {self._library} is being opened anew", code=STALE)
        if generation is not None and generation != self.generation:
            self.leave()
            raise GpuCallFailed(f"{call}: {self._library} was opened anew, the handle is stale", code=STALE)

    def leave(self) -> None:
        self._inside.pop(get_ident(), None)

    def call_of(self, thread: int) -> str:
        """The call that this thread is inside; "" if it is in none."""
        return self._inside.get(thread, "")

    def renew(self, seen: int, open_anew: Callable[[], None]) -> None:
        """Shut down and initialise by `open_anew`, unless another thread has done so since generation `seen`.

        Raise GpuCallFailed if it cannot be done now, and whatever `open_anew` raises.
        """
        if not self._lock.acquire(timeout=PATIENCE_S):
            raise GpuCallFailed(f"{self._library} is stale and does not return from being opened anew", code=STALE)
        try:
            if self.generation == seen:
                self._keep_pace()
                self._barred_by = get_ident()
                self._wait_until_nobody_is_inside()
                self.generation += 1  # from now on nothing from before is used, however this ends
                open_anew()
                self._failure = None
        except GpuError as error:
            self._failure = error
            raise
        finally:
            self._barred_by = None
            self._lock.release()

    def _keep_pace(self) -> None:
        now_s = time.monotonic()
        if now_s - self._renewed_s >= FORGET_AFTER_S:
            self.start_afresh()
        elif now_s - self._renewed_s < self._pause_s:
            in_vain = GpuCallFailed(f"{self._library} is stale, although it was opened anew a moment ago", code=STALE)
            raise self._failure or in_vain
        else:
            longest_s = LONGEST_PAUSE_S if self._failure is None else LONGEST_PAUSE_CLOSED_S
            self._pause_s = min(self._pause_s * PAUSE_GROWTH, longest_s)
        self._renewed_s = now_s

    def _wait_until_nobody_is_inside(self) -> None:
        end_s, me = time.monotonic() + PATIENCE_S, get_ident()
        while others := [call for thread, call in dict(self._inside).items() if thread != me]:
            if time.monotonic() > end_s:
                problem = f"{self._library} is stale and cannot be opened anew: a call does not return"
                raise GpuCallFailed(f"{problem} ({others[0]})", code=STALE)
            time.sleep(POLL_S)


class Attempt(Generic[Value]):
    """Driver calls in a thread of their own: whoever waits for their result can give up."""

    def __init__(self, act: Callable[[], Value]) -> None:
        self._act = act
        self._value: Value | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="attempt", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> bool:
        return self._thread.is_alive()

    def result(self, within_s: float, *sessions: Session) -> Value:
        """What the calls came to. Raise GpuCallFailed if they do not return; `sessions` know from which call."""
        self._thread.join(max(0.0, within_s))
        if self._thread.is_alive():
            calls = [session.call_of(self._thread.ident or 0) for session in sessions]
            raise GpuCallFailed(f"the driver does not return from {'; '.join(filter(None, calls)) or 'a call'}")
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # it has run

    def _run(self) -> None:
        try:
            self._value = self._act()
        except Exception as error:  # noqa: BLE001  # raised again by `result`
            self._error = error
