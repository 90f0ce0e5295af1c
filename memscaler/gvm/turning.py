"""One knob of one process, whatever it is turned by: where it is (a Place), read, turned, undone.

    placed(...)             where the knob of these processes is, by what means; and why it is nowhere, of the others
    read(place)             -> Was: write it into a journal, with the place, and then
    turn(place, value)      does it; idempotent
    undo(place, was, ours)  puts it back, if nobody else has changed it meanwhile; a freeze is always undone
    Grip(place)             all that can be opened beforehand is open: turning costs microseconds then

All raise KnobError (errors.py). A turn of memory.limit may take seconds in the kernel, and anything of GVM's may wait
for it: `within` gives up in time. Places and Was are JSON by core.plain, and enough for another process to undo.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from memscaler.child.standstill import stands_still
from memscaler.config.gpuctl import Gvm, How
from memscaler.core.gpuctl import Knob, Means
from memscaler.core.knobs import DEFAULTS
from memscaler.gvm.errors import Gone, Late
from memscaler.gvm.freezing import CgroupFile, Cgroups, Signals
from memscaler.gvm.processes import cgroup_of, is_alive, started_at
from memscaler.gvm.tree import KNOBS, Tree, read_knob, write_knob
from memscaler.gvm.weights import nice_of, set_nice, undo_nice
from memscaler.kernel.processes import PROC

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a knob is. started: of the process, clock ticks since boot.

    path: GVM's directory of the process on the GPU, or the cgroup's; "" for signals and nice. inode: the cgroup's,
    which tells it from a later one of the same name. uuid: the GPU, "" for what is not per GPU or not known.
    A cgroup may be the place of several processes: compare `key`.
    """

    knob: Knob
    means: Means
    pid: int
    started: int
    path: str = ""
    inode: int = 0
    uuid: str = ""

    @property
    def key(self) -> str:
        """The same for places where one act counts for all: two processes in one cgroup."""
        if self.means is Means.CGROUP:
            return f"{self.knob} {self.means} {self.inode}"
        return f"{self.knob} {self.means} {self.pid} {self.started} {self.path}"


@dataclass(frozen=True, slots=True)
class Was:
    """What an undo needs. value: None if nobody knows. threads: thread -> its nice value."""

    value: int | None
    threads: Mapping[int, int] = field(default_factory=dict)


class Outcome(StrEnum):
    """How an undo ended."""

    BACK = "back"
    GONE = "gone"  # process, GPU or cgroup is there no more
    LEFT = "left"  # somebody else has changed it, or had it so before us: his


@dataclass(frozen=True, slots=True)
class Here:
    """What this machine has for turning knobs. cgroups: None if no cgroup v2 is mounted."""

    tree: Tree
    cgroups: Cgroups | None
    proc: Path = PROC

    @classmethod
    def look(cls, gvm: Gvm) -> Here:
        """Cheap. GVM may come and go later, the mount does not."""
        return cls(Tree(gvm), Cgroups.find(), gvm.proc)


@dataclass(frozen=True, slots=True)
class Placed:
    """places: per process one (cgroup, signal, nice) or one per GPU and thread (GVM). refused: pid -> why none."""

    places: tuple[Place, ...] = ()
    refused: Mapping[int, str] = field(default_factory=dict)


# ---- where ----------------------------------------------------------------------------------------------------------


def placed(
    knob: Knob,
    pids: Collection[int],
    here: Here,
    *,
    how: How = "auto",
    uuids: Collection[str] | None = None,
    may: Callable[[int], bool] | None = None,
) -> Placed:
    """Where this knob of these processes is, best means first; `how` is for compute.freeze alone.

    uuids: of GVM's entries those on these GPUs only. may: whether another process of a cgroup may be frozen along (it
    is matched, and not untouchable); None: only `pids` may be in it. Processes that are gone are passed over.
    """
    started = {pid: at for pid in pids if (at := started_at(pid, here.proc)) is not None}
    places: list[Place] = []
    refused: dict[int, list[str]] = {pid: [] for pid in started}
    for means in _means(knob, how):
        left = {pid: started[pid] for pid in refused}
        if not left:
            break
        found = _FIND[means](knob, left, here, uuids, may)
        places += found.places
        for pid, why in found.refused.items():
            refused[pid].append(why)
        for place in found.places:
            refused.pop(place.pid, None)
    return Placed(tuple(places), {pid: "; ".join(dict.fromkeys(whys)) for pid, whys in refused.items()})


def _means(knob: Knob, how: How) -> tuple[Means, ...]:
    if knob is Knob.COMPUTE_FREEZE:
        return (Means.GVM, Means.CGROUP, Means.SIGNAL) if how == "auto" else (Means(how),)
    return (Means.GVM,) if knob in KNOBS else (Means.NICE if knob is Knob.CPU_NICE else Means.CGROUP,)


_May = Callable[[int], bool] | None


def _by_gvm(knob: Knob, started: Mapping[int, int], here: Here, uuids: Collection[str] | None, _: _May) -> Placed:
    if why := here.tree.why_not():
        return Placed(refused=dict.fromkeys(started, why))
    places, unknown = [], set()
    for each in here.tree.entries(started.keys()):
        if uuids is None or each.uuid in uuids:
            places.append(Place(knob, Means.GVM, each.pid, started[each.pid], str(each.path), uuid=each.uuid))
        elif not each.uuid:
            unknown.add(each.pid)
    missing = started.keys() - {place.pid for place in places}
    nobody_knows = "nobody knows which GPU GVM's directory means: set gpu_map in [gvm]"
    refused = {pid: nobody_knows if pid in unknown else "GVM does not know it on that GPU" for pid in missing}
    return Placed(tuple(places), refused)


