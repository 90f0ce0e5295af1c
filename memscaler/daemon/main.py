"""The composition root: puts the parts together in the order in which they depend on each other, and takes them apart.

    lock -> (simulated driver) -> driver and inventory -> GPUs and levers -> restore what was left
         -> kernel side -> watches -> actuators -> metrics -> guardian -> scout -> loop

Whatever fails on the way up fails before anything is parked, with one line that says what to do.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from memscaler import __version__, resources
from memscaler.config.schema import Settings
from memscaler.config.sleep_doubts import doubts
from memscaler.core.errors import KernelUnavailable, MemscalerError, PermissionMissing, UsageError
from memscaler.core.model import SECOND_NS
from memscaler.core.servers import Supervised
from memscaler.core.snapshot import Identity, Snapshot, Ungoverned
from memscaler.daemon import discovery, lock, privileges, targets
from memscaler.daemon.adaptive import Adaptive
from memscaler.daemon.answers import SnapshotWanted
from memscaler.daemon.child_process import ChildProcess
from memscaler.daemon.conflicts import Conflicts
from memscaler.daemon.control import ControlServer
from memscaler.daemon.discovery import Found
from memscaler.daemon.fleet import Equipped
from memscaler.daemon.guardian import CONTROLLED, JOURNAL, Guardian
from memscaler.daemon.leases import Leases
from memscaler.daemon.loop import Ending, Loop, Parts
from memscaler.daemon.mailbox import Mailbox
from memscaler.daemon.notify import Notifier
from memscaler.daemon.outdated import Outdated
from memscaler.daemon.portrait import Facts
from memscaler.daemon.recall import recall
from memscaler.daemon.record import Recorder
from memscaler.daemon.reload import Reloader
from memscaler.daemon.requests import SOCKET
from memscaler.daemon.scout import Scout
from memscaler.daemon.server_word import ServerWord
from memscaler.daemon.signals import StopWanted, has_terminal
from memscaler.daemon.standby import Standby, begin
from memscaler.daemon.targets import Governed
from memscaler.daemon.urgent import Urgent
from memscaler.daemon.watching import Watching
from memscaler.gpu.actuator import Actuator
from memscaler.gpu.grip import Reopening
from memscaler.gpu.inventory import Driver, open_driver
from memscaler.gpu.journal import Journal
from memscaler.gpu.reports import ActuatorPolicy
from memscaler.gpu.restore import restore
from memscaler.history.writer import History
from memscaler.kernel import attachment
from memscaler.kernel.doorbell import Door
from memscaler.kernel.ledger import Ledger, require_sock_diag
from memscaler.observe.log import is_for_people
from memscaler.observe.server import MetricsServer
from memscaler.observe.supervisors import Supervisors

CAP_SYS_ADMIN = 21
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
SWITCH_INTERVAL_S = 1e-4  # a scrape being rendered may hold the interpreter that long, not the usual 5 ms

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run came to its end. well: every GPU is awake. again: the governor is to begin anew in this process."""

    well: bool
    again: bool = False


@dataclass(frozen=True, slots=True)
class Programs:
    """Of processes that are started if they are needed. sleeper: goes down the deeper stages; arbiter: [[gpuctl]]."""

    sleeper: Path
    arbiter: Path


