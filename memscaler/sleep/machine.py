"""What is to be done about suspending the machine: pure, `step(standing, event, now, policy) -> Step`.

    AWAKE --quiet for long enough, and every gate is open; or an operator says so--> PREPARING
    PREPARING --the servers are down, and the gates are still open--> GOING     (the alarm is set, logind is asked)
    PREPARING --a client, a gate, an operator, or it took too long--> RETURNING
    GOING --the machine has slept, or logind refused, or the suspend failed, or it did not begin in time--> RETURNING
    RETURNING --the servers are back--> AWAKE

So whatever was taken down is brought back, however it went. Nobody is asked to suspend a second time before the first
has ended. Failures make the pauses grow: 1 minute, 2, 4, up to an hour.

Times `now.s` are seconds of a clock that stands still while the machine sleeps, and that nobody sets (a timeout of a
minute is a minute awake); `now.unix_s` is the wall clock, for people and alarms only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from memscaler.sleep.told import span, who

LOOK_AGAIN_S = 15.0  # after a gate was found closed; also the span over which load and traffic are averaged
PREPARE_LIMIT_S = 1200.0  # stopping and checkpointing have deadlines of their own: this is for what forgets them
FIRST_PAUSE_S, LONGEST_PAUSE_S, KEPT_WAKES = 60.0, 3600.0, 10


@dataclass(frozen=True, slots=True)
class Now:
    """Two clocks, read together."""

    s: float
    unix_s: float


@dataclass(frozen=True, slots=True)
class Policy:
    """after_s: None if no [[stage]] suspends. The others: config.stages.Suspend."""

    after_s: float | None = None
    timeout_s: float = 60.0
    min_awake_s: float = 120.0


# ---- what happens --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Quiet:
    """since_s: since when nobody uses any server (time.monotonic()); None: somebody does, and why. At every change."""

    since_s: float | None
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """An operator wants it now. wake_unix_s: the alarm that goes with it. force: whoever is connected or inhibits."""

    wake_unix_s: float | None = None
    force: bool = False
    by: str = ""


@dataclass(frozen=True, slots=True)
class Never:
    """An operator does not want it. until_unix_s: None is until `allow`. reason: with who said it."""

    reason: str
    until_unix_s: float | None = None


@dataclass(frozen=True, slots=True)
class Allow:
    """The end of Never."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What the gates said: a sentence for each that is closed. wake_unix_s: the next time it is to be up by itself."""

    closed: tuple[str, ...]
    wake_unix_s: float | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that was to be taken down is down, and nobody came meanwhile."""


@dataclass(frozen=True, slots=True)
class NotPrepared:
    """It could not be, or a client came. failed: something went wrong, so that the next attempt waits for longer."""

    why: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """Logind, or the kernel, does not suspend."""

    why: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """The machine is up. slept_s: 0.0 if it never slept: the suspend has failed. by: what woke it, or why it failed."""

    slept_s: float
    by: str = ""


@dataclass(frozen=True, slots=True)
class Back:
    """The servers are back, or will be, by somebody else's doing. all_up: each of them serves."""

    all_up: bool = True


@dataclass(frozen=True, slots=True)
class Tick:
    """It may be later than `due_s`."""


Event = Quiet | Wanted | Never | Allow | Looked | Prepared | NotPrepared | Refused | Resumed | Back | Tick


# ---- what is to be done --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Look:
    """Look at the gates; Looked follows, at once. request: then only those that hold for an operator.

    again: the servers are down; load and traffic are our own now, theirs who ended.
    """

    request: Wanted | None = None
    again: bool = False


@dataclass(frozen=True, slots=True)
class Prepare:
    """Take down what runs; Prepared or NotPrepared follows. force: also under clients that are connected."""

    why: str
    force: bool = False


@dataclass(frozen=True, slots=True)
class Suspend:
    """Set the alarm, then ask logind; Refused or Resumed follows, if anything does."""

    wake_unix_s: float | None
    force: bool


@dataclass(frozen=True, slots=True)
class CallOff:
    """Nobody is to suspend any more: it took too long."""


@dataclass(frozen=True, slots=True)
class BringBack:
    """What Prepare took down, and what was down before it; Back follows. slept_s: None if it did not come to sleep."""

    why: str
    slept_s: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """To the operator who wanted it: why not, or () for yes."""

    refused: tuple[str, ...] = ()


Action = Look | Prepare | Suspend | CallOff | BringBack | Answer


# ---- how it stands -------------------------------------------------------------------------------------------------


