"""What to govern: which GPUs, and with which levers. Asked once, at the start; which ports drive them may change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import structlog

from memscaler.config.load import for_gpu
from memscaler.config.ports import Watch
from memscaler.config.schema import GpuSettings, Settings
from memscaler.core.errors import ConfigError, GpuError, GpuUnsupported, Unavailable, UsageError
from memscaler.gpu.capability import Choice, choose
from memscaler.gpu.inventory import Device, Driver, resolve

log = structlog.get_logger()

FLAG = "--"  # how the origin of a flag begins
Named = Mapping[Watch, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Governed:
    """A GPU that some port drives, with the levers chosen for it."""

    device: Device
    choice: Choice
    settings: GpuSettings

    @property
    def lever(self) -> str:
        """The name of the lever that is tried first."""
        return self.choice.levers[0].name if self.choice.levers else "none"


def find_named(settings: Settings, driver: Driver) -> Named:
    """The watches whose GPUs the operator has named -> UUIDs.

    Raise UsageError for a GPU that is not there, or ConfigError with its place if no flag has named it.

    A GPU that has fallen off the bus must not keep the others from being governed: it is left out, with an error.
    """
    named = {}
    for watch in settings.watches:
        if watch.gpus:
            place = settings.origins.get(f"watch.{replace(watch, gpus=())}", settings.origins.get("watch", FLAG))
            devices = _present(watch.gpus, driver, place)
            named[watch] = tuple(dict.fromkeys(device.identity.uuid for device in devices))
    return named


def _present(specs: Iterable[str], driver: Driver, place: str) -> Iterator[Device]:
    """place: where they are named."""
    for spec in specs:
        try:
            yield resolve(spec, driver.gpus, driver.lost)
        except UsageError as error:
            if not driver.lost:
                if place.startswith(FLAG):
                    raise
                raise ConfigError(f"{place}: {error}", hint=error.hint) from error
            log.error("gpu.left_out", gpu=spec, err=str(error), lost=[lost.reason for lost in driver.lost])


def contexts(driver: Driver) -> dict[str, frozenset[int]]:
    """UUID -> the pids that have a context there. A GPU that does not answer has no users just now."""
    found = {}
    for device in driver.gpus:
        with contextlib.suppress(GpuError):
            found[device.identity.uuid] = device.processes()
    return found


def wanted_lever(device: Device, driver: Driver, settings: Settings) -> str:
    """The lever that the configuration asks for on this GPU. Raise UsageError if it names a GPU that is not there."""
    names = [name for name in settings.gpus if resolve(name, driver.gpus, driver.lost) == device]
    return for_gpu(settings, names).lever


def find_governed(settings: Settings, driver: Driver, named: Named) -> dict[str, Governed]:
    """UUID -> GPU: those that are named, or all where servers are to be found.

    Raise Unavailable if none of them can be parked, unless their servers may sleep deeper.
    """
    overrides = {
        device.identity.uuid: name
        for name in settings.gpus
        for device in _present([name], driver, settings.origins.get(f"gpu.{name}", FLAG))
    }
    finds_out = settings.discover or len(named) < len(settings.watches)
    wanted = {uuid for uuids in named.values() for uuid in uuids}
    governed = {}
    for device in driver.gpus:
        uuid = device.identity.uuid
        if finds_out or uuid in wanted:
            mine = for_gpu(settings, [overrides[uuid]] if uuid in overrides else [])
            governed[uuid] = Governed(device, _choose(device, mine.lever), mine)
    if not any(each.choice.levers for each in governed.values()) and not (governed and settings.stages):
        reasons = "; ".join(f"gpu{each.device.identity.index}: {each.choice.why}" for each in governed.values())
        raise Unavailable(f"no GPU here can be parked ({reasons or 'all are lost'})", hint="see `memscaler gpus`")
    return governed


def _choose(device: Device, lever: str) -> Choice:
    """A lever that was asked for and is not there makes this GPU unmanaged, and no other."""
    try:
        return choose(device, lever)
    except GpuUnsupported as error:
        return Choice((), str(error), unsure=bool(device.capabilities.doubts))
