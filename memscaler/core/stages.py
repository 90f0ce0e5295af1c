"""The ladder: what deeper sleep there is below a parked GPU, and what the process that goes down it (the sleeper) says.

The sleeper is a child of the governor. The governor believes nothing in its reports, it only shows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Stage(StrEnum):
    """From the shallowest to the deepest; the first is the governor's own."""

    PARK = "park"  # of a GPU: its clocks are locked low
    SERVER_SLEEP = "server-sleep"  # of a server: vLLM's sleep mode
    CHECKPOINT = "checkpoint"  # of a server: its memory of the GPU is in host memory, it has left the GPU
    STOP_SERVER = "stop-server"  # of a server: its process has ended
    SUSPEND = "suspend"  # of the machine


LADDER = tuple(Stage)


class Rung(StrEnum):
    """How a server, or the machine, stands to its stage."""

    UP = "up"  # not asleep; its GPUs may be parked
    ENTERING = "entering"
    DOWN = "down"  # in the stage
    LEAVING = "leaving"
    STUCK = "stuck"  # could not be left: an operator is needed


@dataclass(frozen=True, slots=True)
class StageTotals:
    """Of one stage of one server, since the governor started. wakes_s: the last times that leaving it took, seconds."""

    entered: int = 0
    left: int = 0
    failed: int = 0
    seconds: float = 0.0
    wakes_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class SleepingServer:
    """One watched server. Times are seconds of the wall clock.

    name: of the described server, else "port 8080"; port, scope: its watch (scope "" is the host). gpus: UUIDs.
    stage: the deepest that it is in, enters or leaves; None while it is up. asleep_by: another manager that has put it
    to sleep while it is up for us, e.g. "llama.cpp" (--sleep-idle-seconds) or "llama-swap".
    next, next_unix_s: the stage that follows if nobody comes, and when. why_not: what keeps it from that, a sentence.
    missing: nobody serves there, though nothing of it is down. note: what an operator should know, a sentence.
    totals: by stage.
    """

    name: str
    port: int
    scope: str = ""
    gpus: tuple[str, ...] = ()
    stage: Stage | None = None
    rung: Rung = Rung.UP
    since_unix_s: float = 0.0
    asleep_by: str = ""
    next: Stage | None = None
    next_unix_s: float | None = None
    why_not: str = ""
    missing: bool = False
    note: str = ""
    totals: Mapping[Stage, StageTotals] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MachineSleep:
    """The machine's own stage. never: who does not want it to be suspended, and why; until when, None is for ever.

    last: how the last one went, e.g. "slept 2 h, woken by its alarm". alarm_unix_s: when it will wake by itself.
    asleep_s: in all, since the governor started. left, wakes_s: resumes after which every server was back, and the last
    times that this took, from the resume on.
    """

    wanted: bool = False
    rung: Rung = Rung.UP
    since_unix_s: float = 0.0
    next_unix_s: float | None = None
    why_not: tuple[str, ...] = ()
    never: str = ""
    never_until_unix_s: float | None = None
    alarm_unix_s: float | None = None
    last: str = ""
    suspends: int = 0
    failed: int = 0
    asleep_s: float = 0.0
    left: int = 0
    wakes_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Sleep:
    """What the sleeper told last. pid: None if it does not run. problem: why it does not, though it is wanted."""

    pid: int | None = None
    servers: tuple[SleepingServer, ...] = ()
    machine: MachineSleep = MachineSleep()
    problem: str = ""


MEASURED_S = 60.0  # less time in a stage says little about its watts


@dataclass(frozen=True, slots=True)
class Spent:
    """Of one GPU and one stage. seconds: in it; known_s: of these the energy is known, it was energy_j.

    compared_s: of these it is known what it would have drawn. switch_s: seconds of entering and leaving, as far as
    their energy is known. entries: how often it came to be in the stage.
    """

    seconds: float = 0.0
    known_s: float = 0.0
    energy_j: float = 0.0
    compared_s: float = 0.0
    saved_j: float = 0.0
    switch_s: float = 0.0
    switch_j: float = 0.0
    entries: float = 0.0

    @property
    def watts(self) -> float | None:
        """The mean in the stage; None before MEASURED_S of it are known."""
        return self.energy_j / self.known_s if self.known_s >= MEASURED_S else None

    def plus(self, other: Spent) -> Spent:
        """Both together."""
        return Spent(
            self.seconds + other.seconds,
            self.known_s + other.known_s,
            self.energy_j + other.energy_j,
            self.compared_s + other.compared_s,
            self.saved_j + other.saved_j,
            self.switch_s + other.switch_s,
            self.switch_j + other.switch_j,
            self.entries + other.entries,
        )

    def minus(self, before: Spent) -> Spent:
        """What there is more."""
        return Spent(
            self.seconds - before.seconds,
            self.known_s - before.known_s,
            self.energy_j - before.energy_j,
            self.compared_s - before.compared_s,
            self.saved_j - before.saved_j,
            self.switch_s - before.switch_s,
            self.switch_j - before.switch_j,
            self.entries - before.entries,
        )


def standing(server: SleepingServer) -> str:
    """How it stands to its stage, in two words: "up", "stop-server", "leaving checkpoint"."""
    stage = server.stage
    match server.rung:
        case Rung.UP if server.missing:
            return "not there"
        case Rung.UP:
            return f"asleep by {server.asleep_by}" if server.asleep_by else "up"
        case Rung.DOWN:
            return str(stage or "asleep")
        case Rung.ENTERING:
            return f"entering {stage or server.next or 'a stage'}"
        case Rung.LEAVING:
            return f"leaving {stage or 'a stage'}"
        case Rung.STUCK:
            return f"stuck in {stage or 'a stage'}"