class State(Enum):
    """Of the table above."""

    AWAKE = "awake"
    PREPARING = "preparing"
    GOING = "going"
    RETURNING = "returning"


@dataclass(frozen=True, slots=True)
class Standing:
    """state and since: of the table above. awake_s: when the machine resumed.

    not_before_s: of the next look. looking: Look was said and Looked has not come. request: of an operator, until it is
    refused or over. closed: the gates of the last look. alarm: the one that is set, or is to be set. told: totals.
    left, wakes_s: resumes after which every server was back, and how long the last of them took.
    """

    since: Now
    awake_s: float
    state: State = State.AWAKE
    quiet: Quiet = Quiet(None, "the servers have not been looked at yet")
    never: Never | None = None
    not_before_s: float = 0.0
    looking: bool = False
    request: Wanted | None = None
    closed: tuple[str, ...] = ()
    alarm_unix_s: float | None = None
    failures: int = 0
    last: str = ""
    suspends: int = 0
    failed: int = 0
    asleep_s: float = 0.0
    left: int = 0
    wakes_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """due_s: a Tick is wanted then, at the latest (`now.s`)."""

    standing: Standing
    actions: tuple[Action, ...] = ()
    due_s: float | None = None


def step(standing: Standing, event: Event, now: Now, policy: Policy) -> Step:
    """What follows from an event."""
    after, actions = _happens(standing, event, now, policy)
    if after.never and after.never.until_unix_s is not None and now.unix_s >= after.never.until_unix_s:
        after = replace(after, never=None)
    after, more = _due(after, now, policy)
    return Step(after, (*actions, *more), _due_s(after, now, policy))


def _happens(  # noqa: PLR0911  # one table
    it: Standing, event: Event, now: Now, policy: Policy
) -> tuple[Standing, tuple[Action, ...]]:
    """By who speaks; an event that comes late, when what it belongs to is over, changes nothing."""
    match event:
        case Wanted() | Never() | Allow():
            return _operator(it, event, now)
        case Quiet() | Prepared() | NotPrepared() | Back():
            return _servers(it, event, now)
        case Looked() if it.looking:
            return _looked(replace(it, looking=False, closed=event.closed), event, now)
        case Refused(why) if it.state is State.GOING:
            return _return(_failing(it, why), now, why)
        case Resumed():
            return _resumed(it, event, now)
        case Tick():
            return _late(it, now, policy)
        case _:
            return it, ()


def _operator(it: Standing, event: Wanted | Never | Allow, now: Now) -> tuple[Standing, tuple[Action, ...]]:
    match event:
        case Wanted():
            return _wanted(it, event)
        case Never(reason):
            it = replace(it, never=event)
            if it.state is State.PREPARING and not (it.request and it.request.force):
                return _call_off(it, now, f"never: {reason}")
            return it, ()
        case Allow():
            return replace(it, never=None), ()


def _servers(
    it: Standing, event: Quiet | Prepared | NotPrepared | Back, now: Now
) -> tuple[Standing, tuple[Action, ...]]:
    match event:
        case Quiet():
            return replace(it, quiet=event, closed=() if event.since_s is None else it.closed), ()
        case Prepared() if it.state is State.PREPARING:
            return replace(it, looking=True), (Look(it.request, again=True),)
        case NotPrepared(why, True) if it.state is State.PREPARING:
            return _return(_failing(it, why), now, why)
        case NotPrepared(why) if it.state is State.PREPARING:
            return _call_off(it, now, why)
        case Back() if it.state is State.RETURNING:
            pause_s = FIRST_PAUSE_S * 2.0 ** min(max(it.failures - 1, 0), 16)
            it = replace(it, not_before_s=now.s + min(pause_s, LONGEST_PAUSE_S), closed=(), request=None)
            if event.all_up and it.since.s == it.awake_s:  # it returns because it has slept
                wakes_s = (*it.wakes_s, round(now.s - it.awake_s, 3))[-KEPT_WAKES:]
                it = replace(it, left=it.left + 1, wakes_s=wakes_s)
            return replace(it, state=State.AWAKE, since=now), ()
        case _:
            return it, ()


def _late(it: Standing, now: Now, policy: Policy) -> tuple[Standing, tuple[Action, ...]]:
    """What has taken too long."""
    if it.state is State.PREPARING and now.s >= it.since.s + PREPARE_LIMIT_S:
        why = "the servers did not end"
        return _return(_failing(it, why), now, why)
    if it.state is State.GOING and now.s >= it.since.s + policy.timeout_s:
        why = f"the machine was still up after {policy.timeout_s:.0f} s"
        it, actions = _return(_failing(it, why), now, why)
        return it, (CallOff(), *actions)
    return it, ()


