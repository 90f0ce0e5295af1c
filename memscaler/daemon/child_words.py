"""What every child of the governor that acts for it may say, and how messages are written: one JSON object each.

The sleeper and the arbiter are such children; what each of them says besides is in sleeper_words.py, arbiter_words.py.
A message has one key, which says what it is, and its fields below that, by the names of the dataclasses
(core/plain.py). What the governor says is in memscaler/child/link.py, which is not for the governor to load.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from memscaler.core.plain import from_plain, to_plain

MOST_BYTES = 128 * 1024  # of a message
MOST_KEYS = 1024


@dataclass(frozen=True, slots=True)
class Guard:
    """Keep these watches armed whatever their GPUs do (on), compare with sock_diag, and answer with `seen`.

    From then on a client who comes is told at once. off: no longer. Guards of a key do not add up: the last counts.
    Each child has guards of its own.
    """

    id: int
    keys: tuple[str, ...]
    on: bool


@dataclass(frozen=True, slots=True)
class Look:
    """Compare with sock_diag, then answer with `seen`."""

    id: int


@dataclass(frozen=True, slots=True)
class Done:
    """The answer to a question. document: what the command prints with --json."""

    id: int
    ok: bool = True
    error: str = ""
    hint: str = ""
    document: Mapping[str, Any] = field(default_factory=dict)


COMMON: Mapping[str, type[Any]] = {"guard": Guard, "look": Look, "done": Done}


def decode(words: Mapping[str, type[Any]], data: bytes) -> Any:
    """What a message says; None for a word of a later version. Raise ValueError for what makes no sense."""
    try:
        message = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(message, dict) or len(message) != 1:
        raise ValueError("not a message")
    ((word, raw),) = message.items()
    return from_plain(words[word], raw) if word in words else None


def read(words: Mapping[str, type[Any]], data: bytes) -> Any:
    """What a child said; None for a word of a later version. Raise ValueError for what makes no sense."""
    said = decode(words, data)
    if isinstance(said, Guard) and len(said.keys) > MOST_KEYS:
        raise ValueError(f"more than {MOST_KEYS} keys")
    return said


def write(word: str, what: object) -> bytes:
    """A message. Raise ValueError if it is too long."""
    data = json.dumps({word: to_plain(what)}, separators=(",", ":")).encode()
    if len(data) > MOST_BYTES:
        raise ValueError(f"a message of {len(data)} bytes")
    return data
