"""What is to be done about one server: pure, `step(standing, event, now_s, server) -> Step`.

    DISABLED, STOPPED, FAILED --Start--> STARTING --answers--> READY       (its hooks are launched, once per process)
    WAITING --the pause is over--> STARTING
    STARTING, READY --ends by itself, is silent for too long, Stop, Restart--> STOPPING
    STOPPING --everything of it is gone--> whatever `next` says: STARTING, WAITING, FAILED, STOPPED or DISABLED
    STARTING --cannot be started as described--> FAILED        --cannot be started now (its port is taken)--> WAITING

Whatever was a process passes through STOPPING: what it has left behind (its children, its hooks) is gone before the
next one is started. A process that ends by itself counts as a failure unless the restart policy leaves it so; after
more than `restart_limit` failures in a row (0: no limit) the server is FAILED. It counts anew once it was ready for
`restart_window_s`. Times are seconds of a clock that only goes forward.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from memscaler.config.servers import Server
from memscaler.core.servers import ServerState
from memscaler.servers.backoff import pause_s

STRAGGLERS_S = 2.0  # for what a process that ended by itself has left behind
MISSES = 3  # of a ready server's health in a row
MISSED_AGAIN_S = 5.0
PROBE_S, SLOWEST_PROBE_S = 0.1, 1.0

RESTING = frozenset({ServerState.DISABLED, ServerState.STOPPED, ServerState.FAILED, ServerState.WAITING})
RUNNING = frozenset({ServerState.STARTING, ServerState.READY})


class Verdict(Enum):
    """Of a look at a server's health."""

    READY = "ready"
    LOADING = "loading"  # it says so: 503
    SILENT = "silent"  # nobody listens, or what is said makes no sense


# ---- what happens --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """Somebody wants it to run."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Nobody wants it to run. rest: what it is then, STOPPED or DISABLED."""

    rest: ServerState = ServerState.STOPPED
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Restart:
    """Somebody wants another process."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Launched:
    """Its process runs."""


@dataclass(frozen=True, slots=True)
class Refused:
    """It cannot be started as it is described."""

    reason: str


@dataclass(frozen=True, slots=True)
class Hindered:
    """It cannot be started now: for example, somebody else listens on its port."""

    reason: str


@dataclass(frozen=True, slots=True)
class Answered:
    """What a look at its health said; text: why it is not ready."""

    verdict: Verdict
    text: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """Its process has ended. how: "exit status 1"; well: by itself and with status 0. hint: its last words."""

    how: str
    well: bool = False
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Cleared:
    """Nothing of it is left: no process of its group, no hook."""


@dataclass(frozen=True, slots=True)
class Tick:
    """It may be later than `due_s`."""


Event = Start | Stop | Restart | Launched | Refused | Hindered | Answered | Ended | Cleared | Tick


# ---- what is to be done --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Launch:
    """Start a process; Launched, Refused or Hindered follows."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Look at its health after a while; Answered follows."""

    after_s: float


@dataclass(frozen=True, slots=True)
class LaunchHooks:
    """Start those of its hooks that do not run."""


@dataclass(frozen=True, slots=True)
class Clear:
    """End whatever there is of it, hooks first, by SIGKILL after patience_s; Cleared follows."""

    patience_s: float


Action = Launch | Probe | LaunchHooks | Clear


# ---- how it stands -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """When it is gone, start it anew. counted: as a restart by the supervisor."""


@dataclass(frozen=True, slots=True)
class Rest:
    """When it is gone, leave it so."""

    state: ServerState
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Retry:
    """When it is gone, it has failed. steady: it was ready for long before."""

    reason: str
    steady: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """One server. since_s: in this state. ready_s: since when this process is. failures: in a row.

    due_s: when a Tick is wanted: a timeout, the end of a pause, the next look. next: what follows STOPPING.
    """

    state: ServerState = ServerState.STOPPED
    since_s: float = 0.0
    reason: str = ""
    ended: str = ""
    restarts: int = 0
    failures: int = 0
    misses: int = 0
    ready_s: float | None = None
    due_s: float | None = None
    next: Begin | Rest | Retry | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """How it stands now, and what is to be done."""

    standing: Standing
    actions: tuple[Action, ...] = ()


def step(at: Standing, event: Event, now_s: float, server: Server) -> Step:  # noqa: C901, PLR0911, PLR0912  # one table
    """Never raises; an event that makes no sense in this state changes nothing."""
    match event:
        case Start() if at.state in RESTING:
            return _launch(replace(at, restarts=0, failures=0), now_s)
        case Restart(reason):
            fresh = replace(at, restarts=0, failures=0)
            if at.state in RESTING:
                return _launch(fresh, now_s)
            return _stop(fresh, Begin(), now_s, server.stop_timeout_s, reason)
        case Start() if at.state is ServerState.STOPPING and not isinstance(at.next, Begin):
            return Step(replace(at, next=Begin(), restarts=0, failures=0))
        case Stop(rest, reason):
            if at.state in RESTING:
                return Step(_to(at, rest, now_s, reason))
            return _stop(at, Rest(rest, reason), now_s, server.stop_timeout_s, reason)
        case Launched() if at.state is ServerState.STARTING:
            return _launched(at, now_s, server)
        case Refused(reason) if at.state is ServerState.STARTING:
            return Step(_to(at, ServerState.FAILED, now_s, reason))
        case Hindered(reason) if at.state is ServerState.STARTING:
            return _failed(at, Retry(reason), now_s, server)
        case Answered() if at.state in RUNNING:
            return _answered(at, event, now_s, server)
        case Ended(how, _, hint) if at.state in RUNNING:
            return _stop(
                replace(at, ended=how), _after(at, event, now_s, server), now_s, STRAGGLERS_S, _said(how, hint)
            )
        case Ended(how):
            return Step(replace(at, ended=how))
        case Cleared() if at.state is ServerState.STOPPING:
            return _cleared(at, now_s, server)
        case Tick() if at.due_s is not None and now_s >= at.due_s:
            return _due(at, now_s, server)
    return Step(at)


