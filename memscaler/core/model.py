"""The words of the governor: what it is told (observations), what it asks for (actions), what it goes by (policy).

Everything here is frozen data from the standard library. Times are nanoseconds of CLOCK_MONOTONIC, the clock of
bpf_ktime_get_ns, so that kernel and user space compare them without conversion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from operator import attrgetter

SECOND_NS = 1_000_000_000
FOR_EVER_NS = 2**62  # a time that does not come: of a hold without an end


class Public(StrEnum):
    """The states of a GPU that users see."""

    AWAKE = "awake"
    COOLING = "cooling"
    PARKED = "parked"
    HELD = "held"
    UNMANAGED = "unmanaged"


class Phase(StrEnum):
    """The governor's own, finer states; `PUBLIC` in governor.py maps them to what users see."""

    AWAKE = "awake"  # live connections at the last look
    COOLING = "cooling"  # quiet, timer running
    ARMING = "arming"  # doorbells armed, waiting for the ledger (sock_diag)
    PARKING = "parking"  # park asked for, driver call not answered
    PARKED = "parked"  # the driver call returned; armed
    WAKING = "waking"  # wake asked for, not answered
    UNMANAGED = "unmanaged"  # at full speed and left there, with the reason
    STOPPED = "stopped"  # after Stop, known to be at full speed


@dataclass(frozen=True, slots=True)
class Reading:
    """What one watch's counters say: connections at work, the end of the last work, its doorbell, the last touch.

    A touch is what a client did that was too little to be work: a health check, a scrape. unsure: of touches that may
    turn out to be work after all, because their answer may have just begun, the last.
    """

    live: int
    last_activity_ns: int
    armed: bool = False
    last_touch_ns: int = 0
    last_unsure_ns: int = 0


@dataclass(frozen=True, slots=True)
class GpuPolicy:
    """What one GPU goes by. idle_after_ns is above zero.

    watches: the slots whose connections count for it. Without any the GPU stays awake: nobody would tell when to wake.
    touch_cooldown_ns: it may park this long after a touch (0: nothing counts as a touch).
    retry_after_ns: so long it is left alone after its driver has failed; doubles with each further failure.
    """

    watches: frozenset[int]
    idle_after_ns: int = 60 * SECOND_NS
    min_dwell_ns: int = SECOND_NS
    touch_cooldown_ns: int = 0
    retry_after_ns: int = 60 * SECOND_NS


@dataclass(frozen=True, slots=True)
class Policy:
    """What all go by; every interval is above zero.

    reconcile_every_ns: the slow comparison of the counters with sock_diag.
    parked_look_ns: how often to look at sock_diag while a GPU is parked; 1 s where the kernel side may lose opens,
        else the slow interval.
    survey_timeout_ns: a survey that has not answered by then counts as doubt.
    wake_retry_ns: the pause before a failed wake is asked for again (doubles up to 32 times this).
    """

    gpus: Mapping[str, GpuPolicy]
    reconcile_every_ns: int = 60 * SECOND_NS
    parked_look_ns: int = 60 * SECOND_NS
    survey_timeout_ns: int = 5 * SECOND_NS
    wake_retry_ns: int = SECOND_NS // 10


# ---- observations -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Counters:
    """The counters of every watch, read now. Fed at each deadline and each ring of the doorbell."""

    readings: Mapping[int, Reading]


@dataclass(frozen=True, slots=True)
class Surveyed:
    """The answer to the Arm or Look of this number: the counters, read after they were compared with sock_diag."""

    gpu: str
    seq: int
    readings: Mapping[int, Reading]


class Outcome(StrEnum):
    """How a lever call ended."""

    APPLIED = "applied"  # park: the driver call returned success (effect not verified yet)
    VERIFIED = "verified"  # park: the clocks are down
    NOTHING_TO_GAIN = "nothing_to_gain"  # park: not tried, the clocks are low by themselves
    BUSY = "busy"  # park: not tried: the GPU works although no connection is live
    NEXT_LEVER = "next_lever"  # park: this lever does not work here, the next park uses another one
    FAILED = "failed"  # park: no lever is left that works; wake: the driver refused
    WOKEN = "woken"  # wake: the driver call returned success
    NO_EFFECT = "no_effect"  # wake: success was reported earlier, but the clocks stay down
    WEDGED = "wedged"  # the driver does not answer within the deadline
    LOST = "lost"  # the GPU is gone