def run(settings: Settings, load: Callable[[], Settings], programs: Programs) -> Ended:
    """Govern until SIGTERM or SIGINT (or SIGHUP, if a terminal sends it). load: reads the settings anew, for a reload.

    Raise MemscalerError for everything that keeps it from starting.
    """
    if not settings.watches and not settings.discover:
        hint = "name one (memscaler run --port 8080:gpu0), or let it find the servers (--discover)"
        raise UsageError("no port to watch", hint=hint)
    _check_rights(settings)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    lock.prepare_runtime_dir(settings.runtime_dir)
    if not settings.dry_run:
        # The socket of a supervisor of servers may belong to somebody else, and the unit's group is not always there.
        controls = bool(settings.gpuctl) or any((settings.runtime_dir / CONTROLLED).glob("*.json"))
        more = privileges.CONTROLLING if controls else ("CAP_DAC_OVERRIDE",) if settings.stages else ()
        privileges.keep_rights((*privileges.GOVERNING, *more), writes_to=settings.runtime_dir)
    notifier, mailbox = Notifier(), Mailbox()
    with contextlib.ExitStack() as stack:
        released, asker = begin(settings.runtime_dir, stack), None
        changed = _serve_metrics(settings, mailbox, stack)
        _serve_operators(settings, mailbox, stack)
        ended = Ending.RELEASE
        if released is None:
            loop, well = _govern(settings, load, programs, mailbox, notifier, changed)
            released, asker, ended = loop.released, loop.asker, loop.ending
            if not well:
                stack.pop_all()  # a hung driver call would hold up the clean-up too; the process ends instead
                if ended is not Ending.RESTART or _is_told_to_stop(mailbox):
                    return Ended(well=False)
                notifier.hand_on()
                return Ended(well=False, again=True)  # it wakes first what is parked still
        if ended is Ending.RELEASE and released is not None:  # the driver is closed by now
            ended = Standby(settings, mailbox, notifier, released).run(asker)
        if ended is Ending.RESTART and not _is_told_to_stop(mailbox):
            notifier.hand_on()
            return Ended(well=True, again=True)
        log.info("memscaler.stopped", every_gpu_awake=True)
        return Ended(well=True)


