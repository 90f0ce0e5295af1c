"""The edges as a run opens them: the driver (or a simulated one), the kernel side, and the actuator of each GPU.

Each is opened before anything is parked, and fails with one line that says what to do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import structlog

from memscaler import resources
from memscaler.config.schema import Settings
from memscaler.core.errors import MemscalerError
from memscaler.daemon.fleet import Equipped
from memscaler.daemon.journals import JOURNAL
from memscaler.daemon.mailbox import Mailbox
from memscaler.daemon.targets import Governed
from memscaler.daemon.urgent import Urgent
from memscaler.gpu.actuator import Actuator
from memscaler.gpu.grip import Reopening
from memscaler.gpu.hands import Means
from memscaler.gpu.inventory import Driver
from memscaler.gpu.journal import Journal
from memscaler.gpu.reports import ActuatorPolicy
from memscaler.gpu.restore import restore
from memscaler.kernel import attachment
from memscaler.kernel.doorbell import Door
from memscaler.kernel.ledger import Ledger

log = structlog.get_logger()


def simulate(settings: Settings) -> dict[str, str]:
    """Put the simulated driver in the real one's place. Returns the environment with which children find it too."""
    if not settings.simulate:
        return {}
    from memscaler.simulator import start  # its compiler and headers are needed only here

    return start(settings.simulate, settings.runtime_dir)


def restore_others(settings: Settings, driver: Driver, governed: Mapping[str, Governed]) -> None:
    """Wake what an earlier run left parked and this one does not govern; the governor sees to its own."""
    journal = Journal(settings.runtime_dir / JOURNAL)
    if not settings.dry_run and any(entry.uuid not in governed for entry in journal.entries()):
        for gpu in restore(journal, driver).gpus:
            log.warning("gpu.restored", gpu=gpu.uuid, lever=gpu.lever, result=str(gpu.result), reason=gpu.reason)


@contextlib.contextmanager
def kernel_side(settings: Settings) -> Iterator[Ledger]:
    """Attach, and let go of everything again. Raise KernelUnavailable."""
    loader = str(settings.loader_python) if settings.loader_python else ""
    attached = attachment.load(resources.bpf_dir(), loader_python=loader)
    ledger = Ledger(attached)
    hooks = sorted({"tracepoint", "sockops"} & attached.fds.keys())
    log.info("kernel.attached", hooks=hooks, headers=attached.headers, python=attached.python)
    for notice in attached.notices:
        log.warning("kernel.noticed", notice=notice)
    try:
        yield ledger
    finally:
        ledger.close()
        attached.close()


def equip(
    settings: Settings,
    driver: Driver,
    ledger: Ledger,
    mailbox: Mailbox,
    working: Callable[[str], str],
    urgent: Urgent,
    governed: Governed,
) -> Equipped:
    """The thread that parks and wakes a GPU. No door where the kernel cannot ring: then the loop polls for all."""
    doorbell = ledger.attachment.fds.get("doorbell")
    door = None if doorbell is None else Door(doorbell, ledger.counters, ())
    means = Means(
        governed.device,
        governed.choice.levers,
        Journal(settings.runtime_dir / JOURNAL),
        mailbox.put,
        ActuatorPolicy(settle_timeout_s=settings.settle_timeout_s, dry_run=settings.dry_run),
        door,
        working,
        reopening=Reopening(driver, governed.settings.lever),
        first=urgent.before_wake,
    )
    return Equipped(Actuator(means), door)


def is_journaled(journal: Journal, uuid: str) -> bool:
    """True also if nobody can tell."""
    try:
        return journal.entry(uuid) is not None
    except (OSError, MemscalerError):
        return True
