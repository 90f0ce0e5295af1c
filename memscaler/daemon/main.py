"""A run from its first check to its last line: rights, lock, who may ask; then governed or released, and begun anew.

    rights -> lock -> who may ask (serving.py) -> governed (composition.py), or released still (standby.py)
           -> released, begun anew in the same process, or the end

Whatever keeps it from starting is raised with one line that says what to do.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from memscaler.config.schema import Settings
from memscaler.core.errors import PermissionMissing, UsageError
from memscaler.daemon import lock, privileges
from memscaler.daemon.composition import Given, Programs, govern
from memscaler.daemon.ending import Ending
from memscaler.daemon.journals import CONTROLLED, tells_of_something
from memscaler.daemon.mailbox import Mailbox
from memscaler.daemon.notify import Notifier
from memscaler.daemon.serving import serve_metrics, serve_operators
from memscaler.daemon.signals import StopWanted, has_terminal
from memscaler.daemon.standby import Standby, begin

CAP_SYS_ADMIN = 21
SWITCH_INTERVAL_S = 1e-4  # a scrape being rendered may hold the interpreter that long, not the usual 5 ms

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run came to its end. well: every GPU is awake. again: the governor is to begin anew in this process."""

    well: bool
    again: bool = False


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
        controls = bool(settings.gpuctl) or tells_of_something(settings.runtime_dir, CONTROLLED)
        more = privileges.CONTROLLING if controls else ("CAP_DAC_OVERRIDE",) if settings.stages else ()
        privileges.keep_rights((*privileges.GOVERNING, *more), writes_to=settings.runtime_dir)
    notifier, mailbox = Notifier(), Mailbox()
    with contextlib.ExitStack() as stack:
        released, asker = begin(settings.runtime_dir, stack), None
        changed = serve_metrics(settings, mailbox, stack)
        serve_operators(settings, mailbox, stack)
        ended = Ending.RELEASE
        if released is None:
            end, well = govern(Given(settings, load, programs, mailbox, notifier, changed))
            released, asker, ended = end.released, end.asker, end.then
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


def _check_rights(settings: Settings) -> None:
    """Without CAP_SYS_ADMIN the driver refuses every lever: better said at the start than at the first park."""
    if settings.dry_run:
        return
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    if not effective >> CAP_SYS_ADMIN & 1:
        raise PermissionMissing("parking GPUs needs root", hint="sudo memscaler run ...")


def _is_told_to_stop(mailbox: Mailbox) -> bool:
    """True if a signal came that nobody has read. From now on one ends the process, until the next program listens."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    if not has_terminal():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return any(isinstance(message, StopWanted) for message in mailbox.drain())
