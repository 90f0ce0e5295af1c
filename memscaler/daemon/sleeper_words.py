"""What the sleeper may say to the governor, beside what every child may (child_words.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memscaler.core.stages import Sleep
from memscaler.daemon import child_words
from memscaler.daemon.child_words import Done, Guard, Look

Endpoint = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Announce:
    """A connection of ours is about to be made, from `local` to `to`; it is nobody's work. Wait for `announced`.

    key: of the server that it goes to.
    """

    id: int
    key: str
    local: Endpoint
    to: Endpoint


@dataclass(frozen=True, slots=True)
class Forget:
    """That connection is over. id: of its announcement."""

    id: int


Word = Guard | Look | Announce | Forget | Done | Sleep
WORDS: Mapping[str, type[Any]] = {**child_words.COMMON, "announce": Announce, "forget": Forget, "sleep": Sleep}


def read(data: bytes) -> Word | None:
    """What the sleeper said; None for a word of a later version. Raise ValueError for what makes no sense."""
    said: Word | None = child_words.read(WORDS, data)
    return said
