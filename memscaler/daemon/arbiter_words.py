"""What the arbiter may say to the governor, beside what every child may (child_words.py): how things are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memscaler.core.gpuctl import Gpuctl
from memscaler.daemon import child_words
from memscaler.daemon.child_words import Done, Guard, Look

Word = Guard | Look | Done | Gpuctl
WORDS: Mapping[str, type[Any]] = {**child_words.COMMON, "gpuctl": Gpuctl}


def read(data: bytes) -> Word | None:
    """What the arbiter said; None for a word of a later version. Raise ValueError for what makes no sense."""
    said: Word | None = child_words.read(WORDS, data)
    return said
