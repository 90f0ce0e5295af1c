"""What is to be written next, in memory: bounded, and to be joined with what could not be written before."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from memscaler.core.stage_times import Spell
from memscaler.core.stages import Spent, Stage
from memscaler.history.stages import SpellKey, spell_key
from memscaler.history.tables import Hour, Park

MOST_GAPS = 20_000  # of all GPUs, two megabytes
MOST_PARKS = 5_000
MOST_HOURS = 5_000  # GPUs times hours
MOST_SPELLS = 5_000  # in deeper stages
MOST_GPUS = 1_024
MOST_J = 1e15  # a hundred kilowatts for 300 years: more is no figure of ours


@dataclass(frozen=True, slots=True)
class Saved:
    """Of one GPU, in joules. today_j: on the local day `day`, as in "2026-11-21"."""

    total_j: float = 0.0
    today_j: float = 0.0
    day: str = ""

    def plus(self, later: Saved) -> Saved:
        """What was saved in both. The day is that of the later one, even if the clock was set back."""
        if not later.day:
            return replace(self, total_j=min(self.total_j + later.total_j, MOST_J))
        today_j = later.today_j + (self.today_j if self.day == later.day else 0.0)
        return Saved(min(self.total_j + later.total_j, MOST_J), min(today_j, MOST_J), later.day)


@dataclass(slots=True)
class Batch:
    """Rows by UUID. gpus: index and name; since_ms: governed from then on; gaps: (UUID, start in ms, length in ms).

    parks by (UUID, begin in ms); hours by (UUID, hours since 1970), to be added to what is there; saved likewise.
    spells: in deeper stages; deep by (UUID, hours since 1970, stage), to be added to what is there.
    lost: rows there was no room for.
    """

    gpus: dict[str, tuple[int, str]] = field(default_factory=dict)
    since_ms: dict[str, int] = field(default_factory=dict)
    gaps: list[tuple[str, int, int]] = field(default_factory=list)
    parks: dict[tuple[str, int], Park] = field(default_factory=dict)
    hours: dict[tuple[str, int], Hour] = field(default_factory=dict)
    saved: dict[str, Saved] = field(default_factory=dict)
    spells: dict[SpellKey, Spell] = field(default_factory=dict)
    deep: dict[tuple[str, int, Stage], Spent] = field(default_factory=dict)
    lost: int = 0

    def __bool__(self) -> bool:
        return bool(self.gaps or self.parks or self.hours or self.saved or self.spells or self.deep)

    @property
    def most_bytes(self) -> int:
        """What it may add to the file."""
        few = 256 * len(self.spells) + 128 * len(self.deep)
        return 32 * len(self.gaps) + 256 * len(self.parks) + 192 * len(self.hours) + few

    @property
    def is_full(self) -> bool:
        """Half of what memory holds: time to write."""
        fullest = (len(self.gaps) / MOST_GAPS, len(self.parks) / MOST_PARKS, len(self.hours) / MOST_HOURS)
        return 2 * max(*fullest, len(self.spells) / MOST_SPELLS, len(self.deep) / MOST_HOURS) > 1

    def add_gap(self, uuid: str, start_ms: int, length_ms: int) -> None:
        """The newest are lost where there is no room: of the oldest more may depend on them."""
        if len(self.gaps) < MOST_GAPS:
            self.gaps.append((uuid, start_ms, length_ms))
        else:
            self.lost += 1

    def add_park(self, uuid: str, at_ms: int, park: Park) -> None:
        """A park that is told again takes the place of what was told of it."""
        if len(self.parks) < MOST_PARKS or (uuid, at_ms) in self.parks:
            self.parks[uuid, at_ms] = park
        else:
            self.lost += 1

    def add_hour(self, uuid: str, hour: int, more: Hour) -> None:
        """Added to what is told of that hour already."""
        known = self.hours.get((uuid, hour))
        if known is not None:
            self.hours[uuid, hour] = plus(known, more)
        elif len(self.hours) < MOST_HOURS:
            self.hours[uuid, hour] = more
        else:
            self.lost += 1

    def add_spell(self, spell: Spell) -> None:
        """One that is told again takes the place of what was told of it."""
        key = spell_key(spell)
        if len(self.spells) < MOST_SPELLS or key in self.spells:
            self.spells[key] = spell
        else:
            self.lost += 1

    def add_deep(self, uuid: str, hour: int, stage: Stage, more: Spent) -> None:
        """Added to what is told of that hour already."""
        known = self.deep.get((uuid, hour, stage))
        if known is not None:
            self.deep[uuid, hour, stage] = known.plus(more)
        elif len(self.deep) < MOST_HOURS:
            self.deep[uuid, hour, stage] = more
        else:
            self.lost += 1

    def add_saved(self, uuid: str, more: Saved) -> None:
        """Added to what was saved before."""
        self.saved[uuid] = self.saved.get(uuid, Saved()).plus(more)

    def add(self, later: Batch) -> None:
        """Put what came later behind this, which could not be written."""
        self.gpus |= later.gpus
        self.since_ms = later.since_ms | self.since_ms
        for gap in later.gaps:
            self.add_gap(*gap)
        for (uuid, at_ms), park in later.parks.items():
            self.add_park(uuid, at_ms, park)
        for (uuid, hour), more in later.hours.items():
            self.add_hour(uuid, hour, more)
        for uuid, saved in later.saved.items():
            self.add_saved(uuid, saved)
        for spell in later.spells.values():
            self.add_spell(spell)
        for (uuid, hour, stage), spent in later.deep.items():
            self.add_deep(uuid, hour, stage, spent)
        self.lost += later.lost


def plus(one: Hour, other: Hour) -> Hour:
    """The sum of what is known of the same hour."""
    known = [joules for joules in (one.energy_j, other.energy_j) if joules is not None]
    return Hour(
        start_unix_s=one.start_unix_s,
        state_s={state: one.state_s.get(state, 0.0) + other.state_s.get(state, 0.0) for state in _states(one, other)},
        state_energy_j={
            state: one.state_energy_j.get(state, 0.0) + other.state_energy_j.get(state, 0.0)
            for state in _states(one, other)
        },
        energy_j=sum(known) if known else None,
        saved_j=one.saved_j + other.saved_j,
        unknown_s=one.unknown_s + other.unknown_s,
        parks=one.parks + other.parks,
        wakes=one.wakes + other.wakes,
    )


def _states(one: Hour, other: Hour) -> set[str]:
    return {*one.state_s, *one.state_energy_j, *other.state_s, *other.state_energy_j}
