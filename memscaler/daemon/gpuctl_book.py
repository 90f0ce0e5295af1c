"""What is kept of the arbiter's reports for telling: its totals, however often it was started. It decides nothing.

Fed by the recorder, in the loop's thread. Where there is no arbiter nothing is ever told, and nothing is kept.
"""

from __future__ import annotations

from dataclasses import replace

from memscaler.core.gpuctl import Gpuctl, RuleState

MOST_RULES = 256  # whose totals are kept


class GpuctlBook:
    """Of one run of the governor."""

    def __init__(self) -> None:
        self.gpuctl = Gpuctl()
        """The last report, with totals since the governor started."""
        self._pid: int | None = None  # whose totals are told now
        self._before: dict[str, RuleState] = {}  # what earlier arbiters have told, added up
        self._own: dict[str, RuleState] = {}  # what this one has told last

    def told(self, gpuctl: Gpuctl) -> None:
        """The arbiter has reported, has been started, or runs no more (pid None)."""
        if gpuctl.pid is None or gpuctl.pid != self._pid:
            if gpuctl.pid is not None:
                self._begin(gpuctl.pid)
            # it passes on what was told last, without what was added here
            self.gpuctl = replace(gpuctl, rules=(self.gpuctl.rules or gpuctl.rules) if gpuctl.rules else ())
            return
        self._own = {rule.name: rule for rule in gpuctl.rules}
        self.gpuctl = replace(gpuctl, rules=tuple(self._whole(rule) for rule in gpuctl.rules))

    def _begin(self, pid: int) -> None:
        """The next one counts from 0."""
        whole = {name: self._whole(rule) for name, rule in self._own.items()}
        kept = {**whole, **{name: rule for name, rule in self._before.items() if name not in whole}}
        self._before = dict(list(kept.items())[:MOST_RULES])
        self._pid, self._own = pid, {}

    def _whole(self, rule: RuleState) -> RuleState:
        before = self._before.get(rule.name)
        if before is None:
            return rule
        return replace(
            rule,
            applied=rule.applied + before.applied,
            released=rule.released + before.released,
            failed=rule.failed + before.failed,
            seconds=rule.seconds + before.seconds,
        )
