"""What parking a GPU costs and spares, and what an idle timer would have made of given gaps. Pure.

A gap is the time from the end of the last work of a GPU to the begin of the next. A GPU that is parked `idle_after_s`
into a gap of `gap_s` spares `spared_w` for the rest of it and pays once for the switch:

    saved_j = spared_w * (gap_s - idle_after_s) - switch_j         if gap_s > idle_after_s, else 0

So a gap shorter than `break_even_s` is better left alone, whoever knows it beforehand: that is the offline optimum.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Costs:
    """Of one GPU.

    awake_w: quiet, with a model loaded and its clocks up. parked_w: parked.
    settle_s: from the driver call of a park until the clocks are down. slow_s: from that of a wake until they are back.
    switch_j: what one park and its wake take more than `parked_w` from the one call to the other, at least 0.
    source: "measured" (memscaler calibrate), "observed" (in the energy account) or "assumed".
    """

    awake_w: float
    parked_w: float
    settle_s: float
    slow_s: float
    switch_j: float
    source: str

    @property
    def spared_w(self) -> float:
        """Watts less while parked, at least 0."""
        return max(0.0, self.awake_w - self.parked_w)

    @property
    def break_even_s(self) -> float:
        """The gap for which a park saves as much as it costs; infinite if a park spares nothing."""
        return self.switch_j / self.spared_w if self.spared_w else float("inf")


ASSUMED = Costs(awake_w=70.0, parked_w=20.0, settle_s=0.3, slow_s=0.3, switch_j=25.0, source="assumed")
"""For a GPU of which nothing is known yet: between the cards in docs/will-it-help.md, on the dear side."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy made of some gaps. slowed_s: time after wakes in which the clocks were not back yet."""

    gaps: int = 0
    quiet_s: float = 0.0
    wakes: int = 0
    parked_s: float = 0.0
    slowed_s: float = 0.0
    saved_j: float = 0.0


def with_timer(gaps_s: Iterable[float], idle_after_s: float, costs: Costs) -> Outcome:
    """A timer that is always the same; 0 parks at once."""
    gaps, quiet_s, wakes, parked_s = 0, 0.0, 0, 0.0
    for gap_s in gaps_s:
        gaps, quiet_s = gaps + 1, quiet_s + gap_s
        if gap_s > idle_after_s:
            wakes, parked_s = wakes + 1, parked_s + gap_s - idle_after_s
    return _outcome(gaps, quiet_s, wakes, parked_s, costs)


def offline(gaps_s: Iterable[float], costs: Costs) -> Outcome:
    """Who knows every gap beforehand: parks at once where it pays, and else not."""
    gaps, quiet_s, wakes, parked_s = 0, 0.0, 0, 0.0
    for gap_s in gaps_s:
        gaps, quiet_s = gaps + 1, quiet_s + gap_s
        if gap_s > costs.break_even_s:
            wakes, parked_s = wakes + 1, parked_s + gap_s
    return _outcome(gaps, quiet_s, wakes, parked_s, costs)


def _outcome(gaps: int, quiet_s: float, wakes: int, parked_s: float, costs: Costs) -> Outcome:
    saved_j = costs.spared_w * parked_s - costs.switch_j * wakes
    return Outcome(gaps, quiet_s, wakes, parked_s, costs.slow_s * wakes, saved_j)
