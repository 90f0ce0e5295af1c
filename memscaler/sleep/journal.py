"""The sleep journal: who was put into which stage, and how to get him back, on disk before the driver is called.

One small file per server, replaced as a whole, so a reader never sees half of one. Nothing of it survives a reboot,
and neither does what it tells of: processes are gone then, and what is started with the machine is up.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from memscaler.config.stages import StageRule
from memscaler.core.plain import from_plain, to_plain
from memscaler.files import read_own, write_own
from memscaler.gpu.journal import BOOT_ID
from memscaler.servers.standstill import holder
from memscaler.sleep.drivers.protocol import Target

FOLDER, LOCK = "sleep", "lock"  # in the runtime directory; in the folder
MOST_BYTES = 64 * 1024
_LONGEST_NAME = 100


@dataclass(frozen=True, slots=True)
class Spell:
    """One stage that was entered, or was about to be. at_unix_s: when. memo: the driver's."""

    rule: StageRule
    memo: Mapping[str, Any]
    at_unix_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One server and its stages, the shallowest first. pid: of the sleeper that wrote this."""

    server: Target
    spells: tuple[Spell, ...]
    boot_id: str
    pid: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """What lies there. unreadable: files that say nothing that can be understood."""

    entries: tuple[Entry, ...] = ()
    unreadable: tuple[Path, ...] = ()


@dataclass
class Journal:
    """Of the runtime directory. One thread writes; others may read."""

    runtime_dir: Path
    boot_id: str = field(default_factory=lambda: BOOT_ID.read_text(encoding="ascii").strip())

    @property
    def folder(self) -> Path:
        return self.runtime_dir / FOLDER

    def add(self, server: Target, rule: StageRule, memo: Mapping[str, Any]) -> None:
        """This stage is about to be entered. Raise OSError if that cannot be written; then do not enter it."""
        known = self._entry(server.key)
        spells = () if known is None else tuple(each for each in known.spells if each.rule.stage is not rule.stage)
        spell = Spell(rule, memo, time.time())
        self._write(Entry(server, (*spells, spell), self.boot_id, os.getpid()))

    def take(self, server: Target, rule: StageRule) -> None:
        """It is out of that stage. Raise OSError."""
        known = self._entry(server.key)
        if known is None:
            return
        spells = tuple(each for each in known.spells if each.rule.stage is not rule.stage)
        if spells:
            self._write(replace(known, spells=spells))
        else:
            self._path(server.key).unlink(missing_ok=True)

    def found(self) -> Found:
        """What is to be left. Files of an earlier boot are void, and are taken away. Raise OSError."""
        entries, unreadable = [], []
        try:
            paths = sorted(self.folder.glob("*.json"))
        except FileNotFoundError:
            return Found()
        for path in paths:
            try:
                entry = _read(path)
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
        fd = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise
        return fd

    def owner(self) -> int | None:
        """The pid of who has that right now, if that can be seen."""
        return holder(self.folder / LOCK)

    def _entry(self, key: str) -> Entry | None:
        try:
            entry = _read(self._path(key))
        except (FileNotFoundError, ValueError, RecursionError):
            return None
        return entry if entry.boot_id == self.boot_id else None

    def _write(self, entry: Entry) -> None:
        data = json.dumps(to_plain(entry)).encode()
        if len(data) > MOST_BYTES:
            raise OSError(f"the memo of {entry.server} is too long")
        write_own(self._path(entry.server.key), data)

    def _path(self, key: str) -> Path:
        name = quote(key, safe="@:")
        if len(name) > _LONGEST_NAME:  # a path of a network namespace
            name = f"{name[:40]}-{sha256(key.encode()).hexdigest()[:16]}"
        return self.folder / f"{name}.json"


def _read(path: Path) -> Entry:
    return from_plain(Entry, json.loads(read_own(path, MOST_BYTES)))
