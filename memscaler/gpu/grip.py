"""What an actuator holds its GPU by: a handle, the levers made for it, and how to get fresh ones after a failure.

Handles go stale: the driver is reloaded, the GPU is reset, or it falls off the bus and comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from memscaler.core.errors import GpuError, GpuUnsupported
from memscaler.gpu.capability import AUTO, choose
from memscaler.gpu.inventory import Device, Driver
from memscaler.gpu.levers import DryRunLever, Lever, rebuild


@dataclass(frozen=True, slots=True)
class Reopening:
    """Where a fresh handle comes from, and the lever that the operator wants now."""

    driver: Driver
    lever: str = AUTO


class Grip:
    """The handle and the levers of one GPU. Used by one thread; its calls may block like any driver call.

    failed: since the handle was looked up a call has failed, so it may be stale.
    """

    def __init__(
        self,
        device: Device,
        levers: tuple[Lever, ...],
        reopening: Reopening | None = None,
        pretend: Callable[[str], None] | None = None,
    ) -> None:
        """pretend: told what a dry run would do; None: it is none."""
        self.device = device
        self.failed = False
        self._reopening = None if pretend else reopening
        self._wanted = reopening.lever if reopening else AUTO
        self._pretend = pretend
        self._levers = self._dressed(levers)
        self._made_for = device
        self._next = 0  # index of the lever that the next park uses
        if self._reopening is not None:
            self._reopening.driver.use(device.identity.uuid)

    def let_go(self) -> None:
        """The GPU is no longer ours."""
        if self._reopening is not None:
            self._reopening.driver.disuse(self.device.identity.uuid)

    @property
    def lever(self) -> Lever | None:
        """The lever that the next park uses; None if none is left."""
        return self._levers[self._next] if self._next < len(self._levers) else None

    def use(self, levers: tuple[Lever, ...], wanted: str | None) -> None:
        """Take these instead. Called by another thread: whoever looks in between sees the first lever of before."""
        self._wanted = wanted or self._wanted
        self._next = 0
        self._levers = self._dressed(levers)

    def give_up(self) -> None:
        """That lever does not work here."""
        self._next += 1

    def reopen(self) -> bool:
        """Look the GPU up again. False if that cannot be done here; raise GpuError if it fails."""
        if self._reopening is None:
            return False
        self.device = self._reopening.driver.reopen(self.device.identity.uuid)
        self.failed = False
        return True

    def rebuilt(self, lever: Lever | None) -> Lever | None:
        """The same lever for the handle of now; itself if that cannot be had."""
        if lever is None or self._reopening is None:
            return lever
        try:
            return rebuild(self.device, lever.name)
        except GpuError:
            self.failed = True
            return lever

    def needs_choice(self) -> bool:
        """True after a failure, and if no lever is left: what was so some time ago may not be so now."""
        return self.failed or self.lever is None or self._made_for is not self.device

    def choose_again(self) -> None:
        """Look the GPU up and choose its levers again. Raise GpuError, with the reason, if there are none."""
        if self._reopening is not None:
            self.device = self._reopening.driver.reopen(self.device.identity.uuid, probe=True)
            choice = choose(self.device, self._wanted)
            if not choice.levers:
                raise GpuUnsupported(choice.why)
            given_up = {lever.name for lever in self._levers[: self._next]}
            # Those come first, where they are over and done with; the others keep their order.
            self._levers = self._dressed(tuple(sorted(choice.levers, key=lambda lever: lever.name not in given_up)))
            self._next = sum(lever.name in given_up for lever in choice.levers)
        self._made_for = self.device
        self.failed = False
        if self.lever is None:
            self._next = 0

    def _dressed(self, levers: tuple[Lever, ...]) -> tuple[Lever, ...]:
        if self._pretend is None:
            return levers
        return tuple(DryRunLever(lever, self._pretend) for lever in levers)
