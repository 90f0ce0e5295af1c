"""All drivers, by stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from memscaler.config.gpuctl import Gvm
from memscaler.core.stages import Stage
from memscaler.sleep.drivers.checkpoint import Checkpoint
from memscaler.sleep.drivers.managers import Managers
from memscaler.sleep.drivers.protocol import Announce, Driver, unannounced
from memscaler.sleep.drivers.room import Room
from memscaler.sleep.drivers.server_sleep import ServerSleep
from memscaler.sleep.drivers.stop_server import StopServer
from memscaler.sleep.drivers.supervisors import Folders, Refused, Supervisors, quietly, usual_folders
from memscaler.sleep.drivers.talk import Talk
from memscaler.sleep.drivers.units import Units


@dataclass(frozen=True, slots=True)
class Around:
    """Of the process that uses drivers. runtime: where locks are kept, the same for all of ours on this machine.

    root: where the system is. supervisors: the runtime directories of those that may run. refused: told, in a thread,
    when one of them may not be asked, and "" when it may. gvm: where it is, as configured now.
    """

    runtime: Path
    announce: Announce = unannounced
    root: Path = Path("/")
    supervisors: Folders = usual_folders
    refused: Refused = quietly
    gvm: Callable[[], Gvm] = Gvm


def drivers(around: Around) -> Mapping[Stage, Driver]:
    """Those of servers; the machine's own stage is elsewhere (suspending.py)."""
    talk, room = Talk(around.announce), Room(around.root)
    managers = Managers(talk)
    made: tuple[Driver, ...] = (
        ServerSleep(talk, managers, room),
        Checkpoint(around.runtime, managers, room, around.root, around.gvm),
        StopServer(Supervisors(around.supervisors, around.refused), Units(talk), managers),
    )
    return {driver.stage: driver for driver in made}


def managers(around: Around) -> Managers:
    """Who else brings servers down: `asleep_by` tells who has."""
    return Managers(Talk(around.announce))
