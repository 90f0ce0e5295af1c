"""Sums over what was recorded of a GPU: by day and in all, how fast its wakes were, how sure the saving is. Pure.

The records come hour by hour and park by park. An hour belongs to the day in which it begins. Time of a day of which
there is no record (no daemon ran) is unknown, not zero: `unrecorded_s` between the first and the last record of a GPU,
`outside_s` before and after them.

How sure the saving is: it is `baseline_w * parked seconds - energy while parked`, so it is as wrong as the
baseline and the card's power sensor are.

    margin_j    half the distance between the quartiles of the baselines * the seconds of the parks that have one
                + SENSOR_RATIO * what was saved

Nothing is taken off for errors that cancel out each other from park to park: a sensor errs in one direction.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from memscaler.core.costs import ASSUMED, Costs
from memscaler.core.governor import CONNECTION, LEDGER
from memscaler.core.model import Public

CLIENTS = frozenset({CONNECTION, LEDGER})
"""Reasons of the ends of parks that are wakes for a client. The others: holds, a daemon that ends, and the like."""
SENSOR_RATIO = 0.05
"""What NVIDIA documents for Fermi and Kepler (nvmlDeviceGetPowerUsage); it documents nothing for newer cards."""
OBSERVED_S = 60.0  # less time in a state says little about its watts
KNOWN_RATIO = 0.99  # of an hour's time, whose energy must be known for that
HOUR_S = 3600.0
DAY_S = 86400.0


class HourRecord(Protocol):
    """What was recorded of one hour; the reader of the history has more of it."""

    @property
    def start_unix_s(self) -> float: ...
    @property
    def state_s(self) -> Mapping[str, float]: ...
    @property
    def state_energy_j(self) -> Mapping[str, float]: ...
    @property
    def energy_j(self) -> float | None: ...
    @property
    def saved_j(self) -> float: ...
    @property
    def unknown_s(self) -> float: ...
    @property
    def parks(self) -> int: ...
    @property
    def wakes(self) -> int: ...


class ParkRecord(Protocol):
    """What was recorded of one park; until_unix_s None: it lasts."""

    @property
    def at_unix_s(self) -> float: ...
    @property
    def until_unix_s(self) -> float | None: ...
    @property
    def idle_s(self) -> float | None: ...
    @property
    def reason(self) -> str: ...
    @property
    def latency_s(self) -> float | None: ...
    @property
    def baseline_w(self) -> float | None: ...


@dataclass(frozen=True, slots=True)
class Day:
    """A local day, or what of it lies in the period. A day has 23 or 25 hours when the clocks change."""

    name: str
    start_unix_s: float
    end_unix_s: float

    @property
    def length_s(self) -> float:
        """In seconds."""
        return self.end_unix_s - self.start_unix_s


def _zeros() -> Mapping[str, float]:
    return {str(state): 0.0 for state in Public}


@dataclass(frozen=True, slots=True)
class Sums:
    """Of some time. energy_j None: nothing is known. unknown_s: recorded time of which the energy is not known.

    wakes: for clients. outside_s: before the first and after the last record.
    """

    energy_j: float | None = None
    saved_j: float = 0.0
    state_s: Mapping[str, float] = field(default_factory=_zeros)
    state_energy_j: Mapping[str, float] = field(default_factory=_zeros)
    unknown_s: float = 0.0
    unrecorded_s: float = 0.0
    parks: int = 0
    wakes: int = 0
    outside_s: float = 0.0

    @property
    def recorded_s(self) -> float:
        """Seconds in any state."""
        return sum(self.state_s.values())

    @property
    def quiet_s(self) -> float:
        """Seconds in which it could be parked: cooling and parked."""
        return self.state_s[Public.COOLING] + self.state_s[Public.PARKED]

    @property
    def parked_ratio(self) -> float | None:
        """The share of the quiet time that was parked."""
        return self.state_s[Public.PARKED] / self.quiet_s if self.quiet_s else None


def add(parts: Iterable[Sums | HourRecord]) -> Sums:
    """All of them together."""
    energy_j, saved_j, unknown_s, unrecorded_s, outside_s, parks, wakes = None, 0.0, 0.0, 0.0, 0.0, 0, 0
    state_s, state_energy_j = dict(_zeros()), dict(_zeros())
    for part in parts:
        if part.energy_j is not None:
            energy_j = (energy_j or 0.0) + part.energy_j
        saved_j, unknown_s = saved_j + part.saved_j, unknown_s + part.unknown_s
        unrecorded_s += getattr(part, "unrecorded_s", 0.0)
        outside_s += getattr(part, "outside_s", 0.0)
        parks, wakes = parks + part.parks, wakes + part.wakes
        for state in state_s:
            state_s[state] += part.state_s.get(state, 0.0)
            state_energy_j[state] += part.state_energy_j.get(state, 0.0)
    return Sums(energy_j, saved_j, state_s, state_energy_j, unknown_s, unrecorded_s, parks, wakes, outside_s)


def per_day(hours: Iterable[HourRecord], days: Sequence[Day], known_from_s: float, known_to_s: float) -> list[Sums]:
    """The sums of each day; hours of no day are left out. Nothing can be missing outside of the known time."""
    starts = [day.start_unix_s for day in days]
    within: list[list[HourRecord]] = [[] for _ in days]
    for hour in hours:
        at = bisect_right(starts, hour.start_unix_s) - 1
        if at >= 0 and hour.start_unix_s < days[at].end_unix_s:
            within[at].append(hour)
    found = []
    for day, theirs in zip(days, within, strict=True):
        sums = add(theirs)
        start_s, end_s = _next_hour(day.start_unix_s), min(_next_hour(day.end_unix_s), days[-1].end_unix_s)
        expected_s = min(end_s, known_to_s) - max(start_s, known_from_s)
        missing_s = max(0.0, expected_s - sums.recorded_s)
        outside_s = max(0.0, end_s - start_s - sums.recorded_s - missing_s)
        found.append(add([sums, Sums(unrecorded_s=missing_s, outside_s=outside_s)]))
    return found


def _next_hour(unix_s: float) -> float:
    """The first hour that begins then or later: some zones have days that begin at half past."""
    return -(-unix_s // HOUR_S) * HOUR_S


# ---- wakes --------------------------------------------------------------------------------------------------------


def other_ends(parks: Iterable[ParkRecord]) -> Mapping[str, int]:
    """Reason -> how many parks it ended, for what was no wake for a client; the most frequent first."""
    reasons = Counter(park.reason for park in parks if park.until_unix_s is not None and park.reason not in CLIENTS)
    return dict(reasons.most_common())


@dataclass(frozen=True, slots=True)
class Latency:
    """From the client's connection to the driver call that wakes, in seconds, of `count` wakes."""

    count: int
    median_s: float
    p99_s: float
    worst_s: float


