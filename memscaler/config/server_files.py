"""servers.d: a file for each server in TOML, or files of gppm as they are."""

from __future__ import annotations

from pathlib import Path

from memscaler.config import server_tables, toml
from memscaler.config.near import meant, nearest
from memscaler.config.server_keys import HOOK, KEYS
from memscaler.config.server_tables import Found
from memscaler.core.errors import ConfigError

TOML = ".toml"
YAML = (".yaml", ".yml")
ENDINGS = (TOML, *YAML)
TABLE = "server"
_KNOWN = frozenset({TABLE, HOOK, *(each.key for each in KEYS)})


def read(opened: toml.Opened) -> Found:
    """All servers of a file, and everything that is wrong with it."""
    try:
        if opened.file.suffix in YAML:
            from memscaler.config import gppm  # the parser, which most machines need not

            return Found(list(gppm.read(opened.text, str(opened.file))))
        return _toml(opened.parse())
    except ConfigError as error:
        return Found(problems=str(error).splitlines())


def ignored(file: Path) -> list[str]:
    """Sentences about files of servers.d beside this one that nothing reads. Copies and hidden ones are not told."""
    folder = file.parent / toml.SERVERS
    try:
        names = sorted(each.name for each in folder.iterdir() if each.suffix not in ENDINGS and each.is_file())
    except OSError:  # told by whoever reads the others
        return []
    listed = ", ".join(f"*{ending}" for ending in ENDINGS)
    others = [name for name in names if not name.startswith(".") and not name.endswith("~")]
    return [f"{folder / name}: not read, for only {listed} are" for name in others]


def _toml(document: toml.Document) -> Found:
    """Keys at the top are one server; [[server]] tables are more."""
    found = Found()
    for key, raw in document.data.items():
        if key not in _KNOWN and isinstance(raw, list) and nearest(key, [TABLE]):
            origin = document.origin(key, 0)
            return Found(problems=[f"{origin}: unknown table [[{key}]]{meant(f'[[{TABLE}]]')}"])
    top = {key: value for key, value in document.data.items() if key != TABLE}
    if top:
        first = min((document.lines[key,], key) for key in top if (key,) in document.lines)[1]

        def place(*where: str | int) -> str:
            return document.origin(*(where or (first,)))

        server_tables.read(top, place, found, name=document.file.stem)
    if TABLE in document.data:
        found.add(server_tables.read_list(document.data[TABLE], lambda *where: document.origin(TABLE, *where)))
    return found
