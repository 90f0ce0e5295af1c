"""What a file says and nobody knows: a sentence each, with its line and what it may be a slip of the pen for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from memscaler.config import toml
from memscaler.config.near import meant, nearest, strange
from memscaler.config.schema import BY_KEY

TABLES = {  # as they stand at the top of a file
    "watch": "[[watch]]",
    "gpu": "[gpu.gpu0]",
    "server": "[[server]]",
    "labels": "[labels]",
    "stage": "[[stage]]",
    "suspend": "[suspend]",
    "gateway": "[[gateway]]",
    "gpuctl": "[[gpuctl]]",
    "gvm": "[gvm]",
}
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def unknown(where: toml.Where, raw: object, known: Iterable[str], document: toml.Document) -> Iterator[str]:
    """where: its path in the file; known: what may stand in its place. Several, if it is an array of tables."""
    key, elements = str(where[-1]), _elements(raw)
    is_table = isinstance(raw, dict) or elements > 0
    near = nearest(key, TABLES if is_table and len(where) == 1 else ()) or nearest(key, known)
    hint = meant(near and TABLES.get(near, repr(near)))
    if not is_table:
        sentence = f"unknown key {key!r} in this table" if key in BY_KEY else strange(key, near)
        yield f"{document.origin(*where)}: {sentence}"
        return
    if not near and len(where) == 1:
        hint = f" (there are {', '.join(TABLES.values())})"
    name = ".".join(part if _BARE.fullmatch(part) else repr(part) for part in where if isinstance(part, str))
    heading = f"[[{name}]]" if elements else f"[{name}]"
    places = (document.origin(*where, nth) for nth in range(elements)) if elements else [document.origin(*where)]
    for origin in dict.fromkeys(places):  # all of an inline array are in one line
        yield f"{origin}: unknown table {heading}{hint}"


def _elements(raw: object) -> int:
    """Of an array of tables; 0: it is none."""
    is_array = isinstance(raw, list) and all(isinstance(each, dict) for each in raw)
    return len(raw) if isinstance(raw, list) and is_array else 0
