"""The composition root: puts the parts together in the order in which they depend on each other, and takes them apart.

    lock -> (simulated driver) -> driver and inventory -> ports to GPUs -> levers -> restore what was left
         -> guardian -> kernel side -> actuators -> loop and metrics

Whatever fails on the way up fails before anything is parked, with one line that says what to do.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from memscaler import __version__, resources
from memscaler.config.load import for_gpu
from memscaler.config.schema import GpuSettings, Settings
from memscaler.core.errors import PermissionMissing, Unavailable, UsageError
from memscaler.core.model import SECOND_NS, GpuPolicy, Policy
from memscaler.core.snapshot import Snapshot
from memscaler.daemon import lock
from memscaler.daemon.guardian import JOURNAL, Guardian
from memscaler.daemon.loop import Loop, SnapshotWanted
from memscaler.daemon.mailbox import Mailbox
from memscaler.daemon.notify import Notifier
from memscaler.daemon.record import Facts, Recorder
from memscaler.gpu.actuator import Actuator
from memscaler.gpu.capability import Choice, choose
from memscaler.gpu.inventory import Device, Driver, open_driver, resolve
from memscaler.gpu.journal import Journal
from memscaler.gpu.reports import ActuatorPolicy
from memscaler.gpu.restore import restore
from memscaler.kernel import attachment
from memscaler.kernel.doorbell import Door
from memscaler.kernel.ledger import Ledger, own_namespace
from memscaler.kernel.listeners import processes_on
from memscaler.kernel.sock_diag import SockDiag
from memscaler.observe.server import MetricsServer

CAP_SYS_ADMIN = 21
SWITCH_INTERVAL_S = 1e-4  # a scrape being rendered may hold the interpreter that long, not the usual 5 ms
PARKED_LOOK_NS = 60 * SECOND_NS
PARKED_LOOK_LOSSY_NS = SECOND_NS  # where only the tracepoint sees opens

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Governed:
    """A GPU that some port drives, with the levers chosen for it."""

    device: Device
    choice: Choice
    settings: GpuSettings


def run(settings: Settings) -> int:
    """Govern until SIGTERM, SIGINT or SIGHUP. Exit status 0, or 1 if a GPU may still be parked.

    Raise MemscalerError for everything that keeps it from starting.
    """
    if not settings.watches:
        raise UsageError("no port to watch", hint="name one: memscaler run --port 8080:gpu0")
    _check_rights(settings)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    lock.prepare_runtime_dir(settings.runtime_dir)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, lock.acquire(settings.runtime_dir))
        environment = _simulate(settings)
        driver = stack.enter_context(open_driver())
        diag = own_namespace()
        ports = _ports(settings, driver, diag)
        governed = _governed(settings, driver, ports)
        journal = Journal(settings.runtime_dir / JOURNAL)
        _restore_left_behind(journal, driver)
        guardian = None if settings.dry_run else partial(Guardian, settings.runtime_dir, environment)
        ledger = stack.enter_context(_kernel_side(settings))
        loop = _compose(settings, driver, ledger, diag, ports, governed, journal, guardian, stack)
        gc.collect()
        gc.freeze()  # a full collection of all modules would take milliseconds, perhaps those before a wake
        well = loop.run()
        log.info("memscaler.stopped", every_gpu_awake=well)
        if not well:
            stack.pop_all()  # a hung driver call would hold up the clean-up too; the process ends instead
        return 0 if well else 1


def _compose(  # noqa: PLR0913  # the one place that knows every part
    settings: Settings,
    driver: Driver,
    ledger: Ledger,
    diag: SockDiag,
    ports: Mapping[int, tuple[Device, ...]],
    governed: Mapping[str, Governed],
    journal: Journal,
    guardian: Callable[[], Guardian] | None,
    stack: contextlib.ExitStack,
) -> Loop:
    mailbox = Mailbox()
    policy = _policy(ledger, diag, ports, governed)
    facts = Facts(
        version=__version__,
        driver_version=driver.driver_version,
        hostname=socket.gethostname(),
        dry_run=settings.dry_run,
        identities={uuid: each.device.identity for uuid, each in governed.items()},
        levers={uuid: each.choice.levers[0].name if each.choice.levers else "none" for uuid, each in governed.items()},
        gpus_of_slot=_gpus_of_slot(policy),
    )
    recorder = Recorder(facts, log)
    actuator_policy = ActuatorPolicy(settle_timeout_s=settings.settle_timeout_s, dry_run=settings.dry_run)
    actuators = {
        uuid: Actuator(
            each.device,
            each.choice.levers,
            journal,
            mailbox.put,
            actuator_policy,
            Door(ledger.attachment.fds["doorbell"], ledger.counters, policy.gpus[uuid].watches),
        )
        for uuid, each in governed.items()
    }
    if settings.metrics is not None:
        server = MetricsServer(settings.metrics.host, settings.metrics.port, partial(_ask, mailbox))
        server.start()
        stack.callback(server.stop)
        log.info("metrics.served", address="{}:{}".format(*server.address))
    loop = Loop(
        policy=policy,
        unmanaged={uuid: each.choice.why for uuid, each in governed.items() if not each.choice.levers},
        ledger=ledger,
        actuators=actuators,
        recorder=recorder,
        mailbox=mailbox,
        notifier=Notifier(),
        start_guardian=guardian,
        sample_every_ns=round(settings.sample_every_s * SECOND_NS),
    )
    _say_what_is_governed(settings, ledger, governed, policy)
    return loop


# ---- what to govern ------------------------------------------------------------------------------------------------


def _ports(settings: Settings, driver: Driver, diag: SockDiag) -> dict[int, tuple[Device, ...]]:
    """Port -> GPUs. Raise UsageError for a GPU that is not there, Unavailable for one that cannot be found out."""
    found = {}
    for watch in settings.watches:
        devices = [resolve(spec, driver.gpus, driver.lost) for spec in watch.gpus]
        found[watch.port] = tuple(dict.fromkeys(devices)) if devices else _gpus_of_listener(watch.port, driver, diag)
    return found


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


def _governed(settings: Settings, driver: Driver, ports: Mapping[int, tuple[Device, ...]]) -> dict[str, Governed]:
    overrides = {resolve(name, driver.gpus, driver.lost).identity.uuid: name for name in settings.gpus}
    governed = {}
    for device in dict.fromkeys(device for devices in ports.values() for device in devices):
        uuid = device.identity.uuid
        mine = for_gpu(settings, [overrides[uuid]] if uuid in overrides else [])
        governed[uuid] = Governed(device, choose(device, mine.lever), mine)
    if not any(each.choice.levers for each in governed.values()):
        reasons = "; ".join(f"gpu{each.device.identity.index}: {each.choice.why}" for each in governed.values())
        raise Unavailable(f"none of these GPUs can be parked ({reasons})", hint="see `memscaler gpus`")
    return governed


def _policy(
    ledger: Ledger, diag: SockDiag, ports: Mapping[int, tuple[Device, ...]], governed: Mapping[str, Governed]
) -> Policy:
    """Starts counting: the ports become watches here."""
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


def _gpus_of_slot(policy: Policy) -> dict[int, tuple[str, ...]]:
    slots = sorted({slot for gpu in policy.gpus.values() for slot in gpu.watches})
    return {slot: tuple(uuid for uuid, gpu in policy.gpus.items() if slot in gpu.watches) for slot in slots}


# ---- the parts -----------------------------------------------------------------------------------------------------


def _check_rights(settings: Settings) -> None:
    """Without CAP_SYS_ADMIN the driver refuses every lever: better said at the start than at the first park."""
    if settings.dry_run:
        return
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    if os.geteuid() != 0 and not effective >> CAP_SYS_ADMIN & 1:
        raise PermissionMissing("parking GPUs needs root", hint="sudo memscaler run ...")


def _simulate(settings: Settings) -> dict[str, str]:
    """Put the simulated driver in the real one's place. Returns the environment with which children find it too."""
    if not settings.simulate:
        return {}
    from memscaler.simulator import start  # noqa: PLC0415  # its compiler and headers are needed only here

    return start(settings.simulate, settings.runtime_dir)


