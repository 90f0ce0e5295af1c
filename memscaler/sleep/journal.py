"""The sleep journal: who was put into which stage, and how to get him back, on disk before the driver is called.

One small file per server, replaced as a whole, so a reader never sees half of one. Nothing of it survives a reboot,
and neither does what it tells of: processes are gone then, and what is started with the machine is up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from memscaler.child import journal
from memscaler.config.stages import StageRule
from memscaler.daemon.journals import ASLEEP
from memscaler.files import write_own
from memscaler.sleep.drivers.protocol import Target

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


class Journal(journal.Journal[Entry]):
    """Of the runtime directory. One thread writes; others may read."""

    def __init__(self, runtime_dir: Path, boot_id: str | None = None) -> None:
        super().__init__(runtime_dir, ASLEEP, Entry, boot_id)

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

    def _entry(self, key: str) -> Entry | None:
        try:
            entry = self._read(self._path(key))
        except (FileNotFoundError, ValueError, RecursionError):
            return None
        return entry if entry.boot_id == self.boot_id else None

    def _write(self, entry: Entry) -> None:
        data = self._bytes(entry, f"the memo of {entry.server} is too long")
        write_own(self._path(entry.server.key), data)

    def _path(self, key: str) -> Path:
        name = quote(key, safe="@:")
        if len(name) > _LONGEST_NAME:  # a path of a network namespace
            name = f"{name[:40]}-{sha256(key.encode()).hexdigest()[:16]}"
        return self.folder / f"{name}.json"
