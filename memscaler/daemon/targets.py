"""What to govern: which GPUs are behind which ports, and with which levers. Asked once, at the start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import structlog

from memscaler.config.load import for_gpu
from memscaler.config.schema import GpuSettings, Settings
from memscaler.core.errors import GpuUnsupported, Unavailable, UsageError
from memscaler.core.model import SECOND_NS, GpuPolicy, Policy
from memscaler.gpu.capability import Choice, choose
from memscaler.gpu.inventory import Device, Driver, resolve
from memscaler.kernel.ledger import Ledger
from memscaler.kernel.listeners import processes_on
from memscaler.kernel.sock_diag import SockDiag

PARKED_LOOK_NS = 60 * SECOND_NS
PARKED_LOOK_LOSSY_NS = SECOND_NS  # where only the tracepoint sees opens

log = structlog.get_logger()

Ports = Mapping[int, tuple[Device, ...]]


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


def find_ports(settings: Settings, driver: Driver, diag: SockDiag) -> Ports:
    """Port -> GPUs. Raise UsageError for a GPU that is not there, Unavailable for one that cannot be found out.

    A GPU that has fallen off the bus must not keep the others from being governed: it is left out, with an error.
    """
    found = {}
    for watch in settings.watches:
        if watch.gpus:
            found[watch.port] = tuple(dict.fromkeys(_present(watch.gpus, driver)))
        else:
            found[watch.port] = _gpus_of_listener(watch.port, driver, diag)
    return found


def _present(specs: Iterable[str], driver: Driver) -> Iterator[Device]:
    for spec in specs:
        try:
            yield resolve(spec, driver.gpus, driver.lost)
        except UsageError as error:
            if not driver.lost:
                raise
            log.error("gpu.left_out", gpu=spec, err=str(error), lost=[lost.reason for lost in driver.lost])


def _gpus_of_listener(port: int, driver: Driver, diag: SockDiag) -> tuple[Device, ...]:
    pids = processes_on(diag, port)
    devices = tuple(device for device in driver.gpus if pids & device.processes())
    if devices:
        return devices
    why = "uses no GPU that the driver tells of" if pids else "is not there yet"
    raise Unavailable(
        f"port {port}: which GPUs it drives is unknown, its server {why}",
        hint=f"start the server first, or name them: --port {port}:gpu0",
    )


def find_governed(settings: Settings, driver: Driver, ports: Ports) -> dict[str, Governed]:
    """UUID -> GPU. Raise Unavailable if none of them can be parked."""
    overrides = {device.identity.uuid: name for name in settings.gpus for device in _present([name], driver)}
    governed = {}
    for device in dict.fromkeys(device for devices in ports.values() for device in devices):
        uuid = device.identity.uuid
        mine = for_gpu(settings, [overrides[uuid]] if uuid in overrides else [])
        governed[uuid] = Governed(device, _choose(device, mine.lever), mine)
    if not any(each.choice.levers for each in governed.values()):
        reasons = "; ".join(f"gpu{each.device.identity.index}: {each.choice.why}" for each in governed.values())
        raise Unavailable(f"no GPU here can be parked ({reasons or 'all are lost'})", hint="see `memscaler gpus`")
    return governed


def _choose(device: Device, lever: str) -> Choice:
    """A lever that was asked for and is not there makes this GPU unmanaged, and no other."""
    try:
        return choose(device, lever)
    except GpuUnsupported as error:
        return Choice((), str(error))


def watch_ports(ledger: Ledger, diag: SockDiag, ports: Ports, governed: Mapping[str, Governed]) -> Policy:
    """Start counting on every port; the policy says which counters matter to which GPU."""
    slots: dict[str, set[int]] = {uuid: set() for uuid in governed}
    for port, devices in ports.items():
        slot = ledger.watch(port, diag).slot
        for device in devices:
            slots[device.identity.uuid].add(slot)
    gpus = {
        uuid: GpuPolicy(
            frozenset(slots[uuid]),
            round(each.settings.idle_after_s * SECOND_NS),
            round(each.settings.min_dwell_s * SECOND_NS),
        )
        for uuid, each in governed.items()
    }
    lossless = ledger.attachment.sees_every_open
    return Policy(gpus, parked_look_ns=PARKED_LOOK_NS if lossless else PARKED_LOOK_LOSSY_NS)


def gpus_of_slot(policy: Policy) -> dict[int, tuple[str, ...]]:
    """Watch -> UUIDs."""
    slots = sorted({slot for gpu in policy.gpus.values() for slot in gpu.watches})
    return {slot: tuple(uuid for uuid, gpu in policy.gpus.items() if slot in gpu.watches) for slot in slots}
