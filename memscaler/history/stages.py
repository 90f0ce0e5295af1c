"""The tables of the deeper stages, which are only made where there is something for them. Times: as in tables.py.

    spell   one time of a server in a stage, or of the machine (port 0); `until_ms` as that of a park
    deep    what a stage of one GPU took and spared in one hour: kept as long as the hours

A history without them is one of a machine that never went deeper; an older memscaler leaves them alone.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import astuple
from typing import Any

from memscaler.core.stage_times import Spell
from memscaler.core.stages import LADDER, Spent, Stage

MOST_SPELLS = 50_000  # in the file; two a minute for weeks
LONGEST_TEXT = 120
SpellKey = tuple[int, str, Stage, int]
"""Port, scope, stage, begin in milliseconds."""

# The fields of Spent.
_FIGURES = ("seconds", "known_s", "energy_j", "compared_s", "saved_j", "switch_s", "switch_j", "entries")
_MAKE_SPELL = (
    "CREATE TABLE IF NOT EXISTS spell (id INTEGER PRIMARY KEY, port INTEGER NOT NULL, scope TEXT NOT NULL, "
    "stage TEXT NOT NULL, at_ms INTEGER NOT NULL, until_ms INTEGER, server TEXT NOT NULL, wake_s REAL, "
    "failed INTEGER NOT NULL, by_whom TEXT NOT NULL, gpus TEXT NOT NULL, UNIQUE (port, scope, stage, at_ms))"
)
_MAKE_DEEP = (
    "CREATE TABLE IF NOT EXISTS deep (gpu INTEGER NOT NULL, hour INTEGER NOT NULL, stage TEXT NOT NULL, "
    f"{', '.join(f'{name} REAL NOT NULL' for name in _FIGURES)}, PRIMARY KEY (gpu, hour, stage)) WITHOUT ROWID"
)
_SPELL = """
INSERT INTO spell (port, scope, stage, at_ms, until_ms, server, wake_s, failed, by_whom, gpus)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (port, scope, stage, at_ms) DO UPDATE SET until_ms = excluded.until_ms, wake_s = excluded.wake_s
"""
_DEEP = (
    f"INSERT INTO deep (gpu, hour, stage, {', '.join(_FIGURES)}) VALUES (?, ?, ?{', ?' * len(_FIGURES)}) "  # noqa: S608
    f"ON CONFLICT (gpu, hour, stage) DO UPDATE SET {', '.join(f'{c} = {c} + excluded.{c}' for c in _FIGURES)}"
)
_READ_SPELLS = (
    "SELECT server, port, scope, stage, at_ms, until_ms, wake_s, failed, by_whom, gpus FROM spell "
    "WHERE at_ms >= ? ORDER BY at_ms, id"
)
_READ_DEEP = f"SELECT hour, stage, {', '.join(_FIGURES)} FROM deep WHERE gpu = ? AND hour >= ? ORDER BY hour"  # noqa: S608


def are_kept(connection: sqlite3.Connection) -> bool:
    """Whether the file has these tables."""
    (found,) = connection.execute("SELECT count(*) FROM sqlite_master WHERE name IN ('spell', 'deep')").fetchone()
    return bool(found == 2)  # noqa: PLR2004  # tables


def spell_key(spell: Spell) -> SpellKey:
    """What tells it apart from others."""
    return spell.port, spell.scope, spell.stage, round(spell.at_unix_s * 1e3)


def write(
    connection: sqlite3.Connection,
    spells: Mapping[SpellKey, Spell],
    deep: Mapping[tuple[str, int, Stage], Spent],
    ids: Mapping[str, int],
) -> None:
    """In a transaction. ids: of the GPUs, by UUID."""
    if not spells and not deep:
        return
    for statement in (_MAKE_SPELL, _MAKE_DEEP):
        connection.execute(statement)
    for (port, scope, stage, at_ms), spell in spells.items():
        until_ms = None if spell.until_unix_s is None else round(spell.until_unix_s * 1e3)
        who = (
            spell.server[:LONGEST_TEXT],
            spell.wake_s,
            int(spell.failed),
            spell.by[:LONGEST_TEXT],
            " ".join(spell.gpus),
        )
        connection.execute(_SPELL, (port, scope[:LONGEST_TEXT], str(stage), at_ms, until_ms, *who))
    rows = ((ids[uuid], hour, str(stage), *astuple(more)) for (uuid, hour, stage), more in deep.items() if uuid in ids)
    connection.executemany(_DEEP, rows)
    connection.execute("DELETE FROM spell WHERE id <= (SELECT max(id) FROM spell) - ?", (MOST_SPELLS,))


def forget(connection: sqlite3.Connection, gpus: Iterable[int], before_ms: int, before_hour: int) -> None:
    """What began before. In a transaction."""
    if are_kept(connection):
        connection.execute("DELETE FROM spell WHERE at_ms < ?", (before_ms,))
        for gpu in gpus:
            connection.execute("DELETE FROM deep WHERE gpu = ? AND hour < ?", (gpu, before_hour))


def read_spells(connection: sqlite3.Connection, since_ms: int) -> list[Spell]:
    """Those that began since then, oldest first."""
    if not are_kept(connection):
        return []
    rows = connection.execute(_READ_SPELLS, (since_ms,)).fetchall()
    return [spell for row in rows if (spell := _spell(row)) is not None]


def read_deep(connection: sqlite3.Connection, gpu: int, since_hour: int) -> list[tuple[int, Stage, Spent]]:
    """(hour, stage, what it took and spared) since then."""
    if not are_kept(connection):
        return []
    rows = connection.execute(_READ_DEEP, (gpu, since_hour)).fetchall()
    return [(int(hour), Stage(stage), Spent(*map(float, spent))) for hour, stage, *spent in rows if stage in LADDER]


def _spell(row: tuple[Any, ...]) -> Spell | None:
    server, port, scope, stage, at_ms, until_ms, wake_s, failed, by_whom, gpus = row
    if stage not in LADDER:  # of a memscaler that knows more of them
        return None
    return Spell(
        server=str(server),
        port=int(port),
        scope=str(scope),
        stage=Stage(stage),
        at_unix_s=at_ms / 1e3,
        until_unix_s=None if until_ms is None else until_ms / 1e3,
        wake_s=None if wake_s is None else float(wake_s),
        failed=bool(failed),
        by=str(by_whom),
        gpus=tuple(str(gpus).split()),
    )
