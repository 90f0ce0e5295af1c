"""The tables of the history, and the rows as others see them. Times in the file: milliseconds since 1970, in UTC.

    gpu     one row for each GPU that was ever governed, with what parking it has saved in total: kept for ever
    hour    seconds and joules per public state, of one GPU and one hour: kept longest
    park    one row for each park; `until_ms` is NULL while it lasts, and for ever if the daemon was killed in it
    gap     from the end of the last work of a GPU to the begin of the next: most of the file
    about   since when the totals are counted

Gaps and parks are numbered as they are written. The oldest are those with the lowest numbers, whatever the clock said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from memscaler.core.model import Public

FILE = "history.sqlite"
APPLICATION = 0x6D736C72  # "mslr", in the file's header
VERSION = 1  # of these tables
STATES = tuple(str(state) for state in Public)

_HOUR_COLUMNS = tuple(f"{state}_{unit}" for unit in ("s", "j") for state in STATES)

SCHEMA = f"""
CREATE TABLE about (since_unix_s REAL NOT NULL);
CREATE TABLE gpu (
    id INTEGER PRIMARY KEY, uuid TEXT NOT NULL UNIQUE, nvml_index INTEGER NOT NULL, name TEXT NOT NULL,
    first_ms INTEGER NOT NULL, last_ms INTEGER NOT NULL,
    total_j REAL NOT NULL DEFAULT 0, today_j REAL NOT NULL DEFAULT 0, day TEXT NOT NULL DEFAULT ''
);
CREATE TABLE hour (
    gpu INTEGER NOT NULL, hour INTEGER NOT NULL, {", ".join(f"{name} REAL NOT NULL" for name in _HOUR_COLUMNS)},
    energy_j REAL, saved_j REAL NOT NULL, unknown_s REAL NOT NULL, parks INTEGER NOT NULL, wakes INTEGER NOT NULL,
    PRIMARY KEY (gpu, hour)
) WITHOUT ROWID;
CREATE TABLE park (
    id INTEGER PRIMARY KEY, gpu INTEGER NOT NULL, at_ms INTEGER NOT NULL, until_ms INTEGER, idle_s REAL NOT NULL,
    reason TEXT NOT NULL, latency_s REAL, baseline_w REAL, energy_j REAL, saved_j REAL, source TEXT NOT NULL
);
CREATE INDEX park_without_end ON park (gpu) WHERE until_ms IS NULL;
CREATE TABLE gap (id INTEGER PRIMARY KEY, gpu INTEGER NOT NULL, start_ms INTEGER NOT NULL, length_ms INTEGER NOT NULL);
"""

_SUMS = (*_HOUR_COLUMNS, "saved_j", "unknown_s", "parks", "wakes")
_ENERGY = "CASE WHEN excluded.energy_j IS NULL THEN energy_j ELSE coalesce(energy_j, 0) + excluded.energy_j END"
ADD_HOUR = f"""
INSERT INTO hour (gpu, hour, energy_j, {", ".join(_SUMS)}) VALUES (?, ?, ?{", ?" * len(_SUMS)})
ON CONFLICT (gpu, hour) DO UPDATE SET energy_j = {_ENERGY}, {", ".join(f"{c} = {c} + excluded.{c}" for c in _SUMS)}
"""  # noqa: S608  # only names from above
READ_HOURS = f"SELECT hour, energy_j, {', '.join(_SUMS)} FROM hour WHERE gpu = ? AND hour >= ? ORDER BY hour"  # noqa: S608
HOUR_S = 3600


@dataclass(frozen=True, slots=True)
class KnownGpu:
    """A GPU that was governed. index: as NVML counted it last; first and last: when something was written about it."""

    uuid: str
    index: int
    name: str
    first_unix_s: float
    last_unix_s: float


@dataclass(frozen=True, slots=True)
class Park:
    """One park. until_unix_s: None while it lasts, or if nobody saw its end, because the daemon was killed.

    idle_s: how long it was quiet before. reason: why it was woken, "" if it was not. latency_s: from the connection to
    the return of the driver call, None if no connection woke it. Energy and saving are None where nobody knows them;
    source: of the energy, "counter" or "integrated" as in core/energy.py, "" if nobody knows.
    """

    at_unix_s: float
    until_unix_s: float | None
    idle_s: float
    reason: str
    latency_s: float | None
    baseline_w: float | None
    energy_j: float | None
    saved_j: float | None
    source: str


@dataclass(frozen=True, slots=True)
class Hour:
    """One hour of one GPU, from start_unix_s on: seconds and joules per public state.

    energy_j: None if nobody knows anything of it. unknown_s: of these seconds nobody knows the energy.
    """

    start_unix_s: float
    state_s: Mapping[str, float] = field(default_factory=dict)
    state_energy_j: Mapping[str, float] = field(default_factory=dict)
    energy_j: float | None = None
    saved_j: float = 0.0
    unknown_s: float = 0.0
    parks: int = 0
    wakes: int = 0


def readable(text: bytes) -> str:
    """The text of a cell, whatever somebody wrote there."""
    return text.decode("utf-8", "replace")


def hour_of_row(row: tuple[int | float | None, ...]) -> Hour:
    """A row of READ_HOURS."""
    hour, energy_j, *rest = row
    figures = [float(figure or 0) for figure in rest]
    states = len(STATES)
    seconds, joules = figures[:states], figures[states : 2 * states]
    saved_j, unknown_s, parks, wakes = figures[2 * states :]
    return Hour(
        start_unix_s=float(hour or 0) * HOUR_S,
        state_s=dict(zip(STATES, seconds, strict=True)),
        state_energy_j=dict(zip(STATES, joules, strict=True)),
        energy_j=None if energy_j is None else float(energy_j),
        saved_j=saved_j,
        unknown_s=unknown_s,
        parks=int(parks),
        wakes=int(wakes),
    )


def hour_to_row(hour: Hour) -> tuple[float | None, ...]:
    """The figures of ADD_HOUR after GPU and hour."""
    seconds = (hour.state_s.get(state, 0.0) for state in STATES)
    joules = (hour.state_energy_j.get(state, 0.0) for state in STATES)
    return (hour.energy_j, *seconds, *joules, hour.saved_j, hour.unknown_s, hour.parks, hour.wakes)