def _by_cgroup(knob: Knob, started: Mapping[int, int], here: Here, _: object, may: _May) -> Placed:
    if here.cgroups is None:
        return Placed(refused=dict.fromkeys(started, "cgroup version 2 is not mounted"))
    places, refused = [], {}
    verdicts: dict[str, str] = {}
    for pid, since in started.items():
        path = cgroup_of(pid, here.proc)
        if path not in verdicts:
            verdicts[path] = here.cgroups.why_not(path, started.keys(), may)
        folder = here.cgroups.at(path)
        try:
            if not verdicts[path]:
                inode = folder.stat().st_ino
                places.append(Place(knob, Means.CGROUP, pid, since, str(folder), inode))
                continue
        except OSError:
            verdicts[path] = f"its cgroup {path} is there no more"
        refused[pid] = verdicts[path]
    return Placed(tuple(places), refused)


def _by_process(means: Means) -> Callable[..., Placed]:
    def find(knob: Knob, started: Mapping[int, int], *_: object) -> Placed:
        return Placed(tuple(Place(knob, means, pid, since) for pid, since in started.items()))

    return find


_FIND: Mapping[Means, Callable[..., Placed]] = {
    Means.GVM: _by_gvm,
    Means.CGROUP: _by_cgroup,
    Means.SIGNAL: _by_process(Means.SIGNAL),
    Means.NICE: _by_process(Means.NICE),
}


# ---- what -----------------------------------------------------------------------------------------------------------


def read(place: Place, proc: Path = PROC) -> Was:
    """What is set now. compute.freeze by signal: 1 if it stands still, whoever has stopped it."""
    match place.means:
        case Means.CGROUP:
            with CgroupFile(place.path, place.inode, place.knob) as file:
                return Was(file.read())
        case Means.NICE:
            threads = nice_of(place.pid, place.started, proc)
            return Was(threads.get(place.pid, min(threads.values())), threads)
    _check(place, proc)
    if place.means is Means.SIGNAL:
        return Was(int(stands_still(place.pid, proc)))
    return Was(read_knob(place.path, place.knob))


def turn(place: Place, value: int, proc: Path = PROC) -> None:
    """Set it. Returns when the kernel has taken it: a process frozen by a cgroup stands still a moment later."""
    if place.means is Means.NICE:
        set_nice(place.pid, place.started, value, proc)
        return
    grip = Grip(place, proc)
    try:
        grip.turn(value)
    finally:
        grip.close()


def undo(place: Place, was: Was, ours: int, proc: Path = PROC) -> Outcome:
    """Put it back to what it was (None: the default); ours: the value that we have set."""
    default = DEFAULTS[place.knob]
    back = default if was.value is None else was.value
    try:
        if place.means is Means.NICE:
            done = undo_nice(place.pid, place.started, was.threads, back, ours, proc)
            return Outcome.BACK if done else Outcome.LEFT
        if place.knob is Knob.COMPUTE_FREEZE:
            if back:
                return Outcome.LEFT  # it was frozen before
            turn(place, 0, proc)  # whatever it says now: GVM says what was written last, not what is so
            return Outcome.BACK
        now = read(place, proc).value
        if now == ours and now != back:
            turn(place, back, proc)
            return Outcome.BACK
    except Gone:
        return Outcome.GONE
    # A directory of GVM's that has come again has its defaults: what was before is lost with the one before.
    return Outcome.BACK if now == back or (place.means is Means.GVM and now == default) else Outcome.LEFT


def _check(place: Place, proc: Path) -> None:
    if not is_alive(place.pid, place.started, proc):
        raise Gone(f"process {place.pid} has ended")


class Grip:
    """A place that is kept open, for who must be quick: no search, no look at /proc. Not to be shared by threads."""

    def __init__(self, place: Place, proc: Path = PROC) -> None:
        """Raise KnobError."""
        self.place = place
        self._proc = proc
        self._process: Signals | None = None
        self._cgroup: CgroupFile | None = None
        if place.means is Means.CGROUP:
            self._cgroup = CgroupFile(place.path, place.inode, place.knob, os.O_WRONLY)
        else:
            self._process = Signals(place.pid, place.started, proc)

    def turn(self, value: int) -> None:
        """As `turn`."""
        if self._cgroup is not None:
            self._cgroup.write(value)
        elif self._process is not None and self.place.means is Means.SIGNAL:
            self._process.freeze(value)
        elif self._process is not None and self.place.means is Means.GVM:
            self._process.check()  # or it would be a later process's that is called the same
            write_knob(self.place.path, self.place.knob, value)
        else:
            set_nice(self.place.pid, self.place.started, value, self._proc)

    def close(self) -> None:
        """Let go of what is open. A freeze stays."""
        for each in (self._cgroup, self._process):
            if each is not None:
                each.close()
        self._cgroup = self._process = None


def within(timeout_s: float, act: Callable[[], Value]) -> Value:
    """The act's result, or what it raises; Late if it takes longer: it goes on in a thread of its own."""
    results: list[Value] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(act())
        except Exception as error:  # noqa: BLE001  # raised again below
            errors.append(error)

    thread = threading.Thread(target=run, name="turning", daemon=True)
    thread.start()
    thread.join(max(timeout_s, 0.0))
    if results:
        return results[0]
    if errors:
        raise errors[0]
    raise Late(f"it takes longer than {timeout_s:g} s")