def _restore_left_behind(journal: Journal, driver: Driver) -> None:
    if journal.entries():
        report = restore(journal, driver)
        for gpu in report.gpus:
            log.warning("gpu.restored", gpu=gpu.uuid, lever=gpu.lever, result=str(gpu.result), reason=gpu.reason)


@contextlib.contextmanager
def _kernel_side(settings: Settings) -> Iterator[Ledger]:
    loader = str(settings.loader_python) if settings.loader_python else ""
    attached = attachment.load(resources.bpf_dir(), loader_python=loader)
    ledger = Ledger(attached)
    log.info("kernel.attached", hooks=sorted(_hooks(attached.fds)), headers=attached.headers, python=attached.python)
    for notice in attached.notices:
        log.warning("kernel.limited" if not notice.startswith("mounted") else "tracefs.mounted", notice=notice)
    try:
        yield ledger
    finally:
        ledger.close()
        attached.close()


def _hooks(fds: Mapping[str, int]) -> set[str]:
    return {"tracepoint", "sockops"} & fds.keys()


def _ask(mailbox: Mailbox) -> Future[Snapshot]:
    answer: Future[Snapshot] = Future()
    mailbox.put(SnapshotWanted(answer))
    return answer


def _say_what_is_governed(
    settings: Settings, ledger: Ledger, governed: Mapping[str, Governed], policy: Policy
) -> None:
    for uuid, each in governed.items():
        ports = sorted(ledger.watches[slot].port for slot in policy.gpus[uuid].watches)
        log.info(
            "gpu.governed",
            gpu=each.device.identity.index,
            uuid=uuid,
            name=each.device.identity.name,
            ports=ports,
            lever=each.choice.levers[0].name if each.choice.levers else "none",
            why=each.choice.why,
            idle_after_s=each.settings.idle_after_s,
            dry_run=settings.dry_run,
        )
    for watch in ledger.watches.values():
        if not ledger.has_listener(watch):
            log.warning("watch.without_listener", port=watch.port, hint="no server listens there yet, or it is in a container")
