"""Work to replay: public traces made as sparse as a home's or a team's server, a synthetic one, recorded ones."""

from __future__ import annotations

import csv
import gzip
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from memscaler.core.gaps import SHORTEST_NS
from memscaler.history.reader import open_history

TRACES = Path(__file__).resolve().parents[1] / "traces"
PREFILL_PER_S, DECODE_PER_S = 1000.0, 30.0  # tokens: an 8B model, 8 bits, on a card of the A40's class
SHORTEST_S = SHORTEST_NS / 1e9
HOUR_S, DAY_S = 3600.0, 86400.0
DAY_BEGINS_H, DAY_ENDS_H = 9, 18
SEED = 2026

Request = tuple[float, int, int]  # arrival in seconds, tokens of the prompt, of the answer
Work = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Trace:
    """Busy periods, sorted; the gaps between them are at least SHORTEST_S."""

    name: str
    requests_per_hour: float
    work: tuple[Work, ...]

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """(begin, length)."""
        return [(end_s, begin_s - end_s) for (_, end_s), (begin_s, _) in zip(self.work, self.work[1:], strict=False)]

    @property
    def days(self) -> float:
        """From the begin of the first work to that of the last."""
        return (self.work[-1][0] - self.work[0][0]) / DAY_S


def azure(name: str, keep: float, per_hour: float, most: int, *, seed: int = SEED, after: float = 0.0) -> Trace:
    """A public trace. keep: the share of its requests that are kept; then it is stretched to per_hour requests.

    after: the share of what is kept that is left out at the begin.
    """
    chosen = random.Random(f"{seed} {name} {keep}")
    kept = [request for request in _azure(name) if chosen.random() < keep]
    kept = kept[round(after * len(kept)) :][:most]
    span_s = kept[-1][0] - kept[0][0]
    factor = len(kept) / per_hour * HOUR_S / span_s
    how = "stretched" if keep == 1 else f"{keep:.0%} of it, stretched"
    how = f"{how}, from {after:.0%} on" if after else how
    return _trace(f"{name}, {how}", per_hour, ((at_s * factor, ask, say) for at_s, ask, say in kept))


def _azure(name: str) -> Iterator[Request]:
    with gzip.open(TRACES / f"azure-llm-2023-{name}.csv.gz", "rt", newline="") as file:
        for row in csv.reader(file):
            if row and row[0][0].isdigit():
                yield float(row[0]), int(row[1]), int(row[2])


def synthetic(
    name: str, sessions_a_day: float, begin_hour: int, end_hour: int, days: int, *, seed: int = SEED
) -> Trace:
    """Invented: conversations that begin at random between two hours of the day, six turns in the mean.

    A user reads and writes for 40 s in the median (log-normal) between two turns.
    """
    chance = random.Random(f"{seed} {name}")
    requests: list[Request] = []
    for day in range(days):
        at_s = day * DAY_S + begin_hour * HOUR_S
        while (at_s := at_s + chance.expovariate(sessions_a_day / ((end_hour - begin_hour) * HOUR_S))) < (
            day * DAY_S + end_hour * HOUR_S
        ):
            turn_s = at_s
            while True:
                requests.append((turn_s, chance.randint(100, 3000), chance.randint(20, 600)))
                if chance.random() < 1 / 6:
                    break
                turn_s += 15 + chance.lognormvariate(3.2, 0.9)
    requests.sort()
    return _trace(name, len(requests) / (days * 24), requests)


def daily(name: str, day_s: float, night_s: float, rare: float, most: int, *, seed: int = SEED) -> Trace:
    """Invented: gaps without memory, of day_s in the mean from 9 to 18 h, of night_s else; `rare` of those by day too.

    So the last gaps tell little about the next one, and the hour tells much.
    """
    chance, work = random.Random(f"{seed} {name}"), [(0.0, 8.0)]
    for _ in range(most):
        at_s = work[-1][1]
        by_day = DAY_BEGINS_H <= at_s % DAY_S / HOUR_S < DAY_ENDS_H and chance.random() >= rare
        begin_s = at_s + max(SHORTEST_S, chance.expovariate(1 / (day_s if by_day else night_s)))
        work.append((begin_s, begin_s + 8.0))
    return Trace(name, most / (work[-1][0] / HOUR_S), tuple(work))


def recorded(most: int) -> Iterator[Trace]:
    """Those that are kept beside the public ones."""
    for path in sorted(TRACES.glob("recorded-*.csv")):
        with path.open(newline="") as file:
            rows = [(float(row[0]), float(row[1])) for row in csv.reader(file) if row and row[0][0].isdigit()]
        yield of_gaps(path.stem, rows[:most])


def from_history(state_dir: Path, most: int) -> Iterator[Trace]:
    """Every GPU of a history. Raise MemscalerError."""
    with open_history(state_dir) as history:
        for gpu in history.gpus():
            gaps = history.gaps(gpu.uuid, most=most)
            if len(gaps) > 1:
                yield of_gaps(f"gpu{gpu.index} of {state_dir}", gaps)


def of_gaps(name: str, gaps: Iterable[tuple[float, float]]) -> Trace:
    """(start, length) of gaps, the oldest first; between them there was work."""
    rows = sorted(gaps)
    work: list[Work] = [(rows[0][0] - 1.0, rows[0][0])]
    work += [
        (max(start_s + gap_s, work[-1][1]), max(after_s, start_s + gap_s))
        for (start_s, gap_s), (after_s, _) in zip(rows, [*rows[1:], (sum(rows[-1]) + 1.0, 0.0)], strict=True)
    ]
    hours = (work[-1][0] - work[0][0]) / HOUR_S
    return Trace(name, len(rows) / hours, tuple(work))


def _trace(name: str, per_hour: float, requests: Iterable[Request]) -> Trace:
    """The busy periods of a server that answers at once, however many ask."""
    work: list[Work] = []
    for at_s, ask, say in requests:
        end_s = at_s + ask / PREFILL_PER_S + say / DECODE_PER_S
        if work and at_s < work[-1][1] + SHORTEST_S:
            work[-1] = work[-1][0], max(work[-1][1], end_s)
        else:
            work.append((at_s, end_s))
    return Trace(name, per_hour, tuple(work))
