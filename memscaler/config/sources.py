"""The files that a configuration is in, read whatever is wrong with one of them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from memscaler.config import server_files, server_tables, toml
from memscaler.core.errors import ConfigError


@dataclass(slots=True)
class Sources:
    """The files that there are, and what came of reading them. unopened: nobody knows what some of them say.

    ignored: sentences about files of servers.d that nothing reads.
    """

    files: tuple[Path, ...]
    documents: list[toml.Document] = field(default_factory=list)
    described: server_tables.Found = field(default_factory=server_tables.Found)
    problems: list[str] = field(default_factory=list)
    distrust: list[toml.Distrusted] = field(default_factory=list)
    unopened: bool = False
    ignored: tuple[str, ...] = ()

    def place(self, sentence: str) -> tuple[int, int]:
        """(which file, its line) of a problem, to go through the files by; what is in none of them comes last."""
        for nth, file in enumerate(self.files):
            line = sentence.removeprefix(f"{file}:").partition(":")[0]
            if line.isdecimal() and sentence.startswith(f"{file}:"):
                return nth, int(line)
        return len(self.files), 0

    def take(self, file: Path) -> None:
        """Read one. Raise PermissionMissing."""
        try:
            opened = toml.look(file)
        except ConfigError as error:
            self.problems.append(str(error))
            self.unopened = True
            return
        self.suspect(opened.distrust)
        if file.parent.name == toml.SERVERS:
            self.described.add(server_files.read(opened))
            return
        try:
            self.documents.append(opened.parse())
        except ConfigError as error:
            self.problems.append(str(error))

    def suspect(self, distrust: toml.Distrusted | None) -> None:
        """Note it once: several files may be in one folder."""
        if distrust is not None and str(distrust) not in map(str, self.distrust):
            self.distrust.append(distrust)


def read_files(file: Path | None, standard: Path, default: Path | None = None) -> Sources:
    """All of them, whatever is wrong with one. Raise PermissionMissing.

    file: the one that is named; default: else this, standard: or else this. A folder that is named stands for its
    config.toml. One of another name has to be there: it may be misspelt.
    """
    first = _in_folder(file, standard) if file else default or standard
    folders = toml.drop_ins(first), toml.drop_ins(first, toml.SERVERS, server_files.ENDINGS)
    beside = [each for folder in folders for each in folder.files]
    needed = file is not None and not (first.name == standard.name and beside)
    is_there = os.path.lexists(first)  # a link that leads nowhere is a mistake
    found = Sources((*([first] if needed or is_there else []), *beside))
    found.ignored = tuple(server_files.ignored(first))
    for folder in folders:
        found.suspect(folder.distrust)
    for each in found.files:
        found.take(each)
    return found


def _in_folder(file: Path, standard: Path) -> Path:
    try:
        return file / standard.name if file.is_dir() else file
    except PermissionError:  # told when it is opened
        return file


def remedy(distrust: Iterable[ConfigError]) -> str:
    """Commands for root."""
    return " && ".join(each.hint for each in distrust)
