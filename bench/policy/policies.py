"""What each policy makes of a trace, as the real governor does it; and what nobody could do better."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bench.policy.traces import Trace
from memscaler.core import adaptive
from memscaler.core.adaptive import ALL, HOUR, SPELL, Limits
from memscaler.core.costs import Costs, Outcome, offline, with_timer
from memscaler.core.model import GpuPolicy
from memscaler.core.replay import Replayed, idle_after, replay

# Awake with a model loaded, and parked: facts of docs/will-it-help.md. The switch takes what 0.3 s awake take.
CARDS = {
    "A40": Costs(80.0, 18.0, 0.3, 0.3, 19.0, "reported"),
    "P40": Costs(48.0, 10.0, 0.3, 0.3, 12.0, "reported"),
    "L40S": Costs(102.0, 35.0, 0.3, 0.3, 20.0, "reported"),
    "RTX 3090": Costs(31.0, 16.0, 0.3, 0.3, 5.0, "reported"),
}
TIMERS_S = {"5 s": 5.0, "10 s": 10.0, "60 s": 60.0, "Knative": 90.0, "llama-swap": 300.0}
AUTO, BREAK_EVEN, OFFLINE = "auto", "break-even", "offline"
GOAL, RIVAL = 0.95, "5 s"
WAYS = {"all alike": (ALL,), "by spells too": (ALL, SPELL), "by the hour too": (ALL, SPELL, HOUR)}


@dataclass(frozen=True, slots=True)
class Result:
    """Of one trace on one card. outcomes: by policy; clairvoyant: parks in the longest gaps, once less than RIVAL.

    best_share: the best that one timer, chosen with hindsight, saves with fewer wakes than RIVAL.
    hours, gaps, cpu_s: simulated by the governor, and what that took.
    """

    trace: Trace
    card: str
    outcomes: dict[str, Outcome]
    clairvoyant_share: float
    best_share: float
    why: str
    hours: float
    gaps: int
    cpu_s: float

    def share(self, policy: str) -> float:
        """Of the possible saving."""
        return self.outcomes[policy].saved_j / self.outcomes[OFFLINE].saved_j

    def wakes_ratio(self, policy: str) -> float:
        """To those of RIVAL."""
        return self.outcomes[policy].wakes / self.outcomes[RIVAL].wakes

    @property
    def within_reach(self) -> bool:
        """True if one timer, chosen with hindsight, would reach the goal."""
        return self.best_share >= GOAL

    @property
    def met(self) -> bool:
        """The goal: GOAL of the saving, with fewer wakes than RIVAL."""
        return self.share(AUTO) >= GOAL and self.wakes_ratio(AUTO) < 1


def judge(trace: Trace, card: str = "A40", *, timers: bool = True) -> Result:
    """Replay it. timers False: the fixed ones are computed, which gives the same (tests/core/test_replay.py)."""
    costs, limits = CARDS[card], Limits()
    gaps_s = [gap_s for _, gap_s in trace.gaps]
    fixed = TIMERS_S | {BREAK_EVEN: adaptive.break_even_s(costs, limits)}
    began_s, runs = time.process_time(), 1  # that of auto
    outcomes: dict[str, Outcome] = {}
    for name, idle_after_s in fixed.items():
        if timers:
            outcomes[name], runs = replay(trace.work, idle_after(idle_after_s), costs).outcome, runs + 1
        else:
            outcomes[name] = with_timer(gaps_s, idle_after_s, costs)
    outcomes[AUTO], why = _auto(trace, costs, limits)
    cpu_s = time.process_time() - began_s
    outcomes[OFFLINE] = offline(gaps_s, costs)
    longest = sorted(gaps_s, reverse=True)[: max(0, outcomes[RIVAL].wakes - 1)]
    best_j = max(
        (tried.saved_j for tried in _timers(gaps_s, costs) if tried.wakes < outcomes[RIVAL].wakes), default=0.0
    )
    return Result(
        trace=trace,
        card=card,
        outcomes=outcomes,
        clairvoyant_share=offline(longest, costs).saved_j / outcomes[OFFLINE].saved_j,
        best_share=best_j / outcomes[OFFLINE].saved_j,
        why=why,
        hours=runs * trace.days * 24,
        gaps=runs * len(gaps_s),
        cpu_s=cpu_s,
    )


def ways(trace: Trace, card: str) -> dict[str, Outcome]:
    """What auto makes of it if gaps may be parted in some ways only; and the offline optimum."""
    costs = CARDS[card]
    found = {name: adaptive.replay(trace.gaps, costs, Limits(ways=mine)) for name, mine in WAYS.items()}
    return found | {OFFLINE: offline([gap_s for _, gap_s in trace.gaps], costs)}


def _timers(gaps_s: list[float], costs: Costs) -> list[Outcome]:
    """Of all timers those that may be best: right after a gap that is longer than RIVAL's."""
    some = sorted({gap_s for gap_s in gaps_s if TIMERS_S[RIVAL] < gap_s < 60})[:200]
    return [with_timer(gaps_s, idle_after_s, costs) for idle_after_s in some]


def _auto(trace: Trace, costs: Costs, limits: Limits) -> tuple[Outcome, str]:
    known = adaptive.begin(costs, limits, trace.work[0][0])

    def decide(start_s: float, gap_s: float) -> GpuPolicy:
        nonlocal known
        known = adaptive.learn(known, start_s, gap_s, costs, limits)
        return idle_after(known.decision.idle_after_s, known.decision.min_dwell_s)

    first = idle_after(known.decision.idle_after_s, known.decision.min_dwell_s)
    done: Replayed = replay(trace.work, first, costs, decide)
    return done.outcome, adaptive.why(known, limits)
