"""The composition root: puts the parts together in the order in which they depend on each other, and takes them apart.

    lock -> (simulated driver) -> driver and inventory -> ports to GPUs -> levers -> restore what was left
         -> kernel side -> actuators -> metrics -> guardian -> loop

Whatever fails on the way up fails before anything is parked, with one line that says what to do.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import structlog

from memscaler import __version__, resources
from memscaler.config.schema import Settings
from memscaler.core.errors import KernelUnavailable, MemscalerError, PermissionMissing, UsageError
from memscaler.core.model import SECOND_NS, Policy
from memscaler.core.snapshot import Snapshot
from memscaler.daemon import lock, targets
from memscaler.daemon.guardian import JOURNAL, Guardian
from memscaler.daemon.loop import Loop, Parts, SnapshotWanted
from memscaler.daemon.mailbox import Mailbox
from memscaler.daemon.notify import Notifier
from memscaler.daemon.record import Facts, Recorder
from memscaler.daemon.targets import Governed
from memscaler.gpu.actuator import Actuator
from memscaler.gpu.inventory import Driver, open_driver
from memscaler.gpu.journal import Journal
from memscaler.gpu.reports import ActuatorPolicy
from memscaler.gpu.restore import restore
from memscaler.kernel import attachment
from memscaler.kernel.doorbell import Door
from memscaler.kernel.ledger import Ledger, own_namespace
from memscaler.observe.server import MetricsServer

CAP_SYS_ADMIN = 21
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
SWITCH_INTERVAL_S = 1e-4  # a scrape being rendered may hold the interpreter that long, not the usual 5 ms

log = structlog.get_logger()


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
        ports = targets.find_ports(settings, driver, diag)
        governed = targets.find_governed(settings, driver, ports)
        _restore_others(settings, driver, governed)
        ledger = stack.enter_context(_kernel_side(settings))
        try:
            policy = targets.watch_ports(ledger, diag, ports, governed)
        except OSError as error:
            raise KernelUnavailable(f"sock_diag does not answer: {error}", hint="modprobe tcp_diag") from error
        _say_what_is_governed(settings, ledger, governed, policy)
        mailbox = Mailbox()
        _serve_metrics(settings, mailbox, stack)
        actuators = _actuators(settings, governed, ledger, policy, mailbox)
        loop = Loop(
            Parts(
                policy=policy,
                unmanaged={uuid: each.choice.why for uuid, each in governed.items() if not each.choice.levers},
                ledger=ledger,
                actuators=actuators,
                recorder=Recorder(_facts(settings, driver, governed, policy, actuators), log),
                mailbox=mailbox,
                notifier=Notifier(),
                start_guardian=None if settings.dry_run else partial(Guardian, settings.runtime_dir, environment),
                sample_every_ns=round(settings.sample_every_s * SECOND_NS),
            )
        )
        gc.collect()
        gc.freeze()  # a full collection of all modules would take milliseconds, perhaps those before a wake
        _stay_in_memory()
        well = _govern(loop)
        log.info("memscaler.stopped", every_gpu_awake=well)
        if not well:
            stack.pop_all()  # a hung driver call would hold up the clean-up too; the process ends instead
        return 0 if well else 1


def _stay_in_memory() -> None:
    """A server that streams a model through the page cache must not push out the code of the wake path.

    Locks what is resident and what becomes so (MCL_ONFAULT, Linux 4.4), without reading in anything. A wish only: it
    needs CAP_IPC_LOCK or a high RLIMIT_MEMLOCK.
    """
    ctypes.CDLL(None).mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT)


def _govern(loop: Loop) -> bool:
    """Run the loop. A mistake of ours ends the process on the spot: the guardian then wakes what is parked.

    Unwinding first could take for ever: closing the driver waits for calls that hang.
    """
    try:
        return loop.run()
    except MemscalerError:
        raise
    except Exception:
        log.exception("memscaler.failed", hint="the guardian wakes every GPU; please report this")
        os._exit(1)


# ---- on the way up -------------------------------------------------------------------------------------------------


def _check_rights(settings: Settings) -> None:
    """Without CAP_SYS_ADMIN the driver refuses every lever: better said at the start than at the first park."""
    if settings.dry_run:
        return
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    if not effective >> CAP_SYS_ADMIN & 1:
        raise PermissionMissing("parking GPUs needs root", hint="sudo memscaler run ...")


def _simulate(settings: Settings) -> dict[str, str]:
    """Put the simulated driver in the real one's place. Returns the environment with which children find it too."""
    if not settings.simulate:
        return {}
    from memscaler.simulator import start  # its compiler and headers are needed only here

    return start(settings.simulate, settings.runtime_dir)