def _wanted(it: Standing, request: Wanted) -> tuple[Standing, tuple[Action, ...]]:
    """Every request is answered once, here or after the look."""
    refused: tuple[str, ...] = ()
    if it.state is not State.AWAKE or it.request:
        refused = ("it is being suspended, or has just resumed, already",)
    elif not request.force:
        refused = _against(it)
    if refused:
        return it, (Answer(refused),)
    return replace(it, request=request, looking=True), (Look(request),)


def _looked(it: Standing, event: Looked, now: Now) -> tuple[Standing, tuple[Action, ...]]:
    """Before the servers are taken down, and again when they are."""
    force = it.request is not None and it.request.force
    closed = event.closed
    if not closed and not force:  # said after Look was
        closed = _against(it)
    if it.state is State.PREPARING:
        if closed:
            return _call_off(it, now, closed[0])
        return replace(it, state=State.GOING, since=now), (Suspend(it.alarm_unix_s, force),)
    answer = (Answer(closed),) if it.request else ()
    if closed:
        return replace(it, request=None, not_before_s=now.s + LOOK_AGAIN_S), answer
    alarms = [it.request.wake_unix_s if it.request else None, event.wake_unix_s]
    alarm_unix_s = min((each for each in alarms if each is not None), default=None)
    by = f"{who(it.request.by)} wants it" if it.request else "nobody has used a server for long enough"
    return replace(it, state=State.PREPARING, since=now, alarm_unix_s=alarm_unix_s), (*answer, Prepare(by, force))


def _against(it: Standing) -> tuple[str, ...]:
    """What is known here and speaks against it."""
    never = (f"never: {it.never.reason}",) if it.never else ()
    used = (it.quiet.why_not,) if it.quiet.since_s is None else ()
    return (*never, *used)


def _resumed(it: Standing, event: Resumed, now: Now) -> tuple[Standing, tuple[Action, ...]]:
    """Also of a suspend that was not ours, or that came after we had given it up."""
    if event.slept_s <= 0:
        if it.state is not State.GOING:
            return it, ()
        why = event.by or "the suspend failed"
        return _return(_failing(it, why), now, why)
    it = replace(it, awake_s=now.s, suspends=it.suspends + 1, asleep_s=it.asleep_s + event.slept_s)
    it = replace(it, last=f"slept {span(event.slept_s)}" + f", {event.by}" * bool(event.by), failures=0, closed=())
    if it.state in (State.PREPARING, State.GOING):
        return _return(it, now, it.last, event.slept_s)
    return it, ()


def _failing(it: Standing, why: str) -> Standing:
    return replace(it, last=f"failed: {why}", failed=it.failed + 1, failures=it.failures + 1)


def _call_off(it: Standing, now: Now, why: str) -> tuple[Standing, tuple[Action, ...]]:
    return _return(replace(it, last=f"called off: {why}"), now, why)


def _return(it: Standing, now: Now, why: str, slept_s: float | None = None) -> tuple[Standing, tuple[Action, ...]]:
    it = replace(it, state=State.RETURNING, since=now, looking=False, alarm_unix_s=None)
    return it, (BringBack(why, slept_s),)


def _due(it: Standing, now: Now, policy: Policy) -> tuple[Standing, tuple[Action, ...]]:
    due_s = look_s(it, policy)
    if due_s is None or now.s < due_s:
        return it, ()
    return replace(it, looking=True), (Look(),)


def look_s(it: Standing, policy: Policy) -> float | None:
    """When the gates are to be looked at, of its own accord."""
    if it.state is not State.AWAKE or it.looking or it.never or policy.after_s is None or it.quiet.since_s is None:
        return None
    return max(it.quiet.since_s + policy.after_s, it.awake_s + policy.min_awake_s, it.not_before_s)


def _due_s(it: Standing, now: Now, policy: Policy) -> float | None:
    match it.state:
        case State.PREPARING:
            return it.since.s + PREPARE_LIMIT_S
        case State.GOING:
            return it.since.s + policy.timeout_s
        case State.AWAKE if it.never and it.never.until_unix_s is not None:
            return now.s + max(0.0, it.never.until_unix_s - now.unix_s)
        case State.AWAKE:
            return look_s(it, policy)
        case _:
            return None
