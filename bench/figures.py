"""What a bench answers: figures, each with its promise and what it is compared with, and how they are printed."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CLEARLY = 1.5  # these machines are shared: only beyond this many times the promise is it called broken


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value.

    limit: it is promised to be no larger. baseline: the same without memscaler, or the floor. machine: what this
    machine takes without us, if that is another measure than the baseline: a miss within it is not called broken.
    at_least: its ratio to the baseline is promised to be no smaller. noise: of that ratio.
    """

    name: str
    value: float
    unit: str = ""
    limit: float | None = None
    baseline: float | None = None
    machine: float | None = None
    at_least: float | None = None
    noise: float = 0.0

    @property
    def ratio(self) -> float | None:
        """To the baseline; None where there is none, or none that a ratio can be made to."""
        return self.value / self.baseline if self.baseline and self.baseline > 0 else None

    @property
    def verdict(self) -> str:
        """`kept`, `missed` (perhaps the machine's fault) or `BROKEN`; empty where nothing is promised."""
        if self.at_least is not None and self.ratio is not None:
            lost, may_lose = 1 - self.ratio, 1 - self.at_least
            if lost <= may_lose:
                return "kept"
            return "BROKEN" if lost > max(CLEARLY * may_lose, may_lose + self.noise) else "missed"
        if self.limit is None:
            return ""
        if self.value <= self.limit:
            return "kept"
        machine = self.baseline if self.machine is None else self.machine
        by_us = machine is None or self.value > CLEARLY * machine
        return "BROKEN" if by_us and self.value > CLEARLY * self.limit else "missed"

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {**dataclasses.asdict(self), "ratio": self.ratio, "verdict": self.verdict}


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` of them do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def spread(name: str, values: Sequence[float], unit: str, limits: tuple[float | None, float | None]) -> list[Figure]:
    """Median and maximum, with their limits."""
    return [
        Figure(f"{name}: median of {len(values)}", statistics.median(values), unit, limits[0]),
        Figure(f"{name}: maximum", max(values), unit, limits[1]),
    ]


def table(figures: Sequence[Figure]) -> str:
    """Plain text, one line each."""
    width = max(len(figure.name) for figure in figures) + 1
    head = f"{'':{width}}{'measured':>14} {'promise':>11}{'baseline':>11}{'ratio':>9}"
    return "\n".join([head, *(_line(figure, width) for figure in figures)])


def _line(figure: Figure, width: int) -> str:
    ratio = figure.ratio
    limit = "" if figure.limit is None else f"<= {_short(figure.limit)}"
    if figure.at_least is not None:
        limit = f">= {figure.at_least} x"
    baseline = "" if figure.baseline is None else _short(figure.baseline)
    measured = f"{_short(figure.value)} {figure.unit:3}"
    tail = f"{limit:>11}{baseline:>11}{'' if ratio is None else f'{ratio:.3f}':>9}  {figure.verdict}"
    return f"{figure.name:{width}}{measured:>14} {tail}".rstrip()


def _short(value: float) -> str:
    if value == round(value):
        return str(round(value))
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.4f}" if abs(value) < 0.1 else f"{value:.2f}"
