"""The GPUs that are governed: what each goes by, the thread that parks and wakes it, and its ear at the doorbell."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from memscaler.core.errors import MemscalerError
from memscaler.core.model import SECOND_NS, GovernorState, LeverResult, Outcome, Policy
from memscaler.daemon.record import Recorder
from memscaler.daemon.targets import Governed
from memscaler.gpu.actuator import Actuator
from memscaler.kernel.doorbell import Door

HUNG_REMEDY = "see `dmesg | grep -i nvrm`; a driver that hangs for minutes is cured by a reboot"
CHECK_AFTER_NS = 3 * SECOND_NS  # an order's driver call has begun by then: is it overdue?


@dataclass(frozen=True, slots=True)
class Equipped:
    """A GPU that may be taken on. door: None where the kernel cannot ring."""

    actuator: Actuator
    door: Door | None


class Fleet:
    """Used by the loop's thread. equip: makes the actuator of a GPU; may raise OSError or RuntimeError."""

    def __init__(
        self, governed: Mapping[str, Governed], equip: Callable[[Governed], Equipped], recorder: Recorder
    ) -> None:
        self.governed = dict(governed)
        self._equip = equip
        self._recorder = recorder
        self._actuators: dict[str, Actuator] = {}
        self._doors: dict[str, Door] = {}
        self._wedged: dict[str, tuple[int, int]] = {}  # GPU -> (deadline, order) of a call that is known to hang
        self._check_due_ns = 0
        self.take_on(self.equip_all(self.governed))

    def __getitem__(self, uuid: str) -> Actuator:
        return self._actuators[uuid]

    def __iter__(self) -> Iterator[Actuator]:
        return iter(self._actuators.values())

    def equip_all(self, governed: Mapping[str, Governed]) -> dict[str, Equipped]:
        """For `take_on`. Raise MemscalerError if one cannot be; then there is none of them."""
        equipped: dict[str, Equipped] = {}
        try:
            for uuid, each in governed.items():
                equipped[uuid] = self._equip(each)
        except (OSError, RuntimeError) as error:  # no descriptor, no thread
            for made in equipped.values():
                made.actuator.close()
            raise MemscalerError(f"another GPU cannot be taken on: {error}") from error
        return equipped

    def take_on(self, equipped: Mapping[str, Equipped]) -> None:
        """From now on these are there too."""
        for uuid, each in equipped.items():
            self._actuators[uuid] = each.actuator
            if each.door is not None:
                self._doors[uuid] = each.door

    def let_go(self, uuid: str) -> None:
        """It is awake, and somebody else's."""
        self._actuators.pop(uuid).close()
        self._doors.pop(uuid, None)
        del self.governed[uuid]

    def hear(self, policy: Policy) -> None:
        """The doors listen to the watches that there are now."""
        for uuid, door in self._doors.items():
            door.watch(slot for slot in policy.gpus[uuid].watches if slot >= 0)

    def sample(self) -> None:
        """Every GPU is read; the readings come as reports."""
        for actuator in self:
            actuator.sample()

    # ---- calls that do not return ---------------------------------------------------------------------------------

    def expect_a_call(self) -> None:
        """An order was given: look whether its driver call returns."""
        self._check_due_ns = time.monotonic_ns() + CHECK_AFTER_NS

    def look_at_calls_ns(self, state: GovernorState) -> list[int]:
        """When to call `hung` (CLOCK_MONOTONIC)."""
        return [at_ns for _, at_ns in self._calls_due(state)] + [self._check_due_ns] * bool(self._check_due_ns)

    def hung(self, state: GovernorState, now_ns: int) -> Iterator[LeverResult]:
        """What the governor has to know of calls that are overdue; each is told once."""
        if now_ns >= self._check_due_ns:
            self._check_due_ns = 0
        for uuid, due_ns in self._calls_due(state):
            call = self._actuators[uuid].overdue(now_ns)
            if call is not None:
                seq = state.gpus[uuid].seq
                self._wedged[uuid] = due_ns, seq
                reason = f"the driver does not return from {call}"
                hung = LeverResult(uuid, seq, Outcome.WEDGED, reason, HUNG_REMEDY)
                self._recorder.lever_answered(hung)
                self._recorder.error(uuid, "hung", reason)
                yield hung

    def _calls_due(self, state: GovernorState) -> list[tuple[str, int]]:
        """(GPU, deadline) of the driver calls under way, without those already known to hang."""
        due = ((uuid, actuator.call_due_ns()) for uuid, actuator in self._actuators.items())
        seqs = {uuid: gpu.seq for uuid, gpu in state.gpus.items()}
        return [(uuid, at) for uuid, at in due if at is not None and self._wedged.get(uuid) != (at, seqs.get(uuid))]

    # ---- the end --------------------------------------------------------------------------------------------------

    def unproven(self) -> list[str]:
        """GPUs that are not known to be at full speed."""
        return [uuid for uuid, actuator in self._actuators.items() if not actuator.proven]

    def close(self) -> None:
        """Every thread ends when it has done what it was told."""
        for actuator in self:
            actuator.close()

    def join(self, end_s: float) -> bool:
        """True if all have ended by then (time.monotonic). One that hangs in the driver would make closing it hang."""
        ended = [actuator.join(max(0.0, end_s - time.monotonic())) for actuator in self]
        return all(ended)
