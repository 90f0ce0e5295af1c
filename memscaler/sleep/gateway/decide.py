"""How a backend stands, and what is to be done about it: pure, `step(standing, event, now_s, pause_s) -> Step`.

    UNKNOWN, ASLEEP --Wanted--> WAKING                         (somebody who may wake it has come: BEGIN)
    FAILED --Wanted, the pause is over--> WAKING               (BEGIN)
    UP --Unreachable, Stalled--> ASLEEP                        UNKNOWN --Unreachable--> ASLEEP
    WAKING --Ready--> UP       --GaveUp--> FAILED              (both are TOLD to those who wait)
    UNKNOWN, ASLEEP, FAILED --Ready--> UP                      (it came up without us: TOLD)

While it is UP clients are connected at once; one that has begun anew, and loads, is Unreachable (backend.py). Times are
seconds of a clock that only goes forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum

PACKETS_S = (0.0, 1.0, 2.0, 4.0, 7.0, 12.0)  # a card that is on its way down hears nothing: so more than once
PACKET_EVERY_S = 10.0
KNOWN_PAUSE_S = 1.0  # at least, after a wake whose failure the governor has told
RECHECK_S = 30.0  # so often those who may wake nobody find out whether it came up by itself


class State(StrEnum):
    """Of a backend."""

    UNKNOWN = "unknown"  # nobody has asked yet
    UP = "up"
    ASLEEP = "asleep"  # it did not answer
    WAKING = "waking"
    FAILED = "failed"  # a wake took too long, or cannot be; the next one begins after the pause


@dataclass(frozen=True, slots=True)
class Standing:
    """reason: why it is not up, for people. until_s: when the pause ends. looked_s: when it did not answer last."""

    state: State = State.UNKNOWN
    since_s: float = 0.0
    until_s: float = 0.0
    looked_s: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A client that may wake it."""


@dataclass(frozen=True, slots=True)
class Unreachable:
    """An attempt to connect has failed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Stalled:
    """What was sent on a connection to it is not acknowledged."""


@dataclass(frozen=True, slots=True)
class Ready:
    """It lets clients in."""


@dataclass(frozen=True, slots=True)
class GaveUp:
    """The wake took too long, or the governor has told that it fails: so long after it was asked."""

    reason: str
    told_after_s: float | None = None


Event = Wanted | Unreachable | Stalled | Ready | GaveUp


class Act(Enum):
    """What is to be done."""

    NOTHING = "nothing"
    BEGIN = "begin"  # to wake it
    TELL = "tell"  # those who wait


@dataclass(frozen=True, slots=True)
class Step:
    """What follows."""

    standing: Standing
    act: Act = Act.NOTHING


def step(standing: Standing, event: Event, now_s: float, pause_s: float = 0.0) -> Step:
    """pause_s: after a wake that has failed."""
    state = standing.state
    match event:
        case Wanted() if state in (State.UNKNOWN, State.ASLEEP) or (
            state is State.FAILED and now_s >= standing.until_s
        ):
            return Step(Standing(State.WAKING, now_s, looked_s=now_s, reason=standing.reason), Act.BEGIN)
        case Unreachable(reason) if state in (State.UP, State.UNKNOWN, State.ASLEEP):
            since_s = standing.since_s if state is State.ASLEEP else now_s
            return Step(Standing(State.ASLEEP, since_s, looked_s=now_s, reason=reason), Act.TELL)
        case Stalled() if state is State.UP:
            reason = "it acknowledges nothing"
            return Step(Standing(State.ASLEEP, now_s, looked_s=now_s, reason=reason), Act.TELL)
        case Ready() if state is not State.UP:
            return Step(Standing(State.UP, now_s), Act.TELL)
        case GaveUp(reason, told_after_s) if state is State.WAKING:
            until_s = now_s + pause_after_s(pause_s, told_after_s)
            return Step(Standing(State.FAILED, now_s, until_s, now_s, reason), Act.TELL)
        case _:
            return Step(standing)


class Admit(Enum):
    """What a client gets."""

    CONNECT = "connect"
    HOLD = "hold"  # until something changes
    ASLEEP = "asleep"  # an answer of our own: it may wake nobody
    WAKING = "waking"  # the same: it was not to be held, and comes back
    FULL = "full"  # the same: too many are held
    FAILED = "failed"  # the same: the last wake failed a moment ago


def admit(standing: Standing, now_s: float, *, may_wake: bool, hold: bool, room: bool) -> Admit:
    """For a client, of whom Wanted has been told before if it may wake. room: for one more to be held."""
    match standing.state:
        case State.UP | State.UNKNOWN:  # unknown: nobody is to ask first whether it is ready
            return Admit.CONNECT
        case _ if not may_wake:
            idle = standing.state is not State.WAKING
            return Admit.CONNECT if idle and now_s - standing.looked_s >= RECHECK_S else Admit.ASLEEP
        case State.FAILED:
            return Admit.FAILED
        case _ if not hold:
            return Admit.WAKING
        case _:
            return Admit.HOLD if room else Admit.FULL


def pause_after_s(wake_pause_s: float, told_after_s: float | None) -> float:
    """After a wake that has failed. told_after_s: when the governor told why; None: it did not.

    What has failed at once costs little to try again, and the server is to be reached soon after it is repaired.
    """
    return wake_pause_s if told_after_s is None else min(wake_pause_s, max(KNOWN_PAUSE_S, told_after_s))


def packet_at_s(nth: int) -> float:
    """When the nth magic packet of a wake is due, from its beginning."""
    if nth < len(PACKETS_S):
        return PACKETS_S[nth]
    return PACKETS_S[-1] + (nth - len(PACKETS_S) + 1) * PACKET_EVERY_S
