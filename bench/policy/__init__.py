"""Replays of request traces through the governor's core: what each idle time saves, and how often it wakes.

`python -m bench.policy --write-docs` makes the table and the plot of docs/policy.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench.figures import Figure
from bench.policy.policies import AUTO, GOAL, Result, judge
from bench.policy.traces import Trace, azure, daily, from_history, recorded, synthetic

RATES = (4.0, 12.0, 30.0, 60.0, 300.0)
MOST, MOST_QUICK = 1000, 500  # requests of a trace that are replayed
OTHER_SEED = 7


def traces(most: int, histories: tuple[Path, ...] = ()) -> Iterator[Trace]:
    """All of them; seeds are fixed."""
    for name in ("conv", "code"):
        for keep in (1.0, 0.1):
            for per_hour in RATES:
                yield azure(name, keep, per_hour, most)
    days = max(4, most // 50)
    yield synthetic("home (synthetic), 8-23 h", 6, 8, 23, days)
    yield synthetic("team (synthetic), 8-18 h", 40, 8, 18, max(4, days // 5))
    yield from recorded(most)
    for state_dir in histories:
        yield from from_history(state_dir, most)


def held_out(most: int) -> Iterator[Trace]:
    """None of these was looked at while the parameters of core/adaptive.py were chosen."""
    for name in ("conv", "code"):
        for per_hour in (4.0, 30.0, 60.0):
            yield azure(name, 0.5, per_hour, most, seed=OTHER_SEED, after=0.6)
        yield azure(name, 0.1, 12.0, most, seed=OTHER_SEED)
    yield synthetic("home (synthetic), other seed", 6, 8, 23, max(4, most // 50), seed=OTHER_SEED)
    yield synthetic("home (synthetic), 17-23 h", 12, 17, 23, max(4, most // 100), seed=OTHER_SEED)


def diurnal(most: int) -> Iterator[Trace]:
    """Where the hour tells what the last gaps do not. They need some days."""
    yield daily("10 s by day, 15% of them and the nights 60 s", 10, 60, 0.15, 4 * most)
    yield daily("8 s by day, 60 s at night", 8, 60, 0.0, 4 * most)


def results(*, quick: bool = False, histories: tuple[Path, ...] = ()) -> list[Result]:
    """Every trace on an A40. quick: less of each, and fixed timers are computed."""
    return [judge(trace, timers=not quick) for trace in traces(MOST_QUICK if quick else MOST, histories)]


def bench(*, quick: bool) -> list[Figure]:
    """One figure for each trace: how much of the possible saving is missing."""
    found = results(quick=quick)
    figures = [
        Figure(
            f"{each.trace.name}, {each.trace.requests_per_hour:g}/h: saving not captured"
            f" (wakes {each.wakes_ratio(AUTO):.2f} of a 5 s timer's)",
            100 * (1 - each.share(AUTO)),
            "%",
            limit=100 * (1 - GOAL) if each.within_reach else None,
        )
        for each in found
    ]
    hours, cpu_s = sum(each.hours for each in found), sum(each.cpu_s for each in found)
    return [*figures, Figure("simulated hours per second of CPU time", hours / cpu_s, "h/s")]
