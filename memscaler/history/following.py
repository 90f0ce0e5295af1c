"""From the account of one GPU to rows: what changed between two states of the account, by hours and by parks. Pure.

Seconds belong to the hour in which they passed. Joules are known with the next reading only; they are shared among the
hours since the last one by the seconds in each, as the account itself shares them among the states. So the sums of the
hours are those of the account.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from memscaler.core.energy import Account
from memscaler.core.model import SECOND_NS, Public
from memscaler.core.summary import CLIENTS
from memscaler.history.tables import HOUR_S, Hour, Park

HOUR_NS = HOUR_S * SECOND_NS
MOST_REASON = 120


@dataclass(slots=True)
class Parking:
    """A park that lasts, or whose energy is not known yet. Times: nanoseconds since 1970."""

    at_ns: int
    idle_s: float
    baseline_w: float | None
    parked_j: float  # of the account, before this park
    until_ns: int | None = None
    reason: str = ""
    latency_s: float | None = None
    energy_j: float | None = None
    saved_j: float | None = None
    source: str = ""

    def row(self) -> Park:
        """As it is known now; without an end while it lasts."""
        return Park(
            at_unix_s=self.at_ns / SECOND_NS,
            until_unix_s=None if self.until_ns is None else self.until_ns / SECOND_NS,
            idle_s=self.idle_s,
            reason=self.reason[:MOST_REASON],
            latency_s=self.latency_s,
            baseline_w=self.baseline_w,
            energy_j=self.energy_j,
            saved_j=self.saved_j,
            source=self.source,
        )


@dataclass(slots=True)
class _Tally:
    """What one hour has more."""

    state_s: dict[str, float] = field(default_factory=dict)
    state_energy_j: dict[str, float] = field(default_factory=dict)
    energy_j: float | None = None
    saved_j: float = 0.0
    unknown_s: float = 0.0
    parks: int = 0
    wakes: int = 0

    def know(self, energy_j: float) -> None:
        self.energy_j = energy_j + (self.energy_j or 0.0)

    def row(self, hour: int) -> Hour:
        told = (self.state_s, self.state_energy_j, self.energy_j, self.saved_j, self.unknown_s, self.parks, self.wakes)
        return Hour(hour * HOUR_S, *told)


@dataclass(slots=True)
class Following:
    """One GPU. account: the last one that was seen; untold_ns: time by (hour, state) whose energy is not known yet.

    ended: the last park that was told with its end; its wake may still be on the way.
    """

    account: Account
    park: Parking | None = None
    untold_ns: dict[tuple[int, str], int] = field(default_factory=dict)
    ended: Parking | None = None

    def hours(self, now: Account, wall_ns: int, reason: str = "") -> Mapping[int, Hour]:
        """Hour since 1970 -> what `now` has more than the account before.

        wall_ns: what time `now.at_ns` was. reason: of the change, if a park ends: only a client's is a wake.
        """
        before, hour_now = self.account, wall_ns // HOUR_NS
        told: defaultdict[int, _Tally] = defaultdict(_Tally)
        for hour, share_of in _cut(wall_ns - (now.at_ns - before.at_ns), wall_ns):
            for state, spent_ns in now.state_ns.items():
                if more_ns := share_of(spent_ns - before.state_ns[state]):
                    at = (hour, str(state))
                    self.untold_ns[at] = self.untold_ns.get(at, 0) + more_ns
                    seconds = told[hour].state_s
                    seconds[at[1]] = seconds.get(at[1], 0.0) + more_ns / SECOND_NS
        if now.last is not before.last:
            self._settle(now, hour_now, told)
        if (now.state is Public.PARKED) is not (before.state is Public.PARKED):
            begins = now.state is Public.PARKED
            told[hour_now].parks += begins
            told[hour_now].wakes += not begins and reason in CLIENTS
        return {hour: tally.row(hour) for hour, tally in told.items()}

    def _settle(self, now: Account, hour_now: int, told: defaultdict[int, _Tally]) -> None:
        """A reading has come: the energy since the last one is known, or will never be."""
        before, untold_ns = self.account, self.untold_ns
        known = now.energy_j is not None and now.unknown_ns == before.unknown_ns
        for hour, share in _shares(untold_ns, None, hour_now):
            told[hour].unknown_s += (now.unknown_ns - before.unknown_ns) * share / SECOND_NS
            if known:
                told[hour].know(0.0)
        for state, joules in now.state_energy_j.items():
            if more_j := joules - before.state_energy_j[state]:
                for hour, share in _shares(untold_ns, str(state), hour_now):
                    shared_j = more_j * share
                    joules_of = told[hour].state_energy_j
                    joules_of[str(state)] = joules_of.get(str(state), 0.0) + shared_j
                    told[hour].know(shared_j)
        if saved_j := now.saved_j - before.saved_j:
            for hour, share in _shares(untold_ns, str(Public.PARKED), hour_now):
                told[hour].saved_j += saved_j * share
        if known and self.park is not None and any(state == Public.PARKED for _, state in untold_ns):
            self.park.energy_j = now.state_energy_j[Public.PARKED] - self.park.parked_j
            self.park.saved_j = None if now.baseline_w is None else now.park_saved_j
            self.park.source = now.source
        untold_ns.clear()

    def woke(self, latency_s: float) -> Parking | None:
        """The driver call of a wake returned. Answers with the park, if its end was told without this."""
        if self.park is not None:
            self.park.latency_s = latency_s
            return None
        park = self.ended if self.account.state is Public.AWAKE else None
        if park is None or park.reason not in CLIENTS:
            return None
        park.latency_s = latency_s
        return park

    def parks(self, now: Account, wall_ns: int, idle_s: float, reason: str) -> Iterator[Parking]:
        """The parks of which there is something to tell, after `hours`. reason: of the change, if it is a wake."""
        before, park = self.account, self.park
        since_ns = wall_ns - (now.at_ns - now.since_ns)
        if park is not None and park.until_ns is None and now.state is not Public.PARKED:
            park.until_ns, park.reason = since_ns, reason
        begins = now.state is Public.PARKED and before.state is not Public.PARKED
        if park is not None and park.until_ns is not None and (begins or not now.unsampled_ns[Public.PARKED]):
            self.park, self.ended = None, park
            yield park
        if begins:
            self.park = Parking(since_ns, idle_s, now.baseline_w, before.state_energy_j[Public.PARKED])
            yield self.park


def _cut(start_ns: int, end_ns: int) -> Iterator[tuple[int, _Share]]:
    """The hours that a time covers, and how to take the share of each; the shares of a number are that number."""
    passed_ns, given = end_ns - start_ns, 0
    for hour in range(start_ns // HOUR_NS, end_ns // HOUR_NS + 1):
        before, given = given, min(end_ns, (hour + 1) * HOUR_NS) - start_ns
        yield hour, _Share(before, given, passed_ns)


@dataclass(frozen=True, slots=True)
class _Share:
    before: int
    after: int
    whole: int

    def __call__(self, number: int) -> int:
        if not self.whole:
            return number
        return number * self.after // self.whole - number * self.before // self.whole


def _shares(untold_ns: Mapping[tuple[int, str], int], state: str | None, hour_now: int) -> list[tuple[int, float]]:
    """Hours and what each has of the time in a state (None: in all); the present hour, if there was none."""
    spent_ns: dict[int, int] = {}
    for (hour, each), passed_ns in untold_ns.items():
        if state is None or each == state:
            spent_ns[hour] = spent_ns.get(hour, 0) + passed_ns
    whole_ns = sum(spent_ns.values())
    if whole_ns <= 0:
        return [(hour_now, 1.0)]
    return [(hour, passed_ns / whole_ns) for hour, passed_ns in spent_ns.items()]
