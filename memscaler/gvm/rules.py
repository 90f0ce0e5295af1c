"""When a [[gpuctl]] rule is in force for a watch: a pure function of what is seen there, and of the time.

One Hold for each rule and each watch of its. Times are seconds of CLOCK_MONOTONIC.

    busy    OFF  -> ON     somebody is connected, or rang, or a GPU is about to be woken, for him or for another reason
            ON   -> OFF    nobody is connected any more, nor was for release_after_s; the GPU was woken for nobody
    quiet   OFF  -> ARMING all its GPUs are parked and nobody is there: its doorbell is to be guarded, and looked at
            ARMING -> ON   that look shows the same; another look follows
            ON   -> OFF    somebody came, or may have: a ring, a connection, a GPU that is woken, no answer
    both    ON   -> SPENT  it was in force for at_most_s; until a busy one was quiet, a quiet one was used

Doubt is for whoever is connected: a busy rule begins at the first sign, a quiet one ends at it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from memscaler.config.gpuctl import GpuctlRule

VISIT_S = 1.0  # a ring, and no connection to be seen: a busy rule holds for so long
ANSWER_S = 5.0  # for a look of the governor
CALM_S = 2.0  # after a quiet rule has let go: whoever woke the GPU is about to be seen
DOUBT_S = 30.0  # after a governor that did not answer
NO_ANSWER, UNSEEN, UNKNOWN_GPUS = (
    "the governor does not answer",
    "it was not looked at yet",
    "its GPUs are not known",
)

Seconds = float


class Phase(StrEnum):
    """Of a rule at a watch."""

    OFF = "off"
    ARMING = "arming"
    ON = "on"
    SPENT = "spent"


class Ask(StrEnum):
    """What the governor is to be asked; the answer is a Sight with the hold's `call`."""

    NOTHING = ""
    GUARD = "guard"
    LOOK = "look"


@dataclass(frozen=True, slots=True)
class Sight:
    """What is to be seen of the watch. call: of the question that it answers, 0: none.

    rang: somebody came who may not be counted yet. active_s: of the last connection that counts. awake: why its GPUs
    cannot be taken for parked, "" if they are.
    """

    at_s: Seconds
    call: int = 0
    live: int = 0
    rang: bool = False
    active_s: Seconds = 0.0
    awake: str = ""


@dataclass(frozen=True, slots=True)
class Coming:
    """The clocks of one of its GPUs are about to be touched. rang: because somebody came, to this watch or another."""

    at_s: Seconds
    rang: bool = True


@dataclass(frozen=True, slots=True)
class Tick:
    """Time goes by."""

    at_s: Seconds


@dataclass(frozen=True, slots=True)
class Gone:
    """Nobody watches it any more."""

    at_s: Seconds


Event = Sight | Coming | Tick | Gone


@dataclass(frozen=True, slots=True)
class Hold:
    """How a rule stands at a watch. since_s: of the phase. why_not: why it is not in force, if that is worth a word.

    call: number of the last question, open: that has no answer yet, by answer_by_s. rang_until_s: somebody rang.
    coming_s: its GPU was about to be woken, and no look has told yet for whom; 0: no. bar_s: not before then.
    known_s: of the activity when this began: who had left before does not count, nor does the start of a watch.
    look_s: of the next look while it is in force.
    """

    phase: Phase = Phase.OFF
    since_s: Seconds = 0.0
    seen: Sight | None = None
    call: int = 0
    open: int = 0
    answer_by_s: Seconds = math.inf
    rang_until_s: Seconds = 0.0
    coming_s: Seconds = 0.0
    bar_s: Seconds = 0.0
    known_s: Seconds = 0.0
    look_s: Seconds = math.inf
    why_not: str = ""

    @property
    def is_on(self) -> bool:
        """In force."""
        return self.phase is Phase.ON

    @property
    def waits(self) -> bool:
        """Whether `why_not` is how things are meant to be: it will be in force when its time has come."""
        return not self.is_on and self.why_not not in (NO_ANSWER, UNKNOWN_GPUS)


@dataclass(frozen=True, slots=True)
class Step:
    """What follows. due_s: when to say Tick at the latest."""

    hold: Hold
    ask: Ask = Ask.NOTHING
    due_s: Seconds = math.inf


def step(hold: Hold, rule: GpuctlRule, event: Event) -> Step:
    """One event."""
    if isinstance(event, Gone):
        return Step(replace(Hold(), call=hold.call))
    if isinstance(event, Sight):
        if event.call and event.call == hold.open:
            hold = replace(hold, open=0, answer_by_s=math.inf)
        since_s = event.active_s if hold.seen is None else hold.known_s
        hold = replace(hold, seen=event, known_s=since_s)
    return _busy(hold, rule, event) if rule.when == "busy" else _quiet(hold, rule, event)


def wants_guard(hold: Hold, rule: GpuctlRule) -> bool:
    """Whether the watch's doorbell must ring. Not where somebody is connected anyway: each client would cost a look."""
    if rule.when == "busy":
        return not (hold.phase is not Phase.OFF and hold.seen is not None and hold.seen.live > 0)
    return hold.phase in (Phase.ARMING, Phase.ON)


# ---- while it is busy ------------------------------------------------------------------------------------------------


