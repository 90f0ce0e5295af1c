"""Tables of a file whose keys are listed: each value is read by its key's kind, and every unknown key is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from memscaler.config.near import nearest, strange
from memscaler.config.values import Kind


class Place(Protocol):
    """Tells file:line of a key below the table."""

    def __call__(self, *where: str | int) -> str: ...


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a table. default: as an operator would write it; "" is none."""

    field: str
    key: str
    parse: Kind[Any]
    default: str
    help: str


def key(name: str, parse: Kind[Any], default: str, text: str, *, field: str = "") -> Key:
    """A key. field: where the value goes, if it is not called like the key."""
    return Key(field or name, name, parse, default, text)


def read(
    raw: Mapping[str, object],
    keys: Iterable[Key],
    place: Place,
    problems: list[str],
    *,
    others: tuple[str, ...] = (),
    other_words: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The good values by field, and sentences about the others.

    others: keys that somebody else reads. other_words: what a key is called by others.
    """
    known = {each.key: each for each in keys}
    told: dict[str, Any] = {}
    for name, value in raw.items():
        if name in others:
            continue
        if name not in known:
            near = (other_words or {}).get(name) or nearest(name, [*known, *others])
            problems.append(f"{place(name)}: {strange(name, near)}")
            continue
        try:
            told[known[name].field] = known[name].parse(value)
        except ValueError as err:
            problems.append(f"{place(name)}: {_about(name, err)}")
    return told


def _about(name: str, err: ValueError) -> str:
    """With the key, unless the sentence begins with it."""
    text = str(err)
    return text if text.startswith(name) or name == "name" else f"{name}: {text}"
