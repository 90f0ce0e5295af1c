"""What the parts know together: the snapshot, and what is told of one GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from memscaler.core.model import SECOND_NS, Phase
from memscaler.core.snapshot import Intent, Snapshot
from memscaler.daemon import hours, verify
from memscaler.daemon.adaptive import Adaptive
from memscaler.daemon.fleet import Fleet
from memscaler.daemon.governing import Governing
from memscaler.daemon.hours import Hours
from memscaler.daemon.portrait import About
from memscaler.daemon.record import Recorder
from memscaler.daemon.steering import Steering


class Known(Protocol):
    """What it asks besides. is_journaled: whether the journal says that a GPU is parked."""

    @property
    def is_journaled(self) -> Callable[[str], bool]: ...

    @property
    def adaptive(self) -> Adaptive: ...


class Teller:
    """Used by the loop's thread, but for `know`."""

    def __init__(
        self,
        governing: Governing,
        fleet: Fleet,
        recorder: Recorder,
        hours_: Hours,
        steering: Steering,
        parts: Known,
    ) -> None:
        self._governing, self._fleet = governing, fleet
        self._recorder, self._hours, self._steering = recorder, hours_, steering
        self._is_journaled, self._adaptive = parts.is_journaled, parts.adaptive

    def snapshot(self, at_ns: int) -> Snapshot | None:
        """Everything, at a time (CLOCK_MONOTONIC); None: it cannot be made."""
        return self._recorder.snapshot(
            self._governing.state, self._governing.ledger, at_ns, self._about, self._steering.paused()
        )

    def know(self, uuid: str) -> verify.Known:
        """For any thread: it only looks."""
        state, governed = self._governing.state.gpus.get(uuid), self._fleet.governed.get(uuid)
        clocks_mhz = () if governed is None else governed.device.capabilities.memory_clocks_mhz
        is_journaled = self._is_journaled(uuid)
        if state is None:
            return verify.Known(Phase.STOPPED, clocks_mhz, is_journaled)
        trouble = state.distrust or (state.alarmed if state.retries else "")
        return verify.Known(state.phase, clocks_mhz, is_journaled, trouble, state.retries)

    def _about(self, uuid: str) -> About:
        actuator, gpu = self._fleet[uuid], self._governing.state.gpus[uuid]
        lever = actuator.lever  # not the first choice if that turned out not to work
        holds = tuple(
            replace(hold, left_s=self._hours.left_s(uuid)) if hold.reason == hours.OWNER and not hold.id else hold
            for hold in self._steering.holds_of(uuid, gpu)
        )
        parked_with = actuator.parked_with if gpu.phase is Phase.PARKED else None
        intent = Intent(parked_with.name, parked_with.target) if parked_with is not None else None
        idle_after_s = self._governing.policy.gpus[uuid].idle_after_ns / SECOND_NS
        lever_name = "none" if lever is None else lever.name
        return About(lever_name, holds, intent, idle_after_s, self._adaptive.why(uuid))
