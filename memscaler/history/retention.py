"""What is forgotten: the oldest gaps and parks first, then the oldest hours, never the totals.

By age, and where the file would grow too large. Who has most loses most: a busy GPU does not push out what is known of
a quiet one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from memscaler.history import stages
from memscaler.history.tables import HOUR_S

PAGE_BYTES = 4096
DAY_S = 86400
_BELIEVED_HOURS = 24
_FULL, _AFTER = 0.9, 0.85  # of the pages, in use: when to make room, and how much
_SHARE = 0.97  # of the rows stays at each step: a reader waits for one at most
_FEW = 1000  # rows of which no more is taken
MOST_STEPS = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """most_bytes: of the file; its journal may need as much again while room is made."""

    most_bytes: int = 32 << 20
    days: int = 400
    hours_days: int = 5 * 366

    @property
    def most_pages(self) -> int:
        return max(64, self.most_bytes // PAGE_BYTES)


def forget_old(connection: sqlite3.Connection, limits: Limits, now_unix_s: float) -> None:
    """In a transaction. A clock is believed only when GPUs were governed for a day by it: a wrong one costs nothing."""
    before = now_unix_s - limits.days * DAY_S
    if not _believes(connection, int(before // HOUR_S), int(now_unix_s // HOUR_S)):
        return
    for table, column in (("gap", "start_ms"), ("park", "at_ms")):  # from the oldest on, up to the first young one
        young = f"SELECT id FROM {table} WHERE {column} >= ? ORDER BY id LIMIT 1"  # noqa: S608
        connection.execute(f"DELETE FROM {table} WHERE id < ({young})", (int(before * 1e3),))  # noqa: S608
    hour = int((now_unix_s - limits.hours_days * DAY_S) // HOUR_S)
    for gpu in _gpus(connection):
        connection.execute("DELETE FROM hour WHERE gpu = ? AND hour < ?", (gpu, hour))
    stages.forget(connection, _gpus(connection), int(before * 1e3), hour)


def make_room(connection: sqlite3.Connection, limits: Limits, more_bytes: int) -> None:
    """For so much. Outside a transaction; each step is one of its own."""
    more_pages = more_bytes // PAGE_BYTES
    if _used(connection) + more_pages < _FULL * limits.most_pages:
        return
    for _ in range(MOST_STEPS):
        taken = _thin_out(connection, "gap", "id") + _thin_out(connection, "park", "id")
        if not taken:
            taken = _thin_out(connection, "hour", "hour")
            taken += _thin_out(connection, "deep", "hour") if stages.are_kept(connection) else 0
        if not taken or _used(connection) + more_pages < _AFTER * limits.most_pages:
            return


def _thin_out(connection: sqlite3.Connection, table: str, order: str) -> int:
    """Take the oldest rows of who has most of them; how many."""
    counts = dict(connection.execute(f"SELECT gpu, count(*) FROM {table} GROUP BY gpu"))  # noqa: S608
    total = sum(counts.values())
    if total <= _FEW:
        return 0
    level, taken = _level(counts, int(total * _SHARE)), 0
    for gpu, count in counts.items():
        if count > level:
            last = f"SELECT {order} FROM {table} WHERE gpu = ?1 ORDER BY {order} LIMIT 1 OFFSET ?2"  # noqa: S608
            delete = f"DELETE FROM {table} WHERE gpu = ?1 AND {order} < ({last})"  # noqa: S608
            taken += connection.execute(delete, (gpu, count - level)).rowcount
    return taken


def _level(counts: Mapping[int, int], most: int) -> int:
    """The largest number of rows for each GPU with which all together have no more than `most`."""
    left = most
    for nth, count in enumerate(sorted(counts.values())):
        share = left // (len(counts) - nth)
        if count > share:
            return share
        left -= count
    return max(counts.values(), default=0)


def _believes(connection: sqlite3.Connection, first: int, last: int) -> bool:
    sql = "SELECT count(*) FROM (SELECT 1 FROM hour WHERE gpu = ? AND hour BETWEEN ? AND ? LIMIT ?)"
    arguments = (first, last, _BELIEVED_HOURS)
    every = (connection.execute(sql, (gpu, *arguments)).fetchone()[0] for gpu in _gpus(connection))
    return max(every, default=0) >= _BELIEVED_HOURS


def _gpus(connection: sqlite3.Connection) -> list[int]:
    return [gpu for (gpu,) in connection.execute("SELECT id FROM gpu")]


def _used(connection: sqlite3.Connection) -> int:
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    return int(pages) - int(free)
