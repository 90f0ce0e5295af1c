"""What the governor and the sleeper say to each other (memscaler/child/link.py tells how).

What the sleeper says is in memscaler/daemon/sleeper_words.py, because the governor reads it.

    governor -> sleeper: seen, settings, do, resumed, announced, end
    sleeper -> governor: guard, look, announce, forget, sleep, done
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from memscaler.child import link
from memscaler.child.link import End, Resumed, Seen
from memscaler.config.gpuctl import Gvm
from memscaler.config.stages import StageRule, Suspend
from memscaler.core.stages import Stage
from memscaler.daemon.child_words import decode, write
from memscaler.daemon.sleeper_words import WORDS, Word

# ---- governor -> sleeper ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings. stages: in the ladder's order. gpu_names: UUIDs by what a StageRule may call a GPU ("gpu0").

    gvm: where it is, whose memory cannot be checkpointed.
    """

    stages: tuple[StageRule, ...] = ()
    suspend: Suspend = field(default_factory=Suspend)
    gpu_names: Mapping[str, str] = field(default_factory=dict)
    gvm: Gvm = field(default_factory=Gvm)


@dataclass(frozen=True, slots=True)
class Do:
    """An operator's or the gateway's wish.

    wake, sleep: of these servers (keys or names; (): all). stage: to go down to, None: the next one.
    suspend: now, with an alarm at wake_unix_s; force: whoever uses the machine or inhibits sleep.
    never, allow: suspending, for for_s seconds (None: until allowed again). by: who, for the log.
    """

    id: int
    what: Literal["wake", "sleep", "suspend", "never", "allow"]
    servers: tuple[str, ...] = ()
    stage: Stage | None = None
    for_s: float | None = None
    by: str = ""
    reason: str = ""
    force: bool = False
    wake_unix_s: float | None = None


@dataclass(frozen=True, slots=True)
class Announced:
    """Of one of our own connections: it counts for nobody now, or (ok is false) it would count."""

    id: int
    ok: bool = True


FromGovernor = Seen | Rules | Do | Resumed | Announced | End
_FROM_GOVERNOR: Mapping[str, type[Any]] = {
    **link.COMMON,
    "settings": Rules,
    "do": Do,
    "announced": Announced,
}


FromSleeper = Word
Link = link.Link[FromSleeper]
_WORDS = {kind: word for table in (_FROM_GOVERNOR, WORDS) for word, kind in table.items()}


def encode(message: FromGovernor | FromSleeper) -> bytes:
    """The bytes of a message. Raise ValueError if it is too long."""
    return write(_WORDS[type(message)], message)


def from_governor(data: bytes) -> FromGovernor | None:
    """What the governor said; None for words that we do not know. Raise ValueError."""
    made: FromGovernor | None = decode(_FROM_GOVERNOR, data)
    return made