def _restore_others(settings: Settings, driver: Driver, governed: Mapping[str, Governed]) -> None:
    """Wake what an earlier run left parked and this one does not govern; the governor sees to its own."""
    journal = Journal(settings.runtime_dir / JOURNAL)
    if not settings.dry_run and any(entry.uuid not in governed for entry in journal.entries()):
        for gpu in restore(journal, driver).gpus:
            log.warning("gpu.restored", gpu=gpu.uuid, lever=gpu.lever, result=str(gpu.result), reason=gpu.reason)


@contextlib.contextmanager
def _kernel_side(settings: Settings) -> Iterator[Ledger]:
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


def _serve_metrics(settings: Settings, mailbox: Mailbox, stack: contextlib.ExitStack) -> None:
    """Whoever holds the port must not decide whether GPUs are governed: then there are no metrics."""
    if settings.metrics is None:
        return
    try:
        server = MetricsServer(settings.metrics.host, settings.metrics.port, partial(_ask, mailbox))
    except MemscalerError as error:
        log.error("metrics.failed", err=str(error), hint=error.hint)
        return
    server.start()
    stack.callback(server.stop)
    log.info("metrics.served", address="{}:{}".format(*server.address))


def _ask(mailbox: Mailbox) -> Future[Snapshot]:
    answer: Future[Snapshot] = Future()
    mailbox.put(SnapshotWanted(answer))
    return answer


def _actuators(
    settings: Settings, governed: Mapping[str, Governed], ledger: Ledger, policy: Policy, mailbox: Mailbox
) -> dict[str, Actuator]:
    goes_by = ActuatorPolicy(settle_timeout_s=settings.settle_timeout_s, dry_run=settings.dry_run)
    journal = Journal(settings.runtime_dir / JOURNAL)
    doorbell = ledger.attachment.fds["doorbell"]
    actuators = {}
    for uuid, each in governed.items():
        door = Door(doorbell, ledger.counters, policy.gpus[uuid].watches)
        actuators[uuid] = Actuator(each.device, each.choice.levers, journal, mailbox.put, goes_by, door)
    return actuators


def _facts(
    settings: Settings,
    driver: Driver,
    governed: Mapping[str, Governed],
    policy: Policy,
    actuators: Mapping[str, Actuator],
) -> Facts:
    def lever_of(uuid: str) -> str:
        """The one that the next park uses: not the first choice if that turned out not to work."""
        lever = actuators[uuid].lever
        return "none" if lever is None else lever.name

    return Facts(
        version=__version__,
        driver_version=driver.driver_version,
        hostname=socket.gethostname(),
        dry_run=settings.dry_run,
        identities={uuid: each.device.identity for uuid, each in governed.items()},
        lever_of=lever_of,
        gpus_of_slot=targets.gpus_of_slot(policy),
    )


def _say_what_is_governed(settings: Settings, ledger: Ledger, governed: Mapping[str, Governed], policy: Policy) -> None:
    for uuid, each in governed.items():
        log.info(
            "gpu.governed",
            gpu=f"gpu{each.device.identity.index}",
            uuid=uuid,
            name=each.device.identity.name,
            ports=sorted(ledger.watches[slot].port for slot in policy.gpus[uuid].watches),
            lever=each.lever,
            why=each.choice.why,
            idle_after_s=each.settings.idle_after_s,
            dry_run=settings.dry_run,
        )
    for watch in ledger.watches.values():
        if not ledger.has_listener(watch):
            hint = "no server listens there yet, or it is in another network namespace (a container)"
            log.warning("watch.without_listener", port=watch.port, hint=hint)
