"""What the governor and the arbiter say to each other (memscaler/child/link.py tells how).

What the arbiter says is in memscaler/daemon/arbiter_words.py, because the governor reads it.

    governor -> arbiter: seen, settings, read, resumed, end
    arbiter -> governor: guard, look, gpuctl, done

The urgent channel, a second pair, has other words: memscaler/daemon/urgent.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from memscaler.child import link
from memscaler.child.link import End, Resumed, Seen
from memscaler.config.gpuctl import GpuctlRule, Gvm
from memscaler.daemon.arbiter_words import WORDS, Word
from memscaler.daemon.child_words import decode, write


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings. gpu_names: UUIDs by what a rule may call a GPU ("gpu0")."""

    rules: tuple[GpuctlRule, ...] = ()
    gvm: Gvm = field(default_factory=Gvm)
    gpu_names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Read:
    """Somebody wants to know how things are now: tell `gpuctl` soon, within 0.2 s. id: of `done`, which follows it."""

    id: int


FromGovernor = Seen | Rules | Read | Resumed | End
_FROM_GOVERNOR: Mapping[str, type[Any]] = {**link.COMMON, "settings": Rules, "read": Read}

FromArbiter = Word
Link = link.Link[FromArbiter]
_WORDS = {kind: word for table in (_FROM_GOVERNOR, WORDS) for word, kind in table.items()}


def encode(message: FromGovernor | FromArbiter) -> bytes:
    """The bytes of a message. Raise ValueError if it is too long."""
    return write(_WORDS[type(message)], message)


def from_governor(data: bytes) -> FromGovernor | None:
    """What the governor said; None for words that we do not know. Raise ValueError."""
    made: FromGovernor | None = decode(_FROM_GOVERNOR, data)
    return made
