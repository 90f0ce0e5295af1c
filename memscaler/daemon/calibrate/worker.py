"""Calibrates in a thread of its own: a driver call that hangs is noticed, and left behind."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator

from memscaler.core.errors import MemscalerError
from memscaler.daemon.calibrate.measure import Result, Wanted, calibrate
from memscaler.daemon.calibrate.sampler import Sampler
from memscaler.daemon.doctor.context import Context

HUNG_S = 8.0  # without a sign of life while a GPU is measured; between two there are milliseconds
LOOK_S = 0.2


class Hung(MemscalerError):
    """A driver call does not return."""

    hint = "the guardian wakes what is parked still; see `dmesg`, then `memscaler restore`"


class Worker:
    """hung: a thread was left behind, which only the end of the process ends (os._exit)."""

    def __init__(self, context: Context, wanted: Wanted) -> None:
        self.hung = False
        self._context, self._wanted = context, wanted
        self._told: queue.SimpleQueue[str | Result | BaseException | None] = queue.SimpleQueue()
        self._sampler: Sampler | None = None
        self._done = threading.Event()

    def run(self) -> Iterator[str | Result]:
        """Progress and results as they come. Raise what keeps it from beginning, or Hung."""
        threading.Thread(target=self._work, name="calibrate", daemon=True).start()
        while True:
            try:
                told = self._told.get(timeout=LOOK_S)
            except queue.Empty:
                self._look_for_life()
                continue
            if told is None:
                return
            if isinstance(told, BaseException):
                raise told
            yield told

    def rest(self) -> list[Result]:
        """Results that nobody has fetched yet."""
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                told = self._told.get_nowait()
                found += [told] if isinstance(told, Result) else []
        return found

    def wait(self, patience_s: float) -> bool:
        """For its end; False if it takes longer."""
        in_time = self._done.wait(patience_s)
        self.hung |= not in_time
        return in_time

    def _look_for_life(self) -> None:
        sampler = self._sampler
        if sampler is not None and time.monotonic() - sampler.alive_s > HUNG_S:
            self.hung = True
            raise Hung(f"a driver call has not returned for {HUNG_S:.0f} s")

    def _watch(self, sampler: Sampler | None) -> None:
        self._sampler = sampler

    def _work(self) -> None:
        try:
            for result in calibrate(self._context, self._wanted, self._told.put, self._watch):
                self._told.put(result)
            self._told.put(None)
        except BaseException as error:  # noqa: BLE001  # told to the main thread, which raises it
            self._told.put(error)
        finally:
            self._done.set()
