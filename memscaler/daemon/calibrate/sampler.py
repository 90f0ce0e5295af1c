"""Power, energy and clocks of one GPU, many times a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from memscaler.core.calibration import AVERAGE, BACK_SHARE, INSTANT, Sample
from memscaler.core.errors import GpuError, GpuLost
from memscaler.gpu import nvml, nvml_calls
from memscaler.gpu.inventory import Device
from memscaler.gpu.levers import GRAPHICS_CLOCK, MEMORY_CLOCK, Lever

Value = TypeVar("Value")

EVERY_S = 0.02  # cards update these figures ten to fifty times a second
MOST_SHARE = 4  # times what one look takes: a slow driver is to have time for the clock
AMPERE = 7  # since then the usual power reading may be an average over one second


class Sampler:
    """alive_s: when it last took part (time.monotonic); for whoever looks whether the driver hangs."""

    def __init__(self, device: Device) -> None:
        self._handle = device.handle
        self.samples: list[Sample] = []
        self._took_s = 0.0
        self.alive_s = self.looked_s = time.monotonic()
        instant_w = self._told(nvml.instant_power_w)
        self._power_w = nvml.power_w if instant_w is None else nvml.instant_power_w
        averages = instant_w is None and (device.capabilities.architecture or AMPERE) >= AMPERE
        self.power_source = "" if self._told(self._power_w) is None else AVERAGE if averages else INSTANT

    def take(self) -> None:
        """One look. Raise GpuLost."""
        at_s = time.monotonic()
        self.samples.append(
            Sample(
                at_s,
                self._told(self._power_w),
                self._told(nvml.energy_j),
                self._told(partial(nvml.clock_mhz, kind=nvml.MEMORY)),
                self._told(partial(nvml.clock_mhz, kind=nvml.GRAPHICS)),
            )
        )
        self.alive_s = time.monotonic()
        self._took_s = self.alive_s - at_s

    def take_if_due(self) -> None:
        """The same, every EVERY_S. Between two looks at a lever's clock: notes the time of the first of them."""
        self.looked_s = self.alive_s = time.monotonic()
        if not self.samples or self.looked_s - self.samples[-1].at_s >= max(EVERY_S, MOST_SHARE * self._took_s):
            self.take()

    def forget(self, before_s: float) -> None:
        """Samples from before this time are not needed any more."""
        self.samples = [each for each in self.samples if each.at_s >= before_s]

    def clock_of(self, lever: Lever) -> Callable[[], float | None]:
        """What this lever moves, the higher the faster; None where the driver does not tell."""
        if lever.name == MEMORY_CLOCK:
            return partial(self._told, partial(nvml.clock_mhz, kind=nvml.MEMORY))
        if lever.name == GRAPHICS_CLOCK:
            return partial(self._told, partial(nvml.clock_mhz, kind=nvml.GRAPHICS))
        return self._speed

    def _speed(self) -> float | None:
        """Of a performance state: P0 is the fastest."""
        state = self._told(nvml.pstate)
        return None if state is None else -float(state)

    def _told(self, ask: Callable[[nvml_calls.Handle], Value]) -> Value | None:
        try:
            return ask(self._handle)
        except GpuLost:
            raise
        except GpuError:
            return None


def is_back(now: float | None, before: float | None) -> bool:
    """The clock is where it was before the park. before: as `clock_of` tells it; None: nobody knows."""
    if now is None or before is None:
        return False
    return now >= (before * BACK_SHARE if before > 0 else before)