def _is_told_to_stop(mailbox: Mailbox) -> bool:
    """True if a signal came that nobody has read. From now on one ends the process, until the next program listens."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    if not has_terminal():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return any(isinstance(message, StopWanted) for message in mailbox.drain())


def _govern(
    settings: Settings,
    load: Callable[[], Settings],
    programs: Programs,
    mailbox: Mailbox,
    notifier: Notifier,
    changed: Callable[[], None],
) -> tuple[Loop, bool]:
    """The loop, which has ended, and whether every GPU is awake."""
    with contextlib.ExitStack() as stack:
        environment = _simulate(settings)
        driver = stack.enter_context(open_driver())
        named = targets.find_named(settings, driver)
        governed = targets.find_governed(settings, driver, named)
        _restore_others(settings, driver, governed)
        ledger = stack.enter_context(_kernel_side(settings))
        learning, urgent = Adaptive(), Urgent()
        watching = Watching(ledger, settings, governed, named, learning)
        users = _GpuUsers()
        look = partial(_look, driver, users, settings)
        watching.apply(_first_look(look))
        _say_what_is_governed(settings, governed, watching)
        word = ServerWord(ledger.own, watching.servers_to_ask, mailbox.put) if settings.probe else None
        equip = partial(_equip, settings, driver, ledger, mailbox, partial(_may_not_park, urgent, word), urgent)
        identities = {uuid: each.device.identity for uuid, each in governed.items()}
        journal = Journal(settings.runtime_dir / JOURNAL)
        doorbell = ledger.attachment.fds.get("doorbell", -1)
        json_log = not is_for_people(settings.log_format)
        guardian = partial(Guardian, settings.runtime_dir, environment, doorbell, json_log=json_log)
        reloader = Reloader(
            load, settings, driver, partial(partial, _look, driver, users), learning.unknown, mailbox.put
        )
        learn = partial(_learn, word, watching, Outdated(reloader, _supervised(settings)))
        history = History(settings.kept_in, writes=not settings.dry_run)
        recorder = Recorder(_facts(settings, driver, watching), identities, log, history, changed)
        _remember(settings, governed, recorder, learning)
        loop = Loop(
            Parts(
                watching=watching,
                governed=governed,
                ledger=ledger,
                equip=equip,
                recorder=recorder,
                mailbox=mailbox,
                notifier=notifier,
                scout=Scout(look, ledger.attachment.fds.get("bulletin", -1), ledger.counters, mailbox.put, learn),
                leases=_leases(settings),
                conflicts=Conflicts(settings.conflict_pause_s),
                start_guardian=None if settings.dry_run else guardian,
                start_sleeper=_child(settings, programs.sleeper, environment),
                start_arbiter=_child(settings, programs.arbiter, environment, urgent=True),
                urgent=urgent,
                settings=settings,
                plan=reloader.plan,
                gpu_users=lambda: users.pids,
                outdated=lambda: driver.outdated,
                is_journaled=partial(_is_journaled, journal),
                applied=reloader.applied,
                sample_every_ns=round(settings.sample_every_s * SECOND_NS),
                adaptive=learning,
                supervised=_supervised(settings),
                gap=history.gap,
            )
        )
        gc.collect()
        gc.freeze()  # a full collection of all modules would take milliseconds, perhaps those before a wake
        _stay_in_memory()
        well = _loop(loop)
        if loop.ending is Ending.RELEASE and loop.released is not None:
            # also if it does not end well: who restarts us must not open the driver
            Standby.want(settings.runtime_dir, loop.released)
        history.close()
        if loop.asker is not None and not (well and loop.ending is Ending.RELEASE):
            with contextlib.suppress(InvalidStateError):  # the asker has given up
                loop.asker.set_exception(MemscalerError("the driver could not be let go of", hint="see the log"))
        if not well:
            log.info("memscaler.stopped", every_gpu_awake=False)
            stack.pop_all()  # see run
        return loop, well


def _child(
    settings: Settings, program: Path, environment: Mapping[str, str], *, urgent: bool = False
) -> Callable[[], ChildProcess] | None:
    """Starts what acts for us; None: nothing does in a dry run."""
    if settings.dry_run:
        return None
    words = "console" if is_for_people(settings.log_format) else "json", settings.log_level
    return partial(ChildProcess, program, settings.runtime_dir, environment, *words, urgent=urgent)


def _may_not_park(urgent: Urgent, word: ServerWord | None, uuid: str) -> str:
    """Who works there still; "" if nobody says so."""
    return urgent.may_park(uuid) or (word.working(uuid) if word else "")


def _remember(settings: Settings, governed: Collection[str], recorder: Recorder, learning: Adaptive) -> None:
    """What was measured and seen in earlier runs."""
    recalled = recall(settings.kept_in, governed)
    recorder.calibrated(recalled.calibrations)
    learning.calibrated(recalled.calibrations)
    learning.watts = recorder.watts
    learning.recall(recalled.gaps)


def _stay_in_memory() -> None:
    """A server that streams a model through the page cache must not push out the code of the wake path.

    Locks what is resident and what becomes so (MCL_ONFAULT, Linux 4.4), without reading in anything. A wish only: it
    needs CAP_IPC_LOCK or a high RLIMIT_MEMLOCK.
    """
    libc = ctypes.CDLL(None)
    with contextlib.suppress(AttributeError):  # a C library that has no such call
        libc.malloc_trim(0)  # what the start needed is free again, but still ours: 4 MB
    libc.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT)


def _loop(loop: Loop) -> bool:
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


@dataclass(slots=True)
class _GpuUsers:
    """Who had a context on a GPU when that was last looked at."""

    pids: frozenset[int] = frozenset()


def _look(driver: Driver, users: _GpuUsers, settings: Settings) -> tuple[Found, ...]:
    """Which of the watches are there, and which servers; a GPU that does not answer has no servers just now."""
    contexts = targets.contexts(driver)
    users.pids = frozenset().union(*contexts.values())
    names = {device.identity.uuid: f"gpu{device.identity.index}" for device in driver.gpus}
    return discovery.look(
        settings.watches,
        discover=settings.discover,
        gpu_processes=contexts,
        name_gpu=lambda uuid: names.get(uuid, uuid),
        thorough=bool(settings.stages or settings.gpuctl),  # whoever is to sleep, or to be spared, has to be known
    )


def _learn(word: ServerWord | None, watching: Watching, outdated: Outdated) -> None:
    outdated.look()
    if word is not None:
        word.learn(watching.governed)


def _nothing() -> None:
    """There is nobody to learn from, or to tell."""


def _first_look(look: Callable[[], tuple[Found, ...]]) -> tuple[Found, ...]:
    """Raise KernelUnavailable if the kernel cannot be asked for sockets at all."""
    require_sock_diag()
    try:
        return look()
    except OSError as error:
        raise KernelUnavailable(f"the servers cannot be looked for: {error}", hint="is /proc mounted?") from error


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


def _serve_metrics(settings: Settings, mailbox: Mailbox, stack: contextlib.ExitStack) -> Callable[[], None]:
    """What to call when a state has changed. Whoever holds the port must not decide whether GPUs are governed."""
    if settings.metrics is None:
        return _nothing
    try:
        server = MetricsServer(
            settings.metrics.host, settings.metrics.port, partial(_ask, mailbox), _supervised(settings)
        )
    except MemscalerError as error:
        log.error("metrics.failed", err=str(error), hint=error.hint)
        return _nothing
    server.start()
    stack.callback(server.stop)
    log.info("metrics.served", address="{}:{}".format(*server.address))
    return server.changed


def _supervised(settings: Settings) -> Callable[[], Supervised]:
    """Supervisors have their folders beside ours."""
    return Supervisors(settings.runtime_dir.parent).look


def _ask(mailbox: Mailbox) -> Future[Snapshot]:
    answer: Future[Snapshot] = Future()
    mailbox.put(SnapshotWanted(answer))
    return answer


def _serve_operators(settings: Settings, mailbox: Mailbox, stack: contextlib.ExitStack) -> None:
    """Without a control socket GPUs are governed all the same."""
    try:
        server = ControlServer(settings.runtime_dir / SOCKET, mailbox.put)
    except MemscalerError as error:
        log.error("control.failed", err=str(error), hint=error.hint)
        return
    server.start()
    stack.callback(server.stop)


def _is_journaled(journal: Journal, uuid: str) -> bool:
    """True also if nobody can tell."""
    try:
        return journal.entry(uuid) is not None
    except (OSError, MemscalerError):
        return True


def _leases(settings: Settings) -> Leases:
    leases = Leases(settings.runtime_dir)
    if leases.problem:
        log.error("lease.lost", err=leases.problem, hint="holds of before are gone; ask for them again")
    return leases


def _equip(
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
    actuator = Actuator(
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
    return Equipped(actuator, door)


def _facts(settings: Settings, driver: Driver, watching: Watching) -> Facts:
    return Facts(
        version=__version__,
        driver_version=driver.driver_version,
        hostname=socket.gethostname(),
        dry_run=settings.dry_run,
        labels=settings.labels,
        gpus_of_slot=watching.gpus_of_slot,
        server_of_slot=watching.server_of_slot,
        waiting=lambda: {str(spec): why for spec, why in watching.waiting.items()},
        ungoverned=lambda: tuple(_ungoverned(driver, watching.governed)),
        discovers=lambda: watching.discovers,
    )


def _ungoverned(driver: Driver, governed: Collection[str]) -> Iterator[Ungoverned]:
    for device in driver.gpus:
        if device.identity.uuid not in governed:
            yield Ungoverned(device.identity, "no watch names it")
    for lost in driver.lost:
        yield Ungoverned(Identity(lost.index, "", "", ""), lost.reason)


def _say_what_is_governed(settings: Settings, governed: Mapping[str, Governed], watching: Watching) -> None:
    for doubt in doubts(settings):
        log.warning("config.doubted", what=doubt)
    for uuid, each in governed.items():
        log.info(
            "gpu.governed",
            gpu=f"gpu{each.device.identity.index}",
            uuid=uuid,
            name=each.device.identity.name,
            ports=sorted(watched.found.port for watched in watching.watches_of(uuid)),
            lever=each.lever,
            why=each.choice.why,
            idle_after_s=each.settings.idle_after_s or "auto",
            dry_run=settings.dry_run,
        )