def latency(parks: Iterable[ParkRecord]) -> Latency | None:
    """None where no wake has a latency."""
    known = sorted(park.latency_s for park in parks if park.latency_s is not None)
    if not known:
        return None
    return Latency(len(known), rank(known, 0.5), rank(known, 0.99), known[-1])


def rank(ascending: Sequence[float], ratio: float) -> float:
    """The least value that so many of the values do not exceed."""
    return ascending[max(0, -int(-ratio * len(ascending) // 1) - 1)]


# ---- what the saving rests on -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ground:
    """What the saving rests on. parks: that ended or last; based: those with a baseline, the others claim nothing.

    baseline_w: the median, low_w and high_w: the quartiles. margin_j: so much may be wrong, up or down.
    """

    parks: int
    based: int
    baseline_w: float | None
    low_w: float | None
    high_w: float | None
    margin_j: float


def ground(parks: Sequence[ParkRecord], saved_j: float, until_unix_s: float) -> Ground:
    """Of parks that saved so much together. The last one may last until then; of others without end nobody saw it."""
    known = sorted(park.baseline_w for park in parks if park.baseline_w is not None)
    sensor_j = SENSOR_RATIO * abs(saved_j)
    if not known:
        return Ground(len(parks), 0, None, None, None, sensor_j)
    low_w, high_w = rank(known, 0.25), rank(known, 0.75)
    parked_s = sum(_length_s(park, until_unix_s if park is parks[-1] else park.at_unix_s) for park in parks)
    margin_j = (high_w - low_w) / 2 * parked_s + sensor_j
    return Ground(len(parks), len(known), rank(known, 0.5), low_w, high_w, margin_j)


def _length_s(park: ParkRecord, if_it_lasts_unix_s: float) -> float:
    """How long it counts for the saving."""
    until_unix_s = if_it_lasts_unix_s if park.until_unix_s is None else park.until_unix_s
    return max(0.0, until_unix_s - park.at_unix_s) if park.baseline_w is not None else 0.0


def observed_costs(hours: Iterable[HourRecord], baseline_w: float | None) -> Costs:
    """What parking costs, from the watts of the hours whose energy is known; ASSUMED if they say too little.

    How long the clocks take and what a switch costs is not in the hours: it stays assumed.
    """
    known = add(hour for hour in hours if _is_known(hour))
    awake_w = baseline_w if baseline_w is not None else _watts(known, Public.COOLING)
    parked_w = _watts(known, Public.PARKED)
    if awake_w is None or parked_w is None:
        return ASSUMED
    return Costs(awake_w, parked_w, ASSUMED.settle_s, ASSUMED.slow_s, ASSUMED.switch_j, "observed")


def _is_known(hour: HourRecord) -> bool:
    return hour.energy_j is not None and hour.unknown_s <= (1 - KNOWN_RATIO) * sum(hour.state_s.values())


def _watts(sums: Sums, state: Public) -> float | None:
    spent_s = sums.state_s[state]
    return sums.state_energy_j[state] / spent_s if spent_s >= OBSERVED_S else None
