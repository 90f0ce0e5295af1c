"""The file: made, checked, written to and kept small. Everything here may block; the daemon calls it in threads.

A rollback journal and synchronous=FULL: whatever moment the power fails at, the file is as before a batch or as after
it. Not write-ahead logging, because then a reader would need write access to the directory. A batch is one transaction
of a connection of its own, so that nothing stays in memory between batches.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import sqlite3
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from memscaler.history import stages
from memscaler.history.batch import MOST_GPUS, MOST_J, Batch, Saved
from memscaler.history.retention import Limits, forget_old, make_room
from memscaler.history.tables import ADD_HOUR, APPLICATION, FILE, SCHEMA, VERSION, Park, hour_to_row, readable

GROUP = "memscaler"  # its members may read it, as the status
DAMAGED = ".damaged"
JOURNAL = "-journal"  # SQLite's own suffix
WAIT_S = 5.0  # for a reader that keeps the file locked
CACHE_KIB = 256
# SQLite's code says that the file is none, is damaged, or has other tables than ours.
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR})
_ODD = frozenset({sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH})
_NOT_FOR_ANY_FILE = (ValueError, TypeError, OverflowError, sqlite3.InterfaceError, sqlite3.ProgrammingError)


class Newer(Exception):
    """The file was written by a newer memscaler; it is left alone."""


class Damaged(Exception):
    """The file was damaged. It was moved aside; the next batch begins a new one."""


class Unwritable(Exception):
    """The file is whole, and does not take these rows, now or later."""


class _Foreign(Exception):
    """No history has such a file, or such a value."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What was there. since_unix_s: since when it is counted."""

    since_unix_s: float
    saved: dict[str, Saved]


class Store:
    """One history file. Methods raise OSError, sqlite3.Error, Newer or Damaged."""

    def __init__(self, directory: Path, limits: Limits) -> None:
        self.path = directory / FILE
        self._limits = limits

    def kept(self) -> Kept | None:
        """What was saved before; None: there is no file."""
        with self._open(make=False) as connection:
            if connection is None:
                return None
            since = connection.execute("SELECT since_unix_s FROM about").fetchone()
            rows = connection.execute("SELECT uuid, total_j, today_j, day FROM gpu ORDER BY id").fetchmany(MOST_GPUS)
            since_unix_s = _between(since[0], sys.float_info.max) if since else time.time()
            return Kept(since_unix_s, {str(uuid): _saved(total, today, day) for uuid, total, today, day in rows})

    def write(self, batch: Batch, since_unix_s: float) -> None:
        """All of it, or nothing. Raise Unwritable for what it will never take."""
        with self._open(make=True) as connection:
            assert connection is not None  # noqa: S101  # for the type checkers: it was made
            make_room(connection, self._limits, batch.most_bytes)
            with _transaction(connection):
                try:
                    _add(connection, batch, since_unix_s)
                except (
                    ValueError,
                    TypeError,
                    OverflowError,
                    sqlite3.InterfaceError,
                    sqlite3.ProgrammingError,
                ) as error:
                    raise Unwritable(str(error)) from error
                forget_old(connection, self._limits, time.time())

    # ---- the file -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _open(self, *, make: bool) -> Iterator[sqlite3.Connection | None]:
        if not self._is_there():
            if not make:
                yield None
                return
            with contextlib.suppress(FileExistsError):  # another one was faster
                self._make()
            self._is_there()
        self._share()
        path = f"file:{quote(str(self.path))}?mode=rw"
        with contextlib.closing(sqlite3.connect(path, uri=True, timeout=WAIT_S, isolation_level=None)) as connection:
            try:
                self._prepare(connection)
                yield connection
            except (sqlite3.Error, _Foreign) as error:
                reason = _damage(error, connection, self.path)
                if not reason:
                    raise
                connection.close()
                self._move_aside()
                raise Damaged(reason) from error

    def _is_there(self) -> bool:
        """Raise OSError if something else is: links are not followed, and what others may write is not trusted."""
        try:
            folder = self.path.parent.stat()
            if folder.st_uid not in (0, os.geteuid()) or folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise PermissionError(errno.EPERM, "others may write to the directory", str(self.path.parent))
            file = self.path.lstat()
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(file.st_mode) or file.st_uid not in (0, os.geteuid()):
            raise OSError(errno.EINVAL, "not a regular file of ours", str(self.path))
        return True

    def _make(self) -> None:
        """Empty; for this user so far."""
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(self.path, flags, 0o600))

    def _share(self) -> None:
        """Let the group read it, if there is such a group and it is ours to give to: it may have come after the file.

        By its path, in a directory where nobody else writes: to close a descriptor of it would end SQLite's locks.
        """
        with contextlib.suppress(KeyError, OSError):
            group = grp.getgrnam(GROUP).gr_gid
            if self.path.lstat().st_gid != group:
                self.path.chmod(0o640)
                os.chown(self.path, -1, group, follow_symlinks=False)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.text_factory = readable
        settings = ("trusted_schema = OFF", "cell_size_check = ON", "synchronous = FULL", "temp_store = MEMORY")
        for setting in (*settings, f"cache_size = {-CACHE_KIB}", "journal_mode = DELETE"):
            connection.execute(f"PRAGMA {setting}").fetchone()
        if _number(connection, "application_id") != APPLICATION:
            with _transaction(connection):  # nobody else begins it now
                _begin(connection)
        version = _number(connection, "user_version")
        if version > VERSION:
            raise Newer(f"its tables are of version {version}, ours of {VERSION}")
        connection.execute(f"PRAGMA max_page_count = {self._limits.most_pages}").fetchone()

    def _move_aside(self) -> None:
        """Its journal first: it must not be applied to the file that comes next."""
        for suffix in (JOURNAL, ""):
            source = Path(f"{self.path}{suffix}")
            with contextlib.suppress(FileNotFoundError):
                source.replace(Path(f"{self.path}{DAMAGED}{suffix}"))


