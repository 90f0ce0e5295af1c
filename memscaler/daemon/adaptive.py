"""`idle_after = "auto"`: what was learned of each GPU (core/adaptive.py), fed by its history and by each gap that ends.

It never wakes up by itself, and changes nothing but the idle time and the dwell of a GPU's policy: after a gap, when
the GPU works again anyway.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import structlog

from memscaler.config.schema import GpuSettings
from memscaler.core import adaptive
from memscaler.core.adaptive import Learned, Limits
from memscaler.core.calibration import Calibration
from memscaler.core.costs import ASSUMED, Costs
from memscaler.core.gaps import Gap

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
        """What parking costs, as it was measured; in force at once."""
        self._calibrations = known
        self._decide()

    def govern(self, settings: Mapping[str, GpuSettings]) -> None:
        """What the GPUs go by now. What was learned of those that stay is kept."""
        self._settings = settings
        self._learned = {uuid: known for uuid, known in self._learned.items() if uuid in settings}
        for uuid, mine in settings.items():
            if uuid not in self._learned:
                self._learned[uuid] = adaptive.begin(self._costs(uuid), limits(mine), _local_s(time.time()))
        self._decide()

    def unknown(self, settings: Mapping[str, GpuSettings]) -> Mapping[str, GpuSettings]:
        """Those of these GPUs of which nothing is known here. May be called by any thread."""
        return {uuid: mine for uuid, mine in settings.items() if uuid not in self._learned}

    def recall(self, gaps: Mapping[str, Sequence[tuple[float, float]]]) -> None:
        """Those of earlier runs: (start in seconds since 1970, length in seconds). Takes long; see `remember`."""
        self.remember(learned(gaps, self._settings, self._calibrations))

    def remember(self, known: Mapping[str, Learned]) -> None:
        """What was learned by `learned`, of GPUs that are governed and have learned less since."""
        for uuid, mine in known.items():
            if uuid in self._learned and mine.gaps > self._learned[uuid].gaps:
                rules, now_s = limits(self._settings[uuid]), _local_s(time.time())
                self._learned[uuid] = adaptive.decide(mine, self._costs(uuid), rules, now_s)

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
        return adaptive.why(known, limits(mine))

    def _decide(self) -> None:
        """Anew, with the costs and limits of now."""
        now_s = _local_s(time.time())
        for uuid, mine in self._learned.items():
            now = adaptive.decide(mine, self._costs(uuid), limits(self._settings[uuid]), now_s)
            self.changed |= not self._settings[uuid].idle_after_s and now.decision != mine.decision
            self._learned[uuid] = now

    def _learn(self, uuid: str, start_s: float, gap_s: float) -> None:
        rules = limits(self._settings[uuid])
        self._learned[uuid] = adaptive.learn(self._learned[uuid], start_s, gap_s, self._costs(uuid), rules)

    def _costs(self, uuid: str) -> Costs:
        costs = _costs(self._calibrations.get(uuid))
        awake_w, parked_w = self.watts(uuid)
        if costs.source != ASSUMED.source or awake_w is None or parked_w is None or awake_w <= parked_w:
            return costs
        return replace(costs, awake_w=awake_w, parked_w=parked_w, source="observed")


def _nobody_knows(_: str) -> tuple[None, None]:
    return None, None


def learned(
    gaps: Mapping[str, Sequence[tuple[float, float]]],
    settings: Mapping[str, GpuSettings],
    calibrations: Mapping[str, Calibration],
) -> dict[str, Learned]:
    """From nothing, with gaps of earlier runs. A second for thousands: not for the loop's thread while it governs."""
    found = {}
    for uuid, mine in gaps.items():
        if mine and uuid in settings:
            costs, rules = _costs(calibrations.get(uuid)), limits(settings[uuid])
            known = adaptive.begin(costs, rules, _local_s(mine[0][0]))
            for start_unix_s, gap_s in mine:
                known = adaptive.learn(known, _local_s(start_unix_s), gap_s, costs, rules)
            found[uuid] = known
    if found:
        log.info("gaps.recalled", gaps={uuid: known.gaps for uuid, known in found.items()})
    return found


def _costs(calibration: Calibration | None) -> Costs:
    return ASSUMED if calibration is None else calibration.costs()


def limits(mine: GpuSettings) -> Limits:
    """What its operator has set."""
    return Limits(float(mine.wait_price), float(mine.wakes_per_hour), mine.min_dwell_s)


def _local_s(unix_s: float) -> float:
    """On the clock of the wall, which decides what hour it is."""
    return unix_s + time.localtime(unix_s).tm_gmtoff
