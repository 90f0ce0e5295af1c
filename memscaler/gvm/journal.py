"""The journal of what is set on whom, and how it was before: on disk before anything is turned.

One small file per place, replaced as a whole, so a reader never sees half of one. Nothing of it survives a reboot, and
neither does what it tells of. That is why nothing is flushed to a disk, which a client would wait for.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from memscaler.core.plain import from_plain, to_plain
from memscaler.files import read_own
from memscaler.gpu.journal import BOOT_ID
from memscaler.gvm.turning import Place, Was
from memscaler.servers.standstill import holder, stands_still, state

FOLDER, LOCK = "gpuctl", "lock"  # in the runtime directory; in the folder
MOST_BYTES = 64 * 1024
STILL_S = 1.0  # who has the right to act and stands still for so long is killed
_ODD = re.compile(r"[^A-Za-z0-9.:@-]+")


@dataclass(frozen=True, slots=True)
class Entry:
    """One place. ours: the values that we may have set, the last one last. name: of a process there, for people.

    pid: of the arbiter that wrote this.
    """

    place: Place
    was: Was
    ours: tuple[int, ...]
    boot_id: str
    name: str = ""
    rule: str = ""
    at_unix_s: float = 0.0
    pid: int = 0

    def __str__(self) -> str:
        who = f"{self.name} ({self.place.pid})" if self.name else f"process {self.place.pid}"
        where = f" on {self.place.uuid}" if self.place.uuid else ""
        return f"{self.place.knob} of {who}{where}"


@dataclass(frozen=True, slots=True)
class Found:
    """What lies there. unreadable: files that say nothing that can be understood."""

    entries: tuple[Entry, ...] = ()
    unreadable: tuple[Path, ...] = ()


@dataclass
class Journal:
    """Of the runtime directory. One place is written by one thread at a time."""

    runtime_dir: Path
    boot_id: str = field(default_factory=lambda: BOOT_ID.read_text(encoding="ascii").strip())

    @property
    def folder(self) -> Path:
        return self.runtime_dir / FOLDER

    def add(self, entry: Entry) -> None:
        """This place is about to be turned. Raise OSError if that cannot be written; then do not turn it."""
        data = json.dumps(to_plain(entry)).encode()
        if len(data) > MOST_BYTES:
            raise OSError(f"too much is to be remembered of {entry}")
        path = self._path(entry.place)
        draft = path.with_suffix(".tmp")
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()  # never write into what somebody else has put there
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if os.write(fd, data) != len(data):
                raise OSError(f"{draft} cannot be written: is its disk full?")
        finally:
            os.close(fd)
        draft.replace(path)

    def take(self, place: Place) -> None:
        """Nothing of ours is there any more. Raise OSError."""
        self._path(place).unlink(missing_ok=True)

    def found(self) -> Found:
        """What is to be put back. Files of an earlier boot are void, and are taken away. Raise OSError."""
        entries, unreadable = [], []
        for path in sorted(self.folder.glob("*.json")):
            try:
                entry = from_plain(Entry, json.loads(read_own(path, MOST_BYTES)))
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

    def own(self) -> int:
        """The right to act on what is written here: a descriptor that holds it until it is closed, or the process ends.

        Raise BlockingIOError if somebody else has it, OSError.
        """
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        path = self.folder / LOCK
        try:
            return _locked(path)
        except BlockingIOError:
            if not _is_held_by_the_dead(path):
                raise
        # A killed process whose thread still waits in a driver keeps its lock. What it had begun it cannot go on with.
        path.unlink(missing_ok=True)
        return _locked(path)

    def release(self, owned: int) -> None:
        """Give that right up: a thread of ours that hangs in a driver would keep it after our end."""
        with contextlib.suppress(OSError):
            fcntl.flock(owned, fcntl.LOCK_UN)
        os.close(owned)

    def owner(self) -> int | None:
        """The pid of who has that right now, if that can be seen."""
        return holder(self.folder / LOCK)

    def _path(self, place: Place) -> Path:
        digest = sha256(place.key.encode()).hexdigest()[:16]
        return self.folder / f"{_ODD.sub('-', f'{place.pid}-{place.knob}-{place.means}')}-{digest}.json"


class Rival:
    """Whoever has the right to act while we wait for it. One that stands still (SIGSTOP, a debugger) undoes nothing."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._still: tuple[int, float] | None = None  # who, since when

    def look(self, now_s: float) -> None:
        """Again and again: it is killed if it stands still. now_s: of CLOCK_MONOTONIC."""
        owner = self._journal.owner()
        if owner is None or not stands_still(owner):
            self._still = None
        elif self._still is None or self._still[0] != owner:
            self._still = owner, now_s
        elif now_s >= self._still[1] + STILL_S:
            with contextlib.suppress(OSError):
                os.kill(owner, signal.SIGKILL)


def anything_to_undo(runtime_dir: Path) -> bool:
    """Cheap: whether to begin at all."""
    return any((runtime_dir / FOLDER).glob("*.json"))


def _locked(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_ino != path.stat().st_ino:  # taken away while we waited for nothing
            raise BlockingIOError
    except OSError:
        os.close(fd)
        raise
    return fd


def _is_held_by_the_dead(path: Path) -> bool:
    owner = holder(path)
    return owner is not None and state(owner) in ("Z", "X")
