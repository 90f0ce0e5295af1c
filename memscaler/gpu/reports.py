"""What an actuator tells the main loop, next to the core's LeverResult, and what it goes by."""

from __future__ import annotations

from dataclasses import dataclass, field

from memscaler.core.model import LeverResult
from memscaler.core.snapshot import GpuReading


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading, as asked for."""

    gpu: str
    reading: GpuReading


@dataclass(frozen=True, slots=True)
class WakeTiming:
    """When the driver call of a wake began and ended (CLOCK_MONOTONIC). Comes just before its LeverResult."""

    gpu: str
    seq: int
    driver_call_start_ns: int
    driver_call_end_ns: int


@dataclass(frozen=True, slots=True)
class Note:
    """Something for the log that decides nothing. event: "noun.past_verb"."""

    gpu: str
    event: str
    detail: str


REPEAT_AFTER_S = 300.0


@dataclass(slots=True)
class Repeats:
    """Of equal messages in a row lets the first one pass, and then one in REPEAT_AFTER_S."""

    _told: dict[str, tuple[str, float]] = field(default_factory=dict)

    def passes(self, about: str, message: str, now_s: float) -> bool:
        before, told_s = self._told.get(about, ("", 0.0))
        if message == before and now_s - told_s < REPEAT_AFTER_S:
            return False
        self._told[about] = (message, now_s)
        return True

    def over(self, about: str) -> None:
        """It is well again: the next one is news."""
        self._told.pop(about, None)


Report = LeverResult | Sample | WakeTiming | Note


@dataclass(frozen=True, slots=True)
class ActuatorPolicy:
    """What an actuator goes by.

    settle_timeout_s: how long clocks may take to follow a driver call that reported success.
    write_deadline_s, read_deadline_s: after that long a driver call counts as hung.
    attempts: how often a park is tried where the driver answers with an unknown error.
    patience: after how many parks that failed so the lever is given up.
    dry_run: say what would be done, write nothing.
    """

    settle_timeout_s: float = 2.0
    write_deadline_s: float = 2.0
    read_deadline_s: float = 5.0
    attempts: int = 3
    patience: int = 3
    dry_run: bool = False