@dataclass(frozen=True, slots=True)
class LeverResult:
    """The answer of a GPU's actuator to the Park or Wake with this number. remedy: what an operator can do."""

    gpu: str
    seq: int
    outcome: Outcome
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Hold:
    """An operator keeps a GPU awake until `expires_ns`."""

    gpu: str
    owner: str
    expires_ns: int


@dataclass(frozen=True, slots=True)
class Unhold:
    """The operator's lease ends early."""

    gpu: str
    owner: str


@dataclass(frozen=True, slots=True)
class Doubt:
    """Something is not as it should be (overflow, lost guardian, failed survey). `gpu` None means all of them."""

    reason: str
    gpu: str | None = None


@dataclass(frozen=True, slots=True)
class ParkNow:
    """An operator does not want to wait for the idle time; everything else that keeps a GPU awake still does."""

    gpu: str


@dataclass(frozen=True, slots=True)
class Stop:
    """memscaler ends, or lets go of one GPU: wake, and park nothing more. `gpu` None means all of them."""

    gpu: str | None = None


Observation = Counters | Surveyed | LeverResult | Hold | Unhold | Doubt | ParkNow | Stop


# ---- actions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arm:
    """Arm the doorbells of the GPU's watches, then compare with sock_diag; answer with Surveyed."""

    gpu: str
    seq: int


@dataclass(frozen=True, slots=True)
class Look:
    """Compare with sock_diag without arming; answer with Surveyed."""

    gpu: str
    seq: int


@dataclass(frozen=True, slots=True)
class Park:
    """Put the GPU into its low-power setting; answer with LeverResult."""

    gpu: str
    seq: int


@dataclass(frozen=True, slots=True)
class Wake:
    """Undo the low-power setting; answer with LeverResult."""

    gpu: str
    seq: int
    reason: str


@dataclass(frozen=True, slots=True)
class Reconcile:
    """Compare all counters with sock_diag and heal the set; answer with Counters."""

    reason: str


@dataclass(frozen=True, slots=True)
class Alarm:
    """An operator should know."""

    gpu: str
    reason: str


Action = Arm | Look | Park | Wake | Reconcile | Alarm


# ---- state --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GpuState:
    """One GPU as the governor knows it.

    since_ns: start of the phase; for COOLING the last activity.
    due_ns: when the governor wants to hear again (0: only when something happens).
    quiet_floor_ns: the idle timer starts no earlier than this (daemon start, last wake, other signs of work).
    seq: number of the last Arm, Park or Wake; answers to earlier ones are stale. A Look bears the number of its Park.
    asked: the last Arm or Look is not answered yet.
    touched: a Park was issued and no wake after it has been confirmed.
    answered: the last Park was answered.
    for_client: the last Wake was asked for because of a client.
    parked_at_ns: the last time a park took effect or may have done so; the minimum dwell counts from here.
    distrust: why this GPU is not parked ("" while it is trusted).
    trusted_again_ns: when the distrust ends; 0: it does not.
    failures: quarantines since the last park that was seen to work.
    alarmed: the last alarm, until all is well; the same one is not raised again.
    hurried_ns: when an operator wanted it parked without waiting for the idle time; void once a client came after that.
    retries: failed wakes in a row; those in vain count although the driver reported success.
    holds: owner -> expiry.
    """

    phase: Phase = Phase.AWAKE
    since_ns: int = 0
    due_ns: int = 0
    quiet_floor_ns: int = 0
    seq: int = 0
    asked: bool = False
    touched: bool = False
    answered: bool = True
    for_client: bool = False
    distrust: str = ""
    trusted_again_ns: int = 0
    failures: int = 0
    alarmed: str = ""
    hurried_ns: int = 0
    parked_at_ns: int | None = None
    retries: int = 0
    stopping: bool = False
    holds: Mapping[str, int] = field(default_factory=dict)

    def but(self, **changes: object) -> GpuState:
        """With other values. In half the time of dataclasses.replace: every step of the governor makes some."""
        return GpuState(**{**dict(zip(_NAMES, _VALUES(self), strict=True)), **changes})


_NAMES = tuple(each.name for each in fields(GpuState))
_VALUES = attrgetter(*_NAMES)


@dataclass(frozen=True, slots=True)
class GovernorState:
    """All GPUs, when the next reconciliation is due and when the last one was asked for."""

    gpus: Mapping[str, GpuState]
    reconcile_due_ns: int = 0
    reconciled_ns: int = 0