def _begin(connection: sqlite3.Connection) -> None:
    """Make the tables in a file that is empty. Raise _Foreign if it holds something else."""
    if _number(connection, "application_id") == APPLICATION:
        return
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise _Foreign("it is no history of memscaler")
    for statement in SCHEMA.split(";"):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA user_version = {VERSION}")


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # SQLite has rolled back what it could not do, most of the time
            connection.execute("ROLLBACK")
        raise


def _damage(error: Exception, connection: sqlite3.Connection, path: Path) -> str:
    """Why the file is of no use, "" if it is. Rows that it does not take may be its fault or ours."""
    whole_code = getattr(error, "sqlite_errorcode", 0)
    code = whole_code & 0xFF
    # Its header says that only some other SQLite may write to it; the disk does not say so.
    read_only = whole_code == sqlite3.SQLITE_READONLY and os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    if isinstance(error, _Foreign) or code in _DAMAGE or read_only:
        return str(error)
    if code in _ODD:
        with contextlib.suppress(sqlite3.Error):
            if connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",):
                raise Unwritable(str(error)) from error
        return str(error)
    return ""


# ---- rows ----------------------------------------------------------------------------------------------------------

_KNOW = """
INSERT INTO gpu (uuid, nvml_index, name, first_ms, last_ms) VALUES (?1, ?2, ?3, ?5, ?4)
ON CONFLICT (uuid) DO UPDATE SET last_ms = ?4,
nvml_index = CASE WHEN ?2 < 0 THEN nvml_index ELSE ?2 END, name = CASE WHEN ?2 < 0 THEN name ELSE ?3 END
"""
_SAVE = """
UPDATE gpu SET total_j = min(total_j + ?2, ?5), today_j = min(?3 + CASE WHEN day = ?4 THEN today_j ELSE 0 END, ?5),
day = ?4 WHERE id = ?1
"""
_END_PARK = """
UPDATE park SET until_ms = ?3, idle_s = ?4, reason = ?5, latency_s = ?6, baseline_w = ?7, energy_j = ?8, saved_j = ?9,
source = ?10 WHERE gpu = ?1 AND at_ms = ?2 AND until_ms IS NULL
"""
_PARK = """
INSERT INTO park (gpu, at_ms, until_ms, idle_s, reason, latency_s, baseline_w, energy_j, saved_j, source)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
"""


def _add(connection: sqlite3.Connection, batch: Batch, since_unix_s: float) -> None:
    connection.execute("INSERT INTO about SELECT ? WHERE NOT EXISTS (SELECT 1 FROM about)", (since_unix_s,))
    ids = _know(connection, batch)
    gaps = ((ids[uuid], start_ms, length_ms) for uuid, start_ms, length_ms in batch.gaps if uuid in ids)
    connection.executemany("INSERT INTO gap (gpu, start_ms, length_ms) VALUES (?, ?, ?)", gaps)
    for (uuid, at_ms), park in batch.parks.items():
        if uuid in ids:
            row = (ids[uuid], at_ms, *_park_row(park))
            if connection.execute(_END_PARK, row).rowcount == 0:
                connection.execute(_PARK, row)
    hours = ((ids[uuid], hour, *hour_to_row(each)) for (uuid, hour), each in batch.hours.items() if uuid in ids)
    connection.executemany(ADD_HOUR, hours)
    for uuid, saved in batch.saved.items():
        if uuid in ids:
            connection.execute(_SAVE, (ids[uuid], saved.total_j, saved.today_j, saved.day, MOST_J))
    stages.write(connection, batch.spells, batch.deep, ids)


def _know(connection: sqlite3.Connection, batch: Batch) -> dict[str, int]:
    """UUID -> number of every GPU; too many different ones are not kept."""
    now_ms, known = int(time.time() * 1e3), _ids(connection)
    for uuid in _named(batch):
        if uuid in known or len(known) < MOST_GPUS:
            known.setdefault(uuid, 0)
            since_ms = min(batch.since_ms.get(uuid, now_ms), now_ms)
            connection.execute(_KNOW, (uuid, *batch.gpus.get(uuid, (-1, "")), now_ms, since_ms))
    return _ids(connection)


def _named(batch: Batch) -> Iterable[str]:
    every = [*batch.gpus, *batch.saved, *(gap[0] for gap in batch.gaps)]
    every += [uuid for uuid, _ in batch.parks] + [uuid for uuid, _ in batch.hours]
    return dict.fromkeys([*every, *(uuid for uuid, _, _ in batch.deep)])


def _ids(connection: sqlite3.Connection) -> dict[str, int]:
    return dict(connection.execute("SELECT uuid, id FROM gpu"))


def _park_row(park: Park) -> tuple[object, ...]:
    until_ms = None if park.until_unix_s is None else round(park.until_unix_s * 1e3)
    told = (park.reason, park.latency_s, park.baseline_w, park.energy_j, park.saved_j, park.source)
    return (until_ms, park.idle_s, *told)


def _saved(total_j: object, today_j: object, day: object) -> Saved:
    return Saved(_between(total_j, MOST_J), _between(today_j, MOST_J), str(day))


def _between(raw: object, most: float) -> float:
    """Raise _Foreign for what is no figure of ours."""
    if not isinstance(raw, int | float) or not 0 <= raw <= most:
        raise _Foreign(f"{raw!r} is out of range")
    return float(raw)