# ---- the transitions -----------------------------------------------------------------------------------------------


def _to(at: Standing, state: ServerState, now_s: float, reason: str = "", due_s: float | None = None) -> Standing:
    return replace(at, state=state, since_s=now_s, reason=reason, due_s=due_s, ready_s=None, misses=0, next=None)


def _launch(at: Standing, now_s: float) -> Step:
    return Step(_to(at, ServerState.STARTING, now_s), (Launch(),))


def _launched(at: Standing, now_s: float, server: Server) -> Step:
    if server.port is None:
        return _ready(at, now_s, server)
    due_s = now_s + server.start_timeout_s if server.start_timeout_s else None
    return Step(replace(at, due_s=due_s), (Probe(PROBE_S),))


def _ready(at: Standing, now_s: float, server: Server) -> Step:
    ready = _to(at, ServerState.READY, now_s, due_s=_next_look(now_s, server))
    return Step(replace(ready, ready_s=now_s), (LaunchHooks(),))


def _next_look(now_s: float, server: Server) -> float | None:
    return now_s + server.health_every_s if server.health_every_s and server.port is not None else None


def _answered(at: Standing, event: Answered, now_s: float, server: Server) -> Step:
    if event.verdict is Verdict.READY:
        if at.state is ServerState.STARTING:
            return _ready(at, now_s, server)
        return Step(replace(at, misses=0, reason="", due_s=_next_look(now_s, server)))
    if at.state is ServerState.STARTING:
        later_s = min(max((now_s - at.since_s) / 20, PROBE_S), SLOWEST_PROBE_S)
        return Step(replace(at, reason=event.text), (Probe(later_s),))
    misses = at.misses + 1
    if misses >= MISSES:
        why = f"did not answer {MISSES} times in a row: {event.text}"
        return _stop(at, _by_us(at, why, now_s, server), now_s, server.stop_timeout_s, why)
    again_s = now_s + min(server.health_every_s or MISSED_AGAIN_S, MISSED_AGAIN_S)
    return Step(replace(at, misses=misses, reason=event.text, due_s=again_s))


def _due(at: Standing, now_s: float, server: Server) -> Step:
    match at.state:
        case ServerState.WAITING:
            return _launch(replace(at, restarts=at.restarts + 1), now_s)
        case ServerState.STARTING:
            why = f"not ready within {server.start_timeout_s:g} s" + (f": {at.reason}" if at.reason else "")
            return _stop(at, _by_us(at, why, now_s, server), now_s, server.stop_timeout_s, why)
        case ServerState.READY:
            return Step(replace(at, due_s=None), (Probe(0.0),))
    return Step(replace(at, due_s=None))


def _stop(at: Standing, after: Begin | Rest | Retry, now_s: float, patience_s: float, reason: str) -> Step:
    """A second wish only changes what comes afterwards: it is being ended already."""
    if at.state is ServerState.STOPPING:
        return Step(replace(at, next=after))
    return Step(replace(_to(at, ServerState.STOPPING, now_s, reason), next=after), (Clear(patience_s),))


def _after(at: Standing, ended: Ended, now_s: float, server: Server) -> Rest | Retry:
    """What follows a process that has ended by itself."""
    why = _said(ended.how, ended.hint)
    if server.restart == "never":
        return Rest(ServerState.STOPPED if ended.well else ServerState.FAILED, f"ended by itself: {why}")
    if server.restart == "on-failure" and ended.well:
        return Rest(ServerState.STOPPED, f"ended by itself: {why}")
    return Retry(f"ended by itself: {why}", _was_steady(at, now_s, server))


def _by_us(at: Standing, why: str, now_s: float, server: Server) -> Rest | Retry:
    """What follows a process that is ended because it does not work."""
    if server.restart == "never":
        return Rest(ServerState.FAILED, why)
    return Retry(why, _was_steady(at, now_s, server))


def _was_steady(at: Standing, now_s: float, server: Server) -> bool:
    return at.ready_s is not None and now_s - at.ready_s >= server.restart_window_s


def _cleared(at: Standing, now_s: float, server: Server) -> Step:
    match at.next:
        case Rest(state, reason):
            return Step(_to(at, state, now_s, reason))
        case Retry():
            return _failed(at, at.next, now_s, server)
    return _launch(at, now_s)


def _failed(at: Standing, failure: Retry, now_s: float, server: Server) -> Step:
    failures = 1 if failure.steady else at.failures + 1
    counted = replace(at, failures=failures)
    if server.restart_limit and failures > server.restart_limit:
        times = f" ({failures} times in a row)" if failures > 1 else ""
        return Step(_to(counted, ServerState.FAILED, now_s, failure.reason + times))
    due_s = now_s + pause_s(failures, server.restart_after_s)
    return Step(_to(counted, ServerState.WAITING, now_s, failure.reason, due_s))


def _said(how: str, hint: str) -> str:
    return f"{how}; its last words: {hint}" if hint else how
