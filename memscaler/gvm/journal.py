"""The journal of what is set on whom, and how it was before: on disk before anything is turned.

One small file per place, replaced as a whole, so a reader never sees half of one. Nothing of it survives a reboot, and
neither does what it tells of. That is why nothing is flushed to a disk, which a client would wait for.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from memscaler.child import journal
from memscaler.child.standstill import state
from memscaler.daemon.journals import CONTROLLED
from memscaler.gvm.above import Waiter
from memscaler.gvm.turning import Place, Was

DRAFT = ".draft"  # suffix (drafts.py)
STILL_S = 1.0  # who has the right to act and stands still for so long is killed
_ODD = re.compile(r"[^A-Za-z0-9.:@-]+")


@dataclass(frozen=True, slots=True)
class Entry:
    """One place. ours: the values that we may have set, the last one last. name: of a process there, for people.

    pid: of the arbiter that wrote this. waiting: who above a process that SIGSTOP stops was not stopped then.
    """

    place: Place
    was: Was
    ours: tuple[int, ...]
    boot_id: str
    name: str = ""
    rule: str = ""
    at_unix_s: float = 0.0
    pid: int = 0
    waiting: tuple[Waiter, ...] = ()

    def __str__(self) -> str:
        who = f"{self.name} ({self.place.pid})" if self.name else f"process {self.place.pid}"
        where = f" on {self.place.uuid}" if self.place.uuid else ""
        return f"{self.place.knob} of {who}{where}"


class Journal(journal.Journal[Entry]):
    """Of the runtime directory. One place is written by one thread at a time."""

    def __init__(self, runtime_dir: Path, boot_id: str | None = None) -> None:
        super().__init__(runtime_dir, CONTROLLED, Entry, boot_id)

    def add(self, entry: Entry) -> None:
        """This place is about to be turned. Raise OSError if that cannot be written; then do not turn it."""
        path = self.path(entry.place)
        draft = path.with_suffix(".tmp")
        self._write(entry, draft)
        draft.replace(path)

    def draft(self, entry: Entry) -> Path:
        """Beforehand: a file that no reader looks at until it is moved to `path`. Raise OSError."""
        path = self.path(entry.place)
        draft = path.with_suffix(".new")
        self._write(entry, draft)
        return draft.replace(path.with_suffix(DRAFT))

    def tidy(self) -> None:
        """Drafts of an arbiter that is gone."""
        for path in self.folder.glob(f"*{DRAFT}"):
            with contextlib.suppress(OSError):
                path.unlink()

    def _write(self, entry: Entry, draft: Path) -> None:
        data = self._bytes(entry, f"too much is to be remembered of {entry}")
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()  # never write into what somebody else has put there
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if os.write(fd, data) != len(data):
                raise OSError(f"{draft} cannot be written: is its disk full?")
        finally:
            os.close(fd)

    def take(self, place: Place) -> None:
        """Nothing of ours is there any more. Raise OSError."""
        self.path(place).unlink(missing_ok=True)

    def _read(self, path: Path) -> Entry:
        entry = super()._read(path)
        return entry if entry.at_unix_s else replace(entry, at_unix_s=path.stat().st_ctime)  # a draft that was moved

    def own(self) -> int:
        try:
            return super().own()
        except BlockingIOError:
            owner = self.owner()
            if owner is None or state(owner) not in ("Z", "X"):
                raise
        # A killed process whose thread still waits in a driver keeps its lock. What it had begun it cannot go on with.
        (self.folder / journal.LOCK).unlink(missing_ok=True)
        return super().own()

    def path(self, place: Place) -> Path:
        """Its file."""
        digest = sha256(place.key.encode()).hexdigest()[:16]
        return self.folder / f"{_ODD.sub('-', f'{place.pid}-{place.knob}-{place.means}')}-{digest}.json"
