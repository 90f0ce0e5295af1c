"""Silence on open connections: who listens for it when. While a GPU is down the data hook does, else now and then we.

See kernel/traffic.py for what is judged, and docs/activity.md for what it means.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from memscaler.core import governor
from memscaler.core.model import SECOND_NS, GovernorState, GpuState, Phase, Policy
from memscaler.kernel.ledger import Ledger

EVERY_NS = 2 * SECOND_NS  # what is said in between counts as one
_RELIED_ON = governor.DOWN | {Phase.ARMING}
_RESTING = frozenset({Phase.AWAKE, Phase.COOLING})


class Listening:
    """Plans the looks at what was said on open connections. `due_ns` 0: none is planned. Used by the loop's thread."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.due_ns = 0
        self.guarded: frozenset[int] = frozenset()
        """The watches that are kept armed for our children: the data hook listens to them whatever their GPUs do."""

    def slots(self, state: GovernorState, policy: Policy) -> list[int]:
        """The watches of GPUs that are up whose connections are to be looked at now. Forgets the plan."""
        self.due_ns = 0
        relied_on = self._relied_on(state, policy)
        return [slot for slot in self._ledger.silence.needs_listening() if slot not in relied_on]

    def unheard(self, slots: Collection[int], state: GovernorState, policy: Policy) -> list[int]:
        """Of these watches, those to which no hook listens, so that only a look tells what was said."""
        relied_on = self._relied_on(state, policy)
        return [slot for slot in slots if slot not in relied_on]

    def plan(self, state: GovernorState, policy: Policy) -> None:
        """The data hook stays while somebody relies on it; without it we look again soon, if that may matter."""
        relied_on = self._relied_on(state, policy)
        if self._ledger.data_hook.attached and not relied_on:
            self._ledger.silence.stop_listening()
        if not self.due_ns:
            resting = _slots(state, policy, lambda gpu: gpu.phase in _RESTING and not gpu.distrust)
            if resting & set(self._ledger.silence.needs_listening()) - relied_on:
                self.due_ns = time.monotonic_ns() + EVERY_NS

    def _relied_on(self, state: GovernorState, policy: Policy) -> set[int]:
        guarded = {slot for slot in self.guarded if self._ledger.counters.is_armed(slot)}
        return _slots(state, policy, lambda gpu: gpu.phase in _RELIED_ON) | guarded


def _slots(state: GovernorState, policy: Policy, wanted: Callable[[GpuState], bool]) -> set[int]:
    mine = [policy.gpus[uuid].watches for uuid, gpu in state.gpus.items() if wanted(gpu)]
    return set().union(*mine)
