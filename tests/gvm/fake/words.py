"""What one connection to the fake says: lines of JSON, each {"do": a method below without its "do_", ...}."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

from tests.gvm.fake.model import Model, Trap, Work

Word = dict[str, Any]


class Connection:
    """An open /dev/nvidia-uvm, or a test. tid: of the thread, if not named the last one that was opened here.

    number: of a GPU; or uuid, which gives it one.
    """

    def __init__(self, model: Model, peer: int, folder: Path) -> None:
        """folder: the module's, in debugfs."""
        self._folder, self._away = folder, folder.parent.with_name("unloaded")
        self._model = model
        self._tid = peer
        self._own: dict[int, list[int]] = {}

    def ask(self, word: Word) -> Any:
        return getattr(self, f"do_{word['do']}")(word)

    def close(self) -> None:
        """What its process opened goes with it."""
        for tid, numbers in self._own.items():
            self._model.close_space(tid, numbers)

    def _whom(self, word: Word) -> int:
        return int(word.get("tid", self._tid))

    def _number(self, word: Word) -> int:
        return self._model.number_of(word["uuid"]) if "uuid" in word else int(word.get("number", 0))

    # ---- what a process does with its open file

    def do_open(self, word: Word) -> None:
        self._tid = self._whom(word)
        self._model.open_space(self._tid)
        self._own.setdefault(self._tid, [])

    def do_register(self, word: Word) -> int:
        tid, number = self._whom(word), self._number(word)
        self._model.register(tid, number)
        self._own[tid].append(number)
        return number

    def do_unregister(self, word: Word) -> None:
        tid, number = self._whom(word), self._number(word)
        self._own[tid].remove(number)
        self._model.unregister(tid, number)

    def do_channel(self, word: Word) -> None:
        work = Work(Path(word["work"])) if "work" in word else None
        self._model.channel(self._whom(word), self._number(word), work)

    def do_allocate(self, word: Word) -> None:
        self._model.allocate(self._whom(word), self._number(word), word["bytes"])

    def do_launch(self, word: Word) -> None:
        self._model.launch(self._whom(word), self._number(word), word.get("submitted", 0), word.get("ended", 0))

    # ---- what a test does

    def do_trap(self, word: Word) -> None:
        fields = {key: value for key, value in word.items() if key not in ("do", "error")}
        self._model.traps.append(Trap(**fields, error=getattr(errno, word["error"]) if word.get("error") else 0))

    def do_vanish(self, word: Word) -> None:
        self._model.vanish(word["tid"])

    def do_ghost(self, word: Word) -> None:
        self._model.ghost(word["tid"])

    def do_unload(self, _word: Word) -> None:
        """The module's folder goes, and everything in it: it is moved to where nobody looks."""
        self._model.unload()
        self._folder.rename(self._away)

    def do_load(self, _word: Word) -> None:
        self._away.rename(self._folder)

    def do_evict(self, word: Word) -> None:
        self._model.eviction_bytes_per_s = word["bytes_per_s"]

    def do_number(self, word: Word) -> int:
        return self._number(word)

    def do_log(self, _word: Word) -> list[tuple[int, int, int, str, str]]:
        return list(self._model.log)
