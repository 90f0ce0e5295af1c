"""Reading the history, beside a daemon that writes it or without one. Changes nothing, and needs no write access.

Every question is one short query, so that a reader holds up the daemon's writing for milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from memscaler.core.errors import MemscalerError, PermissionMissing
from memscaler.core.stage_times import Spell
from memscaler.core.stages import Spent, Stage
from memscaler.history import stages
from memscaler.history.tables import (
    APPLICATION,
    FILE,
    HOUR_S,
    READ_HOURS,
    VERSION,
    Hour,
    KnownGpu,
    Park,
    hour_of_row,
    readable,
)

WAIT_S = 5.0  # for a daemon that is writing
READABLE_BY = "run as root, or as a member of group memscaler"


class HistoryMissing(MemscalerError):
    """There is no history."""

    hint = (
        "memscaler begins one ten minutes after its start, or when it ends, in state_dir (`memscaler config show`); "
        "of a simulated daemon: --simulate BOARDS and --runtime-dir DIR as it has them, or --state-dir DIR"
    )


class HistoryUnreadable(MemscalerError):
    """The file is damaged, or none that this memscaler can read."""

    hint = "the next start of memscaler mends it, or moves it aside and begins a new one"


class History:
    """An open history. Times in seconds since 1970. Methods raise HistoryUnreadable."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection, self._path = connection, path

    def since_unix_s(self) -> float | None:
        """Since when the totals are counted."""
        with self._translated():
            rows = self._ask("SELECT since_unix_s FROM about")
            return float(rows[0][0]) if rows else None

    def gpus(self) -> tuple[KnownGpu, ...]:
        """Every GPU that was ever governed, in the order in which they came."""
        with self._translated():
            rows = self._ask("SELECT uuid, nvml_index, name, first_ms, last_ms FROM gpu ORDER BY id")
            return tuple(KnownGpu(str(uuid), int(at), str(name), a / 1e3, z / 1e3) for uuid, at, name, a, z in rows)

    def gaps(self, uuid: str, since_unix_s: float = 0.0, most: int | None = None) -> list[tuple[float, float]]:
        """(start, length in seconds) of the gaps that began since then, oldest first; `most`: the newest so many."""
        sql = "SELECT start_ms, length_ms FROM gap WHERE gpu = ? AND start_ms >= ? ORDER BY id DESC LIMIT ?"
        with self._translated():
            rows = self._ask(sql, self._id(uuid), _ms(since_unix_s), -1 if most is None else most)
            return sorted((start_ms / 1e3, length_ms / 1e3) for start_ms, length_ms in rows)

    def parks(self, uuid: str, since_unix_s: float = 0.0) -> list[Park]:
        """The parks that began since then, oldest first."""
        sql = (
            "SELECT at_ms, until_ms, idle_s, reason, latency_s, baseline_w, energy_j, saved_j, source FROM park "
            "WHERE gpu = ? AND at_ms >= ? ORDER BY at_ms"
        )
        with self._translated():
            return [_park(row) for row in self._ask(sql, self._id(uuid), _ms(since_unix_s))]

    def hours(self, uuid: str, since_unix_s: float = 0.0) -> list[Hour]:
        """The hours that ended after then, oldest first; those without the daemon are missing."""
        with self._translated():
            return [hour_of_row(row) for row in self._ask(READ_HOURS, self._id(uuid), int(since_unix_s // HOUR_S))]

    def spells(self, since_unix_s: float = 0.0) -> list[Spell]:
        """The times in deeper stages that began since then, of all servers and the machine, oldest first."""
        with self._translated():
            return stages.read_spells(self._connection, _ms(since_unix_s))

    def deep(self, uuid: str, since_unix_s: float = 0.0) -> list[tuple[float, Stage, Spent]]:
        """(begin of the hour, stage, what the stage took and spared) of the hours that ended after then."""
        with self._translated():
            found = stages.read_deep(self._connection, self._id(uuid), int(since_unix_s // HOUR_S))
            return [(float(hour * HOUR_S), stage, spent) for hour, stage, spent in found]

    def totals(self) -> dict[str, tuple[float, float, str]]:
        """UUID -> joules saved in total, and on the last local day on which any were, and that day ("2026-11-21")."""
        with self._translated():
            rows = self._ask("SELECT uuid, total_j, today_j, day FROM gpu")
            return {str(uuid): (float(total_j), float(today_j), str(day)) for uuid, total_j, today_j, day in rows}

    def _id(self, uuid: str) -> int:
        """0, which is nobody's, for a GPU that is not known."""
        rows = self._ask("SELECT id FROM gpu WHERE uuid = ?", uuid)
        return int(rows[0][0]) if rows else 0

    def _ask(self, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql, arguments).fetchall()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError, TypeError, OverflowError) as error:
            raise HistoryUnreadable(f"cannot read {self._path}: {error}", hint=_hint(error)) from error


@contextlib.contextmanager
def open_history(state_dir: Path) -> Iterator[History]:
    """Raise HistoryMissing, PermissionMissing or HistoryUnreadable."""
    path = state_dir / FILE
    _require(path)
    try:
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=WAIT_S, isolation_level=None)
    except sqlite3.Error as error:
        raise HistoryUnreadable(f"cannot open {path}: {error}") from error
    with contextlib.closing(connection):
        history = History(connection, path)
        with history._translated():  # noqa: SLF001
            connection.text_factory = readable
            connection.execute("PRAGMA trusted_schema = OFF")
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION:
            raise HistoryUnreadable(f"{path} is no history of memscaler")
        if version > VERSION:
            raise HistoryUnreadable(f"{path} was written by a newer memscaler", hint="read it with that one")
        yield history


def _require(path: Path) -> None:
    """Raise unless it is a file that we may read."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise HistoryMissing(f"there is no history at {path}") from error
    except PermissionError as error:
        raise PermissionMissing(f"cannot read {path}", hint=READABLE_BY) from error
    except OSError as error:
        raise HistoryUnreadable(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise HistoryUnreadable(f"{path} is not a regular file", hint="links are not followed; move it away")
    if not os.access(path, os.R_OK, effective_ids=True):
        raise PermissionMissing(f"cannot read {path}", hint=READABLE_BY)


def _hint(error: Exception) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return "another program keeps it locked" if code == sqlite3.SQLITE_BUSY else HistoryUnreadable.hint


def _ms(unix_s: float) -> int:
    return int(unix_s * 1e3)


def _park(row: tuple[Any, ...]) -> Park:
    at_ms, until_ms, idle_s, reason, latency_s, baseline_w, energy_j, saved_j, source = row
    return Park(
        at_unix_s=at_ms / 1e3,
        until_unix_s=None if until_ms is None else until_ms / 1e3,
        idle_s=float(idle_s),
        reason=str(reason),
        latency_s=latency_s,
        baseline_w=baseline_w,
        energy_j=energy_j,
        saved_j=saved_j,
        source=str(source),
    )
