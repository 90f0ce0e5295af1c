"""`idle_after = "auto"`: what was learned of each GPU (core/adaptive.py), fed by its history and by each gap that ends.

It never wakes up by itself, and changes nothing but the idle time and the dwell of a GPU's policy: after a gap, when
the GPU works again anyway.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import structlog

from memscaler.config.schema import GpuSettings
from memscaler.core import adaptive
from memscaler.core.adaptive import Learned, Limits
from memscaler.core.calibration import Calibration
from memscaler.core.costs import ASSUMED, Costs
from memscaler.core.errors import MemscalerError
from memscaler.core.gaps import Gap
from memscaler.history.reader import open_history

MOST_GAPS = 4000  # of all GPUs, that are recalled at the start
FEWEST_GAPS = 200  # of one

Watts = Callable[[str], tuple[float | None, float | None]]
log = structlog.get_logger()


class Adaptive:
    """Used by the loop's thread. Also GPUs with an idle time of their own are learned about: a reload may change that.

    watts: tells those of a GPU while awake and quiet, and while parked, as the energy account has seen them.
    """

    def __init__(self) -> None:
        self.watts: Watts = _nobody_knows
        self._calibrations: Mapping[str, Calibration] = {}
        self._settings: Mapping[str, GpuSettings] = {}
        self._learned: dict[str, Learned] = {}
        self.changed = False
        """A GPU that goes by it has another idle time or dwell than before, until somebody has taken notice."""

    def calibrated(self, known: Mapping[str, Calibration]) -> None:
        """What parking costs, as it was measured; in force from the next gap on."""
        self._calibrations = known

    def govern(self, settings: Mapping[str, GpuSettings]) -> None:
        """What the GPUs go by now. What was learned of those that stay is kept."""
        self._settings = settings
        self._learned = {uuid: known for uuid, known in self._learned.items() if uuid in settings}
        for uuid, mine in settings.items():
            if uuid not in self._learned:
                self._learned[uuid] = adaptive.begin(self._costs(uuid), _limits(mine), _local_s(time.time()))

    def recall(self, state_dir: Path) -> None:
        """The gaps of the history. Without one, or with one that cannot be read, nothing is known yet."""
        most = max(FEWEST_GAPS, MOST_GAPS // max(1, len(self._settings)))
        found: dict[str, int] = {}
        try:
            with open_history(state_dir) as history:
                for uuid in self._settings:
                    gaps = history.gaps(uuid, most=most)
                    found[uuid] = len(gaps)
                    for start_unix_s, gap_s in gaps:
                        self._learn(uuid, _local_s(start_unix_s), gap_s)
        except MemscalerError as error:
            log.info("gaps.unknown", why=str(error))
        if any(found.values()):
            log.info("gaps.recalled", gaps=found)

    def gap(self, gap: Gap) -> None:
        """It has ended."""
        before = self._learned.get(gap.gpu)
        if before is None:
            return
        ago_s = (time.monotonic_ns() - gap.start_ns) / 1e9
        self._learn(gap.gpu, _local_s(time.time() - ago_s), gap.length_s)
        now = self._learned[gap.gpu].decision
        if not self._settings[gap.gpu].idle_after_s and replace(now, by=before.decision.by) != before.decision:
            self.changed = True

    def idle_after_s(self, uuid: str) -> float:
        """The idle time, in seconds. Follow `changed`."""
        return self._learned[uuid].decision.idle_after_s

    def min_dwell_s(self, uuid: str) -> float:
        """The shortest time between two parks, in seconds."""
        return self._learned[uuid].decision.min_dwell_s

    def why(self, uuid: str) -> str:
        """The reason of the idle time, in words; "" for a GPU that has one of its own."""
        mine, known = self._settings.get(uuid), self._learned.get(uuid)
        if mine is None or known is None or mine.idle_after_s:
            return ""
        return adaptive.why(known, _limits(mine))

    def _learn(self, uuid: str, start_s: float, gap_s: float) -> None:
        limits = _limits(self._settings[uuid])
        self._learned[uuid] = adaptive.learn(self._learned[uuid], start_s, gap_s, self._costs(uuid), limits)

    def _costs(self, uuid: str) -> Costs:
        calibration = self._calibrations.get(uuid)
        costs = ASSUMED if calibration is None else calibration.costs()
        awake_w, parked_w = self.watts(uuid)
        if costs.source != ASSUMED.source or awake_w is None or parked_w is None or awake_w <= parked_w:
            return costs
        return replace(costs, awake_w=awake_w, parked_w=parked_w, source="observed")


def _nobody_knows(_: str) -> tuple[None, None]:
    return None, None


def _limits(mine: GpuSettings) -> Limits:
    return Limits(float(mine.wait_price), float(mine.wakes_per_hour), mine.min_dwell_s)


def _local_s(unix_s: float) -> float:
    """On the clock of the wall, which decides what hour it is."""
    return unix_s + time.localtime(unix_s).tm_gmtoff
