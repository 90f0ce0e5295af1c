"""What the deeper stages were worth, from what was recorded of them, and what they would have been worth. Pure.

What if: a stage that is entered `after_s` into each gap of a GPU that is longer, and left when the gap ends,

    saved_j = spared_w * (gap_s - after_s) - switch_j            waited_s = wake_s, for each such gap

with what was measured of this very stage on this very GPU: the watts that it spares beyond parking, the energy of
entering and leaving it once, and the median time of leaving it. Of a stage of which one of these was never measured
nothing is said but that. The gap would have been as long: who waits for a wake asks no later because of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from memscaler.core.stage_times import Spell
from memscaler.core.stages import LADDER, MEASURED_S, Spent, Stage
from memscaler.core.summary import DAY_S, Latency, rank

AFTERS_S = (600.0, 1800.0, 3600.0, 7200.0, 14400.0)
OF_GPUS = (Stage.SERVER_SLEEP, Stage.CHECKPOINT, Stage.STOP_SERVER)

Gaps = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class StageSum:
    """Of one stage and some time. entered, seconds: of all servers, or of the machine, by memscaler.

    failed: times that it could not be entered. by_others_s: seconds in it because of another manager.
    unended: spells whose end nobody saw. wake: how long leaving it took. spent: of all GPUs; None if nothing is known.
    """

    stage: Stage
    entered: int = 0
    failed: int = 0
    seconds: float = 0.0
    by_others_s: float = 0.0
    unended: int = 0
    wake: Latency | None = None
    spent: Spent | None = None


def stage_sums(
    spells: Sequence[Spell], spent: Mapping[Stage, Spent], start_s: float, end_s: float, recorded_until_s: float
) -> tuple[StageSum, ...]:
    """Each stage that there was between two times, from the shallowest on.

    spells: oldest first, also from before; the last of a server may last until recorded_until_s.
    """
    lasts = {(spell.port, spell.scope): spell for spell in spells if not spell.failed}
    known: dict[Stage, list[tuple[Spell, float | None]]] = {}
    for spell in spells:
        until_s = spell.until_unix_s
        if until_s is None and lasts.get((spell.port, spell.scope)) is spell:
            until_s = max(recorded_until_s, spell.at_unix_s)
        if spell.at_unix_s < end_s and (spell.at_unix_s if until_s is None else until_s) >= start_s:
            within = None if until_s is None else max(0.0, min(until_s, end_s) - max(spell.at_unix_s, start_s))
            known.setdefault(spell.stage, []).append((spell, within))
    stages = [stage for stage in LADDER if stage in known or stage in spent]
    return tuple(_stage_sum(stage, known.get(stage, []), spent.get(stage)) for stage in stages)


def _stage_sum(stage: Stage, spells: Sequence[tuple[Spell, float | None]], spent: Spent | None) -> StageSum:
    real = [(spell, seconds) for spell, seconds in spells if not spell.failed]
    ours = [(spell, seconds) for spell, seconds in real if not spell.by]
    took_s = sorted(spell.wake_s for spell, _ in ours if spell.wake_s is not None)
    wake = Latency(len(took_s), rank(took_s, 0.5), rank(took_s, 0.99), took_s[-1]) if took_s else None
    return StageSum(
        stage,
        entered=len(ours),
        failed=len(spells) - len(real),
        seconds=sum(seconds or 0.0 for _, seconds in ours),
        by_others_s=sum(seconds or 0.0 for spell, seconds in real if spell.by),
        unended=sum(seconds is None for _, seconds in real),
        wake=wake,
        spent=spent,
    )


# ---- what if --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one stage on one GPU. None: nobody has measured that. switch_j: of entering and leaving once."""

    spared_w: float | None
    switch_j: float | None
    wake_s: float | None

    @property
    def lacks(self) -> str:
        """What is not known, in words; "" if all of it is."""
        if self.spared_w is None:
            return "what it spares was never measured"
        if self.wake_s is None:
            return "how long leaving it takes was never measured"
        return ""


@dataclass(frozen=True, slots=True)
class StageRow:
    """What one stage would have made of the gaps. saved_j: beyond parking; of all of the recorded time, as the rest."""

    stage: Stage
    after_s: float
    times: int
    seconds: float
    saved_j: float
    waited_s: float
    days: float

    def a_day(self, total: float) -> float:
        """One of the figures per recorded day."""
        return total / self.days if self.days else 0.0


@dataclass(frozen=True, slots=True)
class StageWhatIf:
    """rows: of the stages that were measured on this GPU. unknown: stage -> what is not known of it."""

    rows: tuple[StageRow, ...] = ()
    unknown: Mapping[Stage, str] = field(default_factory=dict)


def measured(spent: Spent | None, spells: Iterable[Spell]) -> Measured:
    """From what was recorded of one stage of one GPU. spells: of its servers in this stage."""
    took_s = sorted(spell.wake_s for spell in spells if spell.wake_s is not None)
    wake_s = rank(took_s, 0.5) if took_s else None
    if spent is None or spent.compared_s < MEASURED_S:
        return Measured(None, None, wake_s)
    spared_w = (spent.saved_j + spent.switch_j) / spent.compared_s
    return Measured(spared_w, spent.switch_j / max(1.0, spent.entries), wake_s)


def stage_what_if(gaps: Gaps, recorded_s: float, known: Mapping[Stage, Measured]) -> StageWhatIf:
    """gaps: (start, length) in seconds, of one GPU."""
    rows, days = [], recorded_s / DAY_S
    for stage, each in known.items():
        spared_w, switch_j, wake_s = each.spared_w, each.switch_j, each.wake_s
        if spared_w is None or switch_j is None or wake_s is None:
            continue
        for after_s in AFTERS_S:
            deep_s = [length_s - after_s for _, length_s in gaps if length_s > after_s]
            saved_j = spared_w * sum(deep_s) - switch_j * len(deep_s)
            waited_s = wake_s * len(deep_s)
            rows.append(StageRow(stage, after_s, len(deep_s), sum(deep_s), saved_j, waited_s, days))
    return StageWhatIf(tuple(rows), {stage: each.lacks for stage, each in known.items() if each.lacks})


def together(every: Sequence[Gaps]) -> list[tuple[float, float]]:
    """The times in which all of them were quiet: what a machine could sleep in. (start, length), oldest first."""
    if not every:
        return []
    common = sorted((start_s, start_s + length_s) for start_s, length_s in every[0])
    for gaps in every[1:]:
        common = _both(common, sorted((start_s, start_s + length_s) for start_s, length_s in gaps))
    return [(start_s, end_s - start_s) for start_s, end_s in common]


def _both(one: Sequence[tuple[float, float]], other: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Spans without overlaps of their own, sorted: what is in both."""
    found, mine = [], iter(one)
    theirs = iter(other)
    first, second = next(mine, None), next(theirs, None)
    while first is not None and second is not None:
        start_s, end_s = max(first[0], second[0]), min(first[1], second[1])
        if end_s > start_s:
            found.append((start_s, end_s))
        if first[1] < second[1]:
            first = next(mine, None)
        else:
            second = next(theirs, None)
    return found
