"""From the history to a report: what was recorded in the period, summed up, with the what-if of each GPU."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from memscaler.cli.chosen import chosen
from memscaler.cli.output import plain
from memscaler.cli.report.period import Period
from memscaler.cli.report.price import Price
from memscaler.core import adaptive, summary
from memscaler.core.adaptive import Limits
from memscaler.core.costs import Costs, Outcome
from memscaler.core.stage_summary import OF_GPUS, StageSum, StageWhatIf, measured, stage_sums, stage_what_if, together
from memscaler.core.stage_times import Spell
from memscaler.core.stages import Spent, Stage
from memscaler.core.summary import HOUR_S, Ground, Latency, Sums
from memscaler.core.what_if import IDLE_TIMES_S, WhatIf, what_if, within

if TYPE_CHECKING:
    from memscaler.config.schema import Settings
    from memscaler.history.reader import History
    from memscaler.history.tables import KnownGpu, Park

UNWRITTEN_S = 900.0  # what is not older may still be in the daemon's memory
GONE_S = 3600.0  # a GPU about which nothing was written for so much longer than about another one
LONGEST_GAP_S = 31 * 86400.0  # how far back a gap may have begun that reaches into the period
NEAR_RATIO = 0.05  # an idle time so near to one of the table is that one: timers are late by a little

MOST_GAPS = 10_000  # the newest; what the adaptive idle time would have made of more takes many seconds

Gaps = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class GpuReport:
    """One GPU. days: as those of the period. gone: others were seen later. latencies_s: of its wakes.

    other_ends: reason -> parks that ended, but for no client.
    """

    gpu: str
    uuid: str
    name: str
    first_unix_s: float
    last_unix_s: float
    gone: bool
    days: tuple[Sums, ...]
    total: Sums
    latency: Latency | None
    latencies_s: tuple[float, ...]
    ground: Ground
    sources: tuple[str, ...]
    other_ends: Mapping[str, int]
    gaps: Gaps
    what_if: WhatIf
    deep: Mapping[Stage, Spent] = field(default_factory=dict)
    deeper: StageWhatIf = field(default_factory=StageWhatIf)


@dataclass(frozen=True, slots=True)
class Report:
    """All of it. days, total, latency: of all GPUs together.

    stages: those below a park that there were, of all servers; quiet_together: the gaps that all GPUs had in common,
    which a machine could have slept in.
    """

    period: Period
    price: Price | None
    gpus: tuple[GpuReport, ...]
    days: tuple[Sums, ...]
    total: Sums
    latency: Latency | None
    stages: tuple[StageSum, ...] = ()
    quiet_together: Gaps = ()

    @property
    def margin_j(self) -> float:
        """So much may be wrong with the saving, up or down."""
        return sum(gpu.ground.margin_j for gpu in self.gpus)

    @property
    def recorded_until_unix_s(self) -> float | None:
        """When something was last written; None: nothing ever was."""
        return max((gpu.last_unix_s for gpu in self.gpus), default=None)


def gather(
    state_dir: Path, names: Sequence[str], period: Period, price: Price | None, settings: Settings | None = None
) -> Report:
    """settings: bind the adaptive idle time. Raise UsageError for a GPU that is not there, and as the reader does."""
    from memscaler.history.reader import open_history

    with open_history(state_dir) as history:
        calibrated = _calibrated(state_dir)
        known = sorted(history.gpus(), key=lambda gpu: (gpu.index, -gpu.last_unix_s))
        labels = [{"gpu": f"gpu{gpu.index}", "uuid": gpu.uuid, "known": gpu} for gpu in known]
        latest_s = max((gpu.last_unix_s for gpu in known), default=0.0)
        gpus, parks = [], []
        for each in chosen(names, labels):
            recorded = _Recorded(history, each["known"], period)
            gpus.append(recorded.report(calibrated.get(each["uuid"]), _limits(settings, each["known"]), latest_s))
            parks += recorded.parks
        spells = history.spells(period.start_unix_s - LONGEST_GAP_S)
        stages = _stages(spells, period, gpus, latest_s)
    days = tuple(summary.add(of_day) for of_day in zip(*(gpu.days for gpu in gpus), strict=True))
    days = days or tuple(Sums() for _ in period.days)
    deeper = tuple(replace(gpu, deeper=_deeper(gpu, spells)) for gpu in gpus) if stages else tuple(gpus)
    quiet = together([gpu.gaps for gpu in gpus if not gpu.gone]) if stages else []
    return Report(period, price, deeper, days, summary.add(days), summary.latency(parks), stages, quiet)


def _stages(
    spells: Sequence[Spell], period: Period, gpus: Sequence[GpuReport], latest_s: float
) -> tuple[StageSum, ...]:
    """Of all servers: a stage is of a server, which may have several GPUs."""
    spent: dict[Stage, Spent] = {}
    for gpu in gpus:
        for stage, mine in gpu.deep.items():
            spent[stage] = spent.get(stage, Spent()).plus(mine)
    return stage_sums(spells, spent, period.start_unix_s, period.end_unix_s, latest_s)


def _deeper(gpu: GpuReport, spells: Sequence[Spell]) -> StageWhatIf:
    """What they would have made of the gaps of one GPU."""
    known = {
        stage: measured(gpu.deep.get(stage), (each for each in spells if each.stage is stage and gpu.uuid in each.gpus))
        for stage in OF_GPUS
    }
    return stage_what_if(gpu.gaps, gpu.what_if.recorded_s, known)


def _calibrated(state_dir: Path) -> Mapping[str, Costs]:
    from memscaler.history import calibration

    broken: set[str] = set()

    def complain(_event: str, **details: str) -> None:
        broken.add(details["file"])

    calibrated = {uuid: each.costs() for uuid, each in calibration.load(state_dir, complain).items()}
    for file in broken:
        told = f"{plain(file)} is not as `memscaler calibrate` writes it, and what is wrong in it is left out"
        print(f"memscaler: {told}\nhint: calibrate again", file=sys.stderr)
    return calibrated


class _Recorded:
    """What the history has of one GPU in the period."""

    def __init__(self, history: History, gpu: KnownGpu, period: Period) -> None:
        self.gpu, self.period = gpu, period
        self.hours = [each for each in history.hours(gpu.uuid, period.start_unix_s) if self._holds(each.start_unix_s)]
        self.parks = [each for each in history.parks(gpu.uuid, period.start_unix_s) if self._holds(each.at_unix_s)]
        self.deep: dict[Stage, Spent] = {}
        for hour_s, stage, spent in history.deep(gpu.uuid, period.start_unix_s):
            if self._holds(hour_s):
                self.deep[stage] = self.deep.get(stage, Spent()).plus(spent)
        gaps = history.gaps(gpu.uuid, period.start_unix_s - LONGEST_GAP_S, MOST_GAPS)
        gaps += _lasting(self.parks, gaps, gpu.last_unix_s)
        self.gaps = within(gaps, period.start_unix_s, period.end_unix_s)

    def _holds(self, unix_s: float) -> bool:
        return self.period.start_unix_s <= unix_s < self.period.end_unix_s

    def report(self, measured: Costs | None, limits: Limits, latest_s: float) -> GpuReport:
        """limits: see gather. latest_s: when something was written about any GPU."""
        gpu, end_s = self.gpu, self.period.end_unix_s
        gone = latest_s - gpu.last_unix_s > GONE_S
        known_to_s = gpu.last_unix_s if gone or end_s - gpu.last_unix_s < UNWRITTEN_S else end_s
        days = summary.per_day(self.hours, self.period.days, self._known_from_s(), known_to_s)
        total = summary.add(days)
        ground = summary.ground(self.parks, total.saved_j, gpu.last_unix_s)
        costs = measured or summary.observed_costs(self.hours, ground.baseline_w)
        return GpuReport(
            gpu=f"gpu{gpu.index}",
            uuid=gpu.uuid,
            name=gpu.name,
            first_unix_s=gpu.first_unix_s,
            last_unix_s=gpu.last_unix_s,
            gone=gone,
            days=tuple(days),
            total=total,
            latency=summary.latency(self.parks),
            latencies_s=tuple(park.latency_s for park in self.parks if park.latency_s is not None),
            ground=ground,
            sources=tuple(sorted({park.source for park in self.parks if park.source})),
            other_ends=summary.other_ends(self.parks),
            gaps=self.gaps,
            what_if=self._what_if(costs, limits),
            deep=self.deep,
        )

    def _known_from_s(self) -> float:
        """When it was first governed: some minutes before something was first written of it."""
        first_s = self.gpu.first_unix_s
        for hour in self.hours[:1]:
            return min(first_s, hour.start_unix_s + HOUR_S - summary.add([hour]).recorded_s)
        return first_s

    def _what_if(self, costs: Costs, limits: Limits) -> WhatIf:
        """Over the hours from the first gap on: those before are busy, or their gaps were given up for newer ones."""
        from_s = self.gaps[0][0] // HOUR_S * HOUR_S if self.gaps else self.period.start_unix_s
        sums = summary.add(hour for hour in self.hours if hour.start_unix_s >= from_s)
        was = Outcome(
            gaps=len(self.gaps),
            quiet_s=sums.quiet_s,
            wakes=sums.wakes,
            parked_s=sums.state_s["parked"],
            slowed_s=sums.wakes * costs.slow_s,
            saved_j=sums.saved_j,
        )
        auto = _auto(self.gaps, costs, limits)
        return what_if(self.gaps, costs, sums.recorded_s, was, _used_s(self.parks), auto)


def _lasting(parks: Sequence[Park], gaps: Gaps, last_unix_s: float) -> Iterable[tuple[float, float]]:
    """The gap of a park that lasts: it is recorded when it ends, and may be the longest of all."""
    if not parks or parks[-1].until_unix_s is not None:
        return []
    start_s = parks[-1].at_unix_s - parks[-1].idle_s
    ended_s = max((at_s + length_s for at_s, length_s in gaps), default=0.0)
    return [(start_s, last_unix_s - start_s)] if start_s >= ended_s - 1 and last_unix_s > start_s else []


def _used_s(parks: Sequence[Park]) -> float | None:
    """The idle time that was used: the median of the parks, as it was probably written down."""
    waited = sorted(park.idle_s for park in parks)
    if not waited:
        return None
    median_s = summary.rank(waited, 0.5)
    near_s = min(IDLE_TIMES_S, key=lambda idle_s: abs(idle_s - median_s))
    if abs(near_s - median_s) <= NEAR_RATIO * near_s:
        return near_s
    digit = 10 ** (math.floor(math.log10(median_s)) - 1) if median_s > 0 else 1.0
    return float(f"{median_s // digit * digit:.2g}")  # two digits, rounded down: no timer is early


def _auto(gaps: Gaps, costs: Costs, limits: Limits) -> Outcome | None:
    return adaptive.replay(gaps, costs, limits, time.localtime().tm_gmtoff) if gaps else None


def _limits(settings: Settings | None, gpu: KnownGpu) -> Limits:
    """Of this GPU. One that is named by its PCI address has no name here, and goes by the general settings."""
    if settings is None:
        return Limits()
    from memscaler.config.load import for_gpu
    from memscaler.daemon.adaptive import limits

    return limits(for_gpu(settings, [gpu.uuid, f"gpu{gpu.index}", str(gpu.index)]))
