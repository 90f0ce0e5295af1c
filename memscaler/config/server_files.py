"""servers.d: a file for each server in TOML, or files of gppm as they are."""

from __future__ import annotations

from memscaler.config import server_tables, toml
from memscaler.config.server_tables import Found
from memscaler.core.errors import ConfigError

TOML = ".toml"
YAML = (".yaml", ".yml")
ENDINGS = (TOML, *YAML)
TABLE = "server"


def read(opened: toml.Opened) -> Found:
    """All servers of a file, and everything that is wrong with it."""
    try:
        if opened.file.suffix in YAML:
            from memscaler.config import gppm  # the parser, which most machines need not

            return Found(list(gppm.read(opened.text, str(opened.file))))
        return _toml(opened.parse())
    except ConfigError as error:
        return Found(problems=str(error).splitlines())


def _toml(document: toml.Document) -> Found:
    """Keys at the top are one server; [[server]] tables are more."""
    found = Found()
    top = {key: value for key, value in document.data.items() if key != TABLE}
    if top:
        first = min((document.lines[key,], key) for key in top if (key,) in document.lines)[1]

        def place(*where: str | int) -> str:
            return document.origin(*(where or (first,)))

        server_tables.read(top, place, found, name=document.file.stem)
    if TABLE in document.data:
        found.add(server_tables.read_list(document.data[TABLE], lambda *where: document.origin(TABLE, *where)))
    return found
