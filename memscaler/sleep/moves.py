"""The words of the ladder (ladder.py): what happens to one server, what is to be done, and how it stands.

Times are seconds of CLOCK_MONOTONIC. A call is the number of something that was asked of others; its answer has it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from memscaler.config.stages import StageRule
from memscaler.core.stages import LADDER, Rung, Stage

DEPTH: Mapping[Stage, int] = {stage: depth for depth, stage in enumerate(LADDER)}


# ---- what happens --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sight:
    """The governor's picture of it. call: of the look or guard that it answers, 0 none. at_s: when it was taken.

    parked: every GPU is parked, or cannot be parked at all; else unparked is a sentence. held: why it must be up, "" if
    nothing does. holds: those that hold it, as the governor calls them. active_s, touched_s: last work, last touch.
    pids: who listens.
    """

    at_s: float
    call: int = 0
    live: int = 0
    rang: bool = False
    active_s: float = 0.0
    touched_s: float = 0.0
    parked: bool = True
    unparked: str = ""
    held: str = ""
    pids: tuple[int, ...] = ()
    holds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Gone:
    """Nobody watches it any more."""


@dataclass(frozen=True, slots=True)
class Entered:
    """The stage holds."""

    call: int


@dataclass(frozen=True, slots=True)
class NotPossible:
    """Nothing was done. lasting: the next stage may follow in its turn; else it is asked again soon."""

    call: int
    why: str
    lasting: bool = True


@dataclass(frozen=True, slots=True)
class Undone:
    """Entering failed; it is as before. for_good: never again with these processes."""

    call: int
    why: str
    for_good: bool = False


@dataclass(frozen=True, slots=True)
class HalfWay:
    """Entering failed, and it may be anywhere: leave it."""

    call: int
    why: str


@dataclass(frozen=True, slots=True)
class Left:
    """It is up again, as far as this stage goes. missing: or somebody has taken it away, a sentence; "" if not."""

    call: int
    missing: str = ""


@dataclass(frozen=True, slots=True)
class NotLeft:
    """It is not up again."""

    call: int
    why: str


@dataclass(frozen=True, slots=True)
class Up:
    """Somebody wants it up: an operator, the gateway, a resume."""

    why: str


@dataclass(frozen=True, slots=True)
class Down:
    """Somebody wants it down now, if nobody uses it: to `stage`, or the next one.

    rule: straight to this one, which need not be configured (before a suspend). force: also under its clients.
    further: to the one behind it if this one turns out not to be possible.
    """

    stage: Stage | None = None
    rule: StageRule | None = None
    force: bool = False
    further: bool = False


@dataclass(frozen=True, slots=True)
class End:
    """Up, and never down again."""


@dataclass(frozen=True, slots=True)
class Tick:
    """It may be later than `due_s`; also: the rules have changed."""


Event = Sight | Gone | Entered | NotPossible | Undone | HalfWay | Left | NotLeft | Up | Down | End | Tick


# ---- what is to be done --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arm:
    """Guard its watch, and look: a Sight with this number follows."""

    call: int


@dataclass(frozen=True, slots=True)
class Disarm:
    """Guard it no longer. Nothing follows."""


@dataclass(frozen=True, slots=True)
class Enter:
    """Write it down, then enter; Entered, NotPossible, Undone or HalfWay follows."""

    call: int
    rule: StageRule


@dataclass(frozen=True, slots=True)
class Leave:
    """Leave; Left or NotLeft follows."""

    call: int
    rule: StageRule
    why: str


Action = Arm | Disarm | Enter | Leave


# ---- how it stands -------------------------------------------------------------------------------------------------


class Phase(Enum):
    """What it waits for; RESTING is for time to pass or somebody to come."""

    RESTING = "resting"
    ARMING = "arming"
    ENTERING = "entering"
    LOOKING = "looking"
    LEAVING = "leaving"
    STUCK = "stuck"
    HUNG = "hung"


CALLING = frozenset({Phase.ENTERING, Phase.LEAVING, Phase.HUNG})


@dataclass(frozen=True, slots=True)
class Failure:
    """Of entering a stage: how often in a row, until when it is not tried again, and what was said last."""

    times: int
    again_s: float
    why: str


@dataclass(frozen=True, slots=True)
class Standing:
    """One server. held: the stages that were entered, the shallowest first. entering: the one on its way.

    calm_s: when it was last seen to be quiet, before entering; who came after that, came. quiet_from_s: its quiet time
    is counted from there at the earliest. visit_s: since when somebody is connected whom a look will tell from a touch.
    up_for: why it must come up. wished: an operator's, or a suspend's. passed: stages that are not possible, and why;
    at passed_s. barred: those that never will be, with these processes. retries: to leave, in a row.
    seen: the last picture. said: what went wrong last, a sentence. refused: why the last wish came to nothing, "" if it
    did not. listened: somebody has been seen to listen since it came up. missing: why nobody serves there although
    nothing of it is down, "" if somebody does.
    """

    phase: Phase = Phase.RESTING
    held: tuple[StageRule, ...] = ()
    entering: StageRule | None = None
    call: int = 0
    since_s: float = 0.0
    due_s: float | None = None
    armed: bool = False
    calm_s: float = 0.0
    quiet_from_s: float = 0.0
    visit_s: float | None = None
    up_for: str = ""
    wished: Down | None = None
    ending: bool = False
    retries: int = 0
    passed: Mapping[Stage, str] = field(default_factory=dict)
    passed_s: float = 0.0
    barred: Mapping[Stage, str] = field(default_factory=dict)
    failures: Mapping[Stage, Failure] = field(default_factory=dict)
    seen: Sight | None = None
    said: str = ""
    refused: str = ""
    listened: bool = False
    missing: str = ""

    @property
    def stage(self) -> Stage | None:
        """The deepest that it is in."""
        return self.held[-1].stage if self.held else None

    @property
    def rung(self) -> Rung:
        if self.phase is Phase.HUNG or self.retries:
            return Rung.STUCK
        if self.phase in (Phase.ENTERING, Phase.LEAVING):
            return Rung(self.phase.value)
        return Rung.DOWN if self.held else Rung.UP

    @property
    def is_up(self) -> bool:
        """Nothing of it is down, or may be."""
        return not self.held and self.phase not in CALLING


@dataclass(frozen=True, slots=True)
class Step:
    """How it stands now, and what is to be done."""

    standing: Standing
    actions: tuple[Action, ...] = ()


@dataclass(frozen=True, slots=True)
class Next:
    """The stage that follows if nobody comes. due_s: when its time has come; None: it depends on who goes.

    ready_s: when it can be entered, as far as is known; None: something must change first. why_not: what, a sentence.
    """

    rule: StageRule | None = None
    due_s: float | None = None
    ready_s: float | None = None
    why_not: str = ""
