"""The composition root: puts the parts together in the order in which they depend on each other, and takes them apart.

    (simulated driver) -> driver and inventory -> GPUs and levers -> restore what was left -> kernel side -> watches
         -> actuators -> guardian -> scout -> loop

Whatever fails on the way up fails before anything is parked, with one line that says what to do.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import InvalidStateError
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from memscaler import __version__
from memscaler.config.schema import Settings
from memscaler.config.sleep_doubts import doubts
from memscaler.core.errors import KernelUnavailable, MemscalerError
from memscaler.core.model import SECOND_NS
from memscaler.core.snapshot import Identity, Ungoverned
from memscaler.daemon import discovery, edges, targets
from memscaler.daemon.adaptive import Adaptive
from memscaler.daemon.child_process import ChildProcess
from memscaler.daemon.conflicts import Conflicts
from memscaler.daemon.discovery import Found
from memscaler.daemon.ending import End, Ending
from memscaler.daemon.guardian import Guardian
from memscaler.daemon.journals import JOURNAL
from memscaler.daemon.leases import Leases
from memscaler.daemon.loop import Loop
from memscaler.daemon.mailbox import Mailbox
from memscaler.daemon.notify import Notifier
from memscaler.daemon.outdated import Outdated
from memscaler.daemon.parts import Parts
from memscaler.daemon.portrait import Facts
from memscaler.daemon.recall import recall
from memscaler.daemon.record import Recorder
from memscaler.daemon.reload import Reloader
from memscaler.daemon.scout import Scout
from memscaler.daemon.server_word import ServerWord
from memscaler.daemon.serving import supervised
from memscaler.daemon.standby import Standby
from memscaler.daemon.targets import Governed
from memscaler.daemon.urgent import Urgent
from memscaler.daemon.watching import Watching
from memscaler.gpu.inventory import Driver, open_driver
from memscaler.gpu.journal import Journal
from memscaler.history.writer import History
from memscaler.kernel.ledger import require_sock_diag
from memscaler.observe.log import is_for_people

MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Programs:
    """Of processes that are started if they are needed. sleeper: goes down the deeper stages; arbiter: [[gpuctl]]."""

    sleeper: Path
    arbiter: Path


@dataclass(frozen=True, slots=True)
class Given:
    """What is there before anything is governed. load: reads the settings anew; changed: told that a state has."""

    settings: Settings
    load: Callable[[], Settings]
    programs: Programs
    mailbox: Mailbox
    notifier: Notifier
    changed: Callable[[], None]


def govern(given: Given) -> tuple[End, bool]:
    """Until the end: what is to follow it, and whether every GPU is awake."""
    with contextlib.ExitStack() as stack:
        parts, history = _parts(given, stack)
        loop = Loop(parts)
        gc.collect()
        gc.freeze()  # a full collection of all modules would take milliseconds, perhaps those before a wake
        _stay_in_memory()
        well = _loop(loop)
        end = loop.end
        if end.then is Ending.RELEASE and end.released is not None:
            # also if it does not end well: who restarts us must not open the driver
            Standby.want(given.settings.runtime_dir, end.released)
        history.close()
        if end.asker is not None and not (well and end.then is Ending.RELEASE):
            with contextlib.suppress(InvalidStateError):  # the asker has given up
                end.asker.set_exception(MemscalerError("the driver could not be let go of", hint="see the log"))
        if not well:
            log.info("memscaler.stopped", every_gpu_awake=False)
            stack.pop_all()  # see main.run
        return end, well


def _parts(given: Given, stack: contextlib.ExitStack) -> tuple[Parts, History]:
    settings, mailbox = given.settings, given.mailbox
    environment = edges.simulate(settings)
    driver = stack.enter_context(open_driver())
    named = targets.find_named(settings, driver)
    governed = targets.find_governed(settings, driver, named)
    edges.restore_others(settings, driver, governed)
    ledger = stack.enter_context(edges.kernel_side(settings))
    learning, urgent = Adaptive(), Urgent()
    watching = Watching(ledger, settings, governed, named, learning)
    users = _GpuUsers()
    look = partial(_look, driver, users, settings)
    watching.apply(_first_look(look))
    _say_what_is_governed(settings, governed, watching)
    word = ServerWord(ledger.own, watching.servers_to_ask, mailbox.put) if settings.probe else None
    identities = {uuid: each.device.identity for uuid, each in governed.items()}
    reloader = Reloader(
        given.load, settings, driver, partial(partial, _look, driver, users), learning.unknown, mailbox.put
    )
    learn = partial(_learn, word, watching, Outdated(reloader, supervised(settings)))
    history = History(settings.kept_in, writes=not settings.dry_run)
    recorder = Recorder(_facts(settings, driver, watching), identities, log, history, given.changed)
    _remember(settings, governed, recorder, learning)
    parts = Parts(
        watching=watching,
        governed=governed,
        ledger=ledger,
        equip=partial(edges.equip, settings, driver, ledger, mailbox, partial(_may_not_park, urgent, word), urgent),
        recorder=recorder,
        mailbox=mailbox,
        notifier=given.notifier,
        scout=Scout(look, ledger.attachment.fds.get("bulletin", -1), ledger.counters, mailbox.put, learn),
        leases=_leases(settings),
        conflicts=Conflicts(settings.conflict_pause_s),
        start_guardian=_guardian(settings, environment, ledger.attachment.fds.get("doorbell", -1)),
        start_sleeper=_child(settings, given.programs.sleeper, environment),
        start_arbiter=_child(settings, given.programs.arbiter, environment, urgent=True),
        urgent=urgent,
        settings=settings,
        plan=reloader.plan,
        gpu_users=lambda: users.pids,
        outdated=lambda: driver.outdated,
        is_journaled=partial(edges.is_journaled, Journal(settings.runtime_dir / JOURNAL)),
        applied=reloader.applied,
        sample_every_ns=round(settings.sample_every_s * SECOND_NS),
        adaptive=learning,
        supervised=supervised(settings),
        gap=history.gap,
    )
    return parts, history


def _guardian(settings: Settings, environment: Mapping[str, str], doorbell: int) -> Callable[[], Guardian] | None:
    """Starts who wakes the GPUs if we cannot; None: a dry run parks none."""
    if settings.dry_run:
        return None
    json_log = not is_for_people(settings.log_format)
    return partial(Guardian, settings.runtime_dir, environment, doorbell, json_log=json_log)


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


def _leases(settings: Settings) -> Leases:
    leases = Leases(settings.runtime_dir)
    if leases.problem:
        log.error("lease.lost", err=leases.problem, hint="holds of before are gone; ask for them again")
    return leases


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


# ---- who is there, and what is told of it --------------------------------------------------------------------------


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


def _first_look(look: Callable[[], tuple[Found, ...]]) -> tuple[Found, ...]:
    """Raise KernelUnavailable if the kernel cannot be asked for sockets at all."""
    require_sock_diag()
    try:
        return look()
    except OSError as error:
        raise KernelUnavailable(f"the servers cannot be looked for: {error}", hint="is /proc mounted?") from error


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
