"""The real governor in simulated time: what a policy would have made of recorded work. Pure.

One GPU behind one watch. The driver is ideal: every call returns at once and takes effect, the clocks are down
`settle_s` later. Work is never late: the doorbell rings when it begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from memscaler.core import governor, membership
from memscaler.core.costs import Costs, Outcome
from memscaler.core.governor import DOWN
from memscaler.core.model import (
    SECOND_NS,
    Action,
    Arm,
    Counters,
    GpuPolicy,
    GpuState,
    LeverResult,
    Look,
    Observation,
    Park,
    Phase,
    Policy,
    Reading,
    Surveyed,
    Wake,
)
from memscaler.core.model import Outcome as Answered

Work = tuple[float, float]  # begin and end, in seconds; sorted, and parted by gaps
Decide = Callable[[float, float], GpuPolicy]
RARELY_NS = 24 * 3600 * SECOND_NS  # comparisons with sock_diag find nothing here
GPU, SLOT = "gpu0", 0


@dataclass(frozen=True, slots=True)
class Replayed:
    """parks: begin and end of each, in seconds. unserved: looks that found work beside a GPU that stays down."""

    outcome: Outcome
    parks: tuple[tuple[float, float], ...]
    steps: int
    unserved: int


def idle_after(seconds: float, min_dwell_s: float = 0.0) -> GpuPolicy:
    """A timer of this GPU."""
    return GpuPolicy(frozenset({SLOT}), round(seconds * SECOND_NS), round(min_dwell_s * SECOND_NS))


def replay(work: Iterable[Work], mine: GpuPolicy, costs: Costs, decide: Decide | None = None) -> Replayed:
    """What the governor does with this work. decide: told each gap (begin, length in s) that has ended, for the next.

    Counted is what happens in the gaps between the first work and the last.
    """
    run = _Run(mine, costs, decide)
    for begin_s, end_s in work:
        run.work(round(begin_s * SECOND_NS), round(end_s * SECOND_NS))
    return run.told()


class _Run:
    def __init__(self, mine: GpuPolicy, costs: Costs, decide: Decide | None) -> None:
        self._policy = Policy({GPU: mine}, RARELY_NS, RARELY_NS)
        self._costs, self._decide = costs, decide
        self._reading = Reading(0, 0)
        self._state = membership.initial(self._policy, 0)
        self._deadline_ns = self._verify_ns = 0
        self._quiet_ns: int | None = None  # since when; None: no work yet
        self._parked_ns: int | None = None
        self._gaps, self._quiet_s, self._steps, self._unserved = 0, 0.0, 0, 0
        self._parks: list[tuple[float, float]] = []

    def work(self, begin_ns: int, end_ns: int) -> None:
        """The gap before it, and the work itself."""
        gap = None
        if self._quiet_ns is not None:
            self._pass(begin_ns)
            gap = self._quiet_ns, begin_ns - self._quiet_ns
            self._gaps, self._quiet_s = self._gaps + 1, self._quiet_s + gap[1] / SECOND_NS
        self._reading = Reading(1, self._reading.last_activity_ns)
        self._tell(Counters({SLOT: self._reading}), begin_ns)
        if gap is not None and self._decide is not None:
            mine = self._decide(gap[0] / SECOND_NS, gap[1] / SECOND_NS)
            if mine != self._policy.gpus[GPU]:
                self._policy = replace(self._policy, gpus={GPU: mine})
                self._tell(Counters({SLOT: self._reading}), begin_ns)
        self._pass(end_ns)
        self._reading = Reading(0, end_ns)
        self._quiet_ns = end_ns

    def told(self) -> Replayed:
        """What came of it."""
        parked_s = sum(until_s - at_s for at_s, until_s in self._parks)
        wakes, costs = len(self._parks), self._costs
        saved_j = costs.spared_w * parked_s - costs.switch_j * wakes
        outcome = Outcome(self._gaps, self._quiet_s, wakes, parked_s, costs.slow_s * wakes, saved_j)
        return Replayed(outcome, tuple(self._parks), self._steps, self._unserved)

    @property
    def _gpu(self) -> GpuState:
        return self._state.gpus[GPU]

    def _pass(self, until_ns: int) -> None:
        """Everything that is due before a time."""
        while True:
            verify_ns = self._verify_ns or until_ns
            if min(self._deadline_ns, verify_ns) >= until_ns:
                return
            if verify_ns <= self._deadline_ns:
                self._verify_ns = 0
                if self._gpu.failures:  # else it is no news
                    self._tell(LeverResult(GPU, self._gpu.seq, Answered.VERIFIED), verify_ns)
            else:
                self._deadline_ns += self._alike_ns(until_ns)
                self._tell(Counters({SLOT: self._reading}), self._deadline_ns)

    def _alike_ns(self, until_ns: int) -> int:
        """Looks at work that goes on only put off the next one by the idle time: the last of them does for all."""
        if not self._reading.live or self._gpu.phase is not Phase.AWAKE:
            return 0
        every_ns = self._policy.gpus[GPU].idle_after_ns
        return (until_ns - 1 - self._deadline_ns) // every_ns * every_ns

    def _tell(self, seen: Observation, now_ns: int) -> None:
        told = [seen]
        while told:
            step = governor.step(self._state, told.pop(0), now_ns, self._policy)
            self._state, self._deadline_ns = step.state, step.deadline_ns
            self._steps += 1
            for action in step.actions:
                told += self._do(action, now_ns)
        self._unserved += bool(self._reading.live and self._gpu.phase in DOWN)

    def _do(self, action: Action, now_ns: int) -> list[Observation]:
        match action:
            case Arm(_, seq):
                self._reading = Reading(self._reading.live, self._reading.last_activity_ns, armed=True)
                return [Surveyed(GPU, seq, {SLOT: self._reading})]
            case Look(_, seq):
                return [Surveyed(GPU, seq, {SLOT: self._reading})]
            case Park(_, seq):
                self._parked_ns, self._verify_ns = now_ns, now_ns + round(self._costs.settle_s * SECOND_NS)
                return [LeverResult(GPU, seq, Answered.APPLIED)]
            case Wake(_, seq, _):
                if self._parked_ns is not None:
                    self._parks.append((self._parked_ns / SECOND_NS, now_ns / SECOND_NS))
                self._parked_ns, self._verify_ns = None, 0
                return [LeverResult(GPU, seq, Answered.WOKEN)]
            case _:
                return [Counters({SLOT: self._reading})]
