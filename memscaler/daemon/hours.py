"""Times of the week at which nothing is parked (never_park), or parked sooner (quiet_hours)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from memscaler.config import hours
from memscaler.config.schema import GpuSettings
from memscaler.core.model import FOR_EVER_NS, Hold, Observation, Unhold

OWNER = "never_park"


class Hours:
    """Which of them it is now, for every GPU. Used by the loop's thread."""

    def __init__(self, feed: Callable[[Observation], None]) -> None:
        self._feed = feed
        self._settings: Mapping[str, GpuSettings] = {}
        self._held: dict[str, float | None] = {}  # GPU -> until, in seconds since 1970
        self.quiet: frozenset[str] = frozenset()
        """The GPUs for which quiet hours are on."""

    def govern(self, settings: Mapping[str, GpuSettings]) -> None:
        """What the GPUs go by now; follow with `look`."""
        self._settings = settings
        self._held = {gpu: until for gpu, until in self._held.items() if gpu in settings}

    def left_s(self, gpu: str) -> float | None:
        """How long a GPU is not to be parked yet; None: it may be, or nobody knows."""
        until_unix_s = self._held.get(gpu)
        return None if until_unix_s is None else max(0.0, until_unix_s - time.time())

    def look(self) -> float | None:
        """Hold and let go as the clock says. When to look again, in seconds since 1970; None: nothing will change."""
        now_unix_s = time.time()
        quiet, changes = set(), []
        for gpu, mine in self._settings.items():
            held, until_unix_s = hours.within(mine.never_park, now_unix_s)
            is_quiet, quiet_until_unix_s = hours.within(mine.quiet_hours, now_unix_s)
            changes += [until_unix_s, quiet_until_unix_s]
            if is_quiet:
                quiet.add(gpu)
            was_held = gpu in self._held
            if held:
                self._held[gpu] = until_unix_s
            if held and not was_held:
                self._feed(Hold(gpu, OWNER, FOR_EVER_NS))
            elif was_held and not held:
                del self._held[gpu]
                self._feed(Unhold(gpu, OWNER))
        self.quiet = frozenset(quiet)
        return min((change for change in changes if change is not None), default=None)
