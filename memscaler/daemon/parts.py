"""The parts that the loop connects, all made and checked before anything is governed.

A list and nothing else: who composes (composition.py) fills it in, and the loop takes its parts out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from memscaler.config.schema import Settings
from memscaler.core.gaps import Gap
from memscaler.core.servers import Supervised
from memscaler.daemon.adaptive import Adaptive
from memscaler.daemon.child_process import ChildProcess
from memscaler.daemon.conflicts import Conflicts
from memscaler.daemon.fleet import Equipped
from memscaler.daemon.guardian import Guardian
from memscaler.daemon.learning import nobody
from memscaler.daemon.leases import Leases
from memscaler.daemon.mailbox import Mailbox
from memscaler.daemon.notify import Notifier
from memscaler.daemon.record import Recorder
from memscaler.daemon.requests import Document
from memscaler.daemon.scout import Scout
from memscaler.daemon.targets import Governed
from memscaler.daemon.urgent import Urgent
from memscaler.daemon.watching import Watching
from memscaler.kernel.ledger import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the loop connects. start_guardian, start_sleeper, start_arbiter None: a dry run needs none.

    settings: those in force at the start.
    governed: what to begin with; equip: makes the actuator of a GPU, and its door where the kernel can ring.
    plan: begins to read the configuration anew, and reports a Reloaded with this future.
    gpu_users: the pids that had a context on a GPU when that was last looked at.
    is_journaled: whether the journal says that a GPU is parked. applied: told the settings that a reload put in force.
    outdated: says why the driver's library has to be loaded anew, "" if it has not.
    urgent: the arbiter's channel, which the actuators have too.
    adaptive: learns the idle times that are "auto".
    supervised: what the supervisors of servers say; called in a thread of its own.
    gap: told each gap between the work of a GPU once it is over, in the loop's thread; must return at once.
    """

    watching: Watching
    governed: Mapping[str, Governed]
    ledger: Ledger
    equip: Callable[[Governed], Equipped]
    recorder: Recorder
    mailbox: Mailbox
    notifier: Notifier
    scout: Scout
    leases: Leases
    conflicts: Conflicts
    start_guardian: Callable[[], Guardian] | None
    start_sleeper: Callable[[], ChildProcess] | None
    start_arbiter: Callable[[], ChildProcess] | None
    urgent: Urgent
    settings: Settings
    plan: Callable[[Future[Document]], None]
    gpu_users: Callable[[], Collection[int]]
    outdated: Callable[[], str]
    is_journaled: Callable[[str], bool]
    applied: Callable[[Settings], None]
    sample_every_ns: int
    adaptive: Adaptive
    supervised: Callable[[], Supervised]
    gap: Callable[[Gap], None] = nobody
