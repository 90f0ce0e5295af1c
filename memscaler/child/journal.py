"""A child's journal: what it has done to whom, and how to undo it, on disk before it is done.

One small file per entry, replaced as a whole, so a reader never sees half of one. Nothing of it survives a reboot, and
neither does what it tells of. Who holds the lock in its folder has the right to act on it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from memscaler.child.standstill import holder, stands_still
from memscaler.core.plain import from_plain, to_plain
from memscaler.daemon import journals
from memscaler.files import read_own
from memscaler.gpu.journal import BOOT_ID

LOCK = "lock"
MOST_BYTES = 64 * 1024  # of an entry


class OfBoot(Protocol):
    """An entry: a frozen dataclass."""

    @property
    def boot_id(self) -> str: ...


Entry = TypeVar("Entry", bound=OfBoot)


@dataclass(frozen=True, slots=True)
class Found(Generic[Entry]):
    """What lies there. unreadable: files that say nothing that can be understood."""

    entries: tuple[Entry, ...] = ()
    unreadable: tuple[Path, ...] = ()


class Journal(Generic[Entry]):
    """Of the runtime directory. What of it is for several threads, its child says."""

    def __init__(self, runtime_dir: Path, name: str, kind: type[Entry], boot_id: str | None) -> None:
        """name: of its folder (daemon/journals.py). kind: of its entries. boot_id: for tests; None: of this boot."""
        self.runtime_dir, self.name, self._kind = runtime_dir, name, kind
        self.folder = runtime_dir / name
        self.boot_id = BOOT_ID.read_text(encoding="ascii").strip() if boot_id is None else boot_id

    @property
    def tells_of_something(self) -> bool:
        """Cheap: whether to begin at all."""
        return journals.tells_of_something(self.runtime_dir, self.name)

    def found(self) -> Found[Entry]:
        """What is to be undone. Files of an earlier boot are void, and are taken away. Raise OSError."""
        entries, unreadable = [], []
        for path in sorted(self.folder.glob("*.json")):
            try:
                entry = self._read(path)
            except FileNotFoundError:
                continue
            except (OSError, ValueError, RecursionError):
                unreadable.append(path)
                continue
            if entry.boot_id == self.boot_id:
                entries.append(entry)
            else:
                path.unlink(missing_ok=True)
        return Found(tuple(entries), tuple(unreadable))

    def _read(self, path: Path) -> Entry:
        """Raise OSError, ValueError, RecursionError."""
        return from_plain(self._kind, json.loads(read_own(path, MOST_BYTES)))

    def _bytes(self, entry: Entry, too_long: str) -> bytes:
        """As it is written. Raise OSError."""
        data = json.dumps(to_plain(entry)).encode()
        if len(data) > MOST_BYTES:
            raise OSError(too_long)
        return data

    # ---- the right to act --------------------------------------------------------------------------------------------

    def own(self) -> int:
        """The right to act on what is written here: a descriptor that holds it until it is closed, or the process ends.

        Raise BlockingIOError if somebody else has it, OSError.
        """
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        path = self.folder / LOCK
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_ino != path.stat().st_ino:  # taken away while we waited for nothing
                raise BlockingIOError
        except OSError:
            os.close(fd)
            raise
        return fd

    def release(self, owned: int) -> None:
        """Give that right up: a thread of ours that hangs in a driver would keep it after our end."""
        with contextlib.suppress(OSError):
            fcntl.flock(owned, fcntl.LOCK_UN)
        os.close(owned)

    def owner(self) -> int | None:
        """The pid of who has that right now, if that can be seen."""
        return holder(self.folder / LOCK)


class Rival(Generic[Entry]):
    """Whoever has the right to act while we wait for it. One that stands still (SIGSTOP, a debugger) undoes nothing."""

    def __init__(self, journal: Journal[Entry], still_s: float) -> None:
        """still_s: for how long it may stand still."""
        self._journal, self._still_s = journal, still_s
        self._still: tuple[int, float] | None = None  # who, since when

    def look(self, now_s: float) -> None:
        """Again and again: it is killed if it stands still. now_s: of CLOCK_MONOTONIC."""
        owner = self._journal.owner()
        if owner is None or not stands_still(owner):
            self._still = None
        elif self._still is None or self._still[0] != owner:
            self._still = owner, now_s
        elif now_s >= self._still[1] + self._still_s:
            with contextlib.suppress(OSError):
                os.kill(owner, signal.SIGKILL)
