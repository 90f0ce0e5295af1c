"""What may be asked of the sleeper through the governor's control socket. The answers are the sleeper's.

WakeWanted      members of the group may, too: it only brings back what the ladder has taken down
SleepWanted     down to a stage now, without waiting for its time
SuspendWanted   of the machine: suspend it now, never, or allow it again
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from memscaler.core.stages import LADDER, Stage


class Who(Protocol):
    """Who asks, by name."""

    @property
    def name(self) -> str: ...


@dataclass(frozen=True, slots=True)
class WakeWanted:
    """Leave every stage. servers: names or ports, (): all."""

    servers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SleepWanted:
    """Enter a stage now. stage "": the next one. servers (): all."""

    servers: tuple[str, ...] = ()
    stage: str = ""


@dataclass(frozen=True, slots=True)
class SuspendWanted:
    """do: suspend, never, allow. for_s: so long never; None: until it is allowed again. wake_unix_s: an alarm.

    force: also against inhibitors and clients.
    """

    do: str = "suspend"
    for_s: float | None = None
    reason: str = ""
    force: bool = False
    wake_unix_s: float | None = None


SUSPEND_WORDS = ("suspend", "never", "allow")
STAGES = tuple(str(stage) for stage in LADDER if stage is not Stage.PARK)


def words_of(request: WakeWanted | SleepWanted | SuspendWanted, peer: Who) -> tuple[str, dict[str, Any]]:
    """What the sleeper is asked, in its words (memscaler/sleep/link.py, Do)."""
    match request:
        case WakeWanted(servers):
            return "wake", {"servers": servers, "by": peer.name}
        case SleepWanted(servers, stage):
            return "sleep", {"servers": servers, "stage": stage or None, "by": peer.name}
        case SuspendWanted(do, for_s, reason, force, wake_unix_s):
            more = {"for_s": for_s, "reason": reason, "force": force, "wake_unix_s": wake_unix_s}
            return do, {**more, "by": peer.name}
