"""What was seen: connections by the clients, boards by their remote control, driver calls by the simulator's log.

All times are nanoseconds of CLOCK_MONOTONIC, the clock of the kernel program and of the simulator. Nothing here asks
the governor, so that its own word can be compared with this.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from memscaler.simulator import CallRecord

SECOND_NS = 1_000_000_000
PSTATE_AUTOMATIC = 16
PARKS = ("nvmlDeviceSetMemoryLockedClocks", "nvmlDeviceSetGpuLockedClocks")
WAKES = ("nvmlDeviceResetMemoryLockedClocks", "nvmlDeviceResetGpuLockedClocks")
FORCE = "NvAPI_GPU_SetForcePstate"


@dataclass(slots=True)
class Answer:
    """One completion on a connection. Not the first byte: llama.cpp sends a stream's headers before it has worked."""

    sent_ns: int
    first_token_ns: int = 0
    done_ns: int = 0
    status: int = 0
    tokens: int = 0


@dataclass(slots=True)
class Connection:
    """One connection of a client to the server of `gpu`. ended_ns 0: still there."""

    gpu: int
    started_ns: int
    connected_ns: int = 0
    ended_ns: int = 0
    answers: list[Answer] = field(default_factory=list)

    def waits(self) -> list[tuple[int, int]]:
        """(from, to) of the times in which the client waited for an answer; to is 0 while it does."""
        return [(answer.sent_ns, answer.done_ns or self.ended_ns) for answer in self.answers]

    def silences(self) -> list[tuple[int, int]]:
        """(from, to) of the times between an answer and the next question."""
        return [(before.done_ns, after.sent_ns) for before, after in pairwise(self.answers)]


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at one board. waiting_ns: how long the most patient of its clients had waited, 0 if there was none."""

    at_ns: int
    power_w: float
    locked: bool
    waiting_ns: int


@dataclass(frozen=True, slots=True)
class Parked:
    """From the entry of the driver call that parked to the return of the one that woke (None: still parked)."""

    from_ns: int
    to_ns: int | None
    woken_by: int = 0

    def covers(self, at_ns: int) -> bool:
        """Was it parked then?"""
        return self.from_ns <= at_ns and (self.to_ns is None or at_ns < self.to_ns)


def parked_spans(calls: Iterable[CallRecord], gpu: int) -> list[Parked]:
    """When the driver was told to park this GPU, by its own record."""
    spans: list[Parked] = []
    since_ns: int | None = None
    for call in calls:
        if call.gpu != gpu or call.return_ns is None or call.code != 0:
            continue
        forced = call.symbol == FORCE
        if call.symbol in PARKS or (forced and call.arguments[0] != PSTATE_AUTOMATIC):
            since_ns = call.entry_ns if since_ns is None else since_ns
        elif since_ns is not None and (call.symbol in WAKES or forced):
            spans.append(Parked(since_ns, call.return_ns, call.pid))
            since_ns = None
    return spans if since_ns is None else [*spans, Parked(since_ns, None)]


def energy_j(samples: Sequence[Sample], from_ns: int, to_ns: int) -> float:
    """The integral of the power over a time."""
    total = 0.0
    for before, after in pairwise(samples):
        start, end = max(before.at_ns, from_ns), min(after.at_ns, to_ns)
        if end > start:
            total += (before.power_w + after.power_w) / 2 * (end - start) / SECOND_NS
    return total