def _busy(hold: Hold, rule: GpuctlRule, event: Sight | Coming | Tick) -> Step:
    now_s = event.at_s
    hold, ask = _noted(hold, event)
    until_s = _busy_until_s(hold, rule)
    if now_s >= until_s:
        if hold.phase is not Phase.OFF:
            hold = replace(hold, phase=Phase.OFF, since_s=now_s, look_s=math.inf, coming_s=0.0, why_not="")
        return Step(hold, ask)
    if hold.phase is Phase.OFF:
        hold = replace(hold, phase=Phase.ON, since_s=now_s, look_s=now_s + rule.look_every_s, why_not="")
    elif hold.is_on and now_s >= _over_s(hold, rule):
        hold = _spent(hold, now_s, "its at_most is over, until the watch was quiet")
    if ask is Ask.NOTHING and now_s >= hold.look_s:
        hold, ask = _asked(replace(hold, look_s=now_s + rule.look_every_s), now_s), Ask.LOOK
    over_s = _over_s(hold, rule) if hold.is_on else math.inf
    return Step(hold, ask, min(until_s, over_s, hold.look_s))


def _noted(hold: Hold, event: Sight | Coming | Tick) -> tuple[Hold, Ask]:
    now_s = event.at_s
    match event:
        case Coming() if event.rang:
            return _asked(replace(hold, coming_s=now_s), now_s), Ask.LOOK
        case Sight():
            if event.rang:
                hold = replace(hold, rang_until_s=max(hold.rang_until_s, now_s + VISIT_S))
            told = bool(event.call) and not hold.open  # by the sockets, after we had asked
            if hold.coming_s and (event.live or told):
                hold = replace(hold, coming_s=0.0)
        case Tick() if hold.open and now_s >= hold.answer_by_s:
            hold = replace(hold, open=0, answer_by_s=math.inf)
    return hold, Ask.NOTHING


def _busy_until_s(hold: Hold, rule: GpuctlRule) -> Seconds:
    """It holds until then, if nothing else is seen."""
    until_s = hold.rang_until_s
    if hold.coming_s:  # a governor that does not tell for whom is taken at its word for a while
        until_s = max(until_s, hold.coming_s + max(VISIT_S, min(rule.release_after_s, ANSWER_S)))
    if hold.seen is not None:
        if hold.seen.live:
            return math.inf
        if hold.seen.active_s > hold.known_s:
            until_s = max(until_s, hold.seen.active_s + rule.release_after_s)
    return until_s


# ---- while it is quiet -----------------------------------------------------------------------------------------------


def _quiet(hold: Hold, rule: GpuctlRule, event: Sight | Coming | Tick) -> Step:
    now_s = event.at_s
    if isinstance(event, Coming):
        hold = _let_go(hold, now_s, "its GPU was woken", CALM_S)
    elif hold.open and now_s >= hold.answer_by_s:
        hold = _let_go(hold, now_s, NO_ANSWER, DOUBT_S)
    elif why := _not_calm(hold):
        hold = _let_go(hold, now_s, why, CALM_S if hold.is_on else 0.0)
    else:
        return _calm(hold, rule, now_s)
    return _quiet_due(hold, rule)


def _calm(hold: Hold, rule: GpuctlRule, now_s: Seconds) -> Step:
    """Nobody is there."""
    ask = Ask.NOTHING
    if hold.phase is Phase.OFF and now_s >= hold.bar_s:
        hold = replace(hold, phase=Phase.ARMING, since_s=now_s, why_not="")
        hold, ask = _asked(hold, now_s), Ask.GUARD
    elif hold.phase is Phase.ARMING and not hold.open:
        hold = replace(hold, phase=Phase.ON, since_s=now_s, look_s=now_s + rule.look_every_s)
        hold, ask = _asked(hold, now_s), Ask.LOOK  # who came while it acted
    elif hold.is_on and now_s >= _over_s(hold, rule):
        hold = _spent(hold, now_s, "its at_most is over, until somebody came")
    elif hold.is_on and now_s >= hold.look_s:
        hold = replace(hold, look_s=now_s + rule.look_every_s)
    return _quiet_due(hold, rule, ask)


def _not_calm(hold: Hold) -> str:
    """Why it may be used, "" if nobody is there."""
    seen = hold.seen
    if seen is None:
        return UNSEEN
    if seen.live or seen.rang:
        return "somebody is connected" if seen.live else "somebody came"
    if seen.awake:
        return seen.awake
    if hold.is_on and seen.active_s > hold.since_s:
        return "somebody came"
    return ""


def _quiet_due(hold: Hold, rule: GpuctlRule, ask: Ask = Ask.NOTHING) -> Step:
    due_s = hold.answer_by_s
    if hold.is_on:
        due_s = min(due_s, _over_s(hold, rule), hold.look_s)
    elif hold.phase is Phase.OFF and not _not_calm(hold):
        due_s = min(due_s, hold.bar_s)
    return Step(hold, ask, due_s)


def _let_go(hold: Hold, now_s: Seconds, why: str, pause_s: Seconds) -> Hold:
    bar_s = max(hold.bar_s, now_s + pause_s) if pause_s else hold.bar_s
    since_s = hold.since_s if hold.phase is Phase.OFF else now_s
    return replace(
        hold, phase=Phase.OFF, since_s=since_s, open=0, answer_by_s=math.inf, bar_s=bar_s, look_s=math.inf, why_not=why
    )


# ---- both ------------------------------------------------------------------------------------------------------------


def _asked(hold: Hold, now_s: Seconds) -> Hold:
    number = hold.call + 1
    return replace(hold, call=number, open=number, answer_by_s=now_s + ANSWER_S)


def _over_s(hold: Hold, rule: GpuctlRule) -> Seconds:
    return hold.since_s + rule.at_most_s if rule.at_most_s else math.inf


def _spent(hold: Hold, now_s: Seconds, why: str) -> Hold:
    return replace(hold, phase=Phase.SPENT, since_s=now_s, why_not=why)
