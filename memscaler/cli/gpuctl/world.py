"""What these commands look at: GVM's files, processes, who is on which GPU, and what the governor's rules do."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from memscaler.cli.gpuctl.governor import ASK_S
from memscaler.core.errors import ConfigError, GpuError, MemscalerError, PermissionMissing
from memscaler.core.gpuctl import Means

if TYPE_CHECKING:
    from memscaler.config.gpuctl import How
    from memscaler.config.schema import Settings
    from memscaler.core.gpuctl import GvmReading, Knob
    from memscaler.gvm.boards import Boards
    from memscaler.gvm.processes import Subject
    from memscaler.gvm.turning import Here, Place
    from memscaler.kernel.processes import Processes

DRIVER_S = 25.0  # boards.PATIENCE_S, and what starting a process takes
_STILL: Mapping[Means, How] = {Means.CGROUP: "cgroup", Means.SIGNAL: "signal"}


@dataclass(frozen=True, slots=True)
class World:
    """A look at this machine. rules: what the governor says that rules have set, or want to. gpus: its names by UUID.

    Both are empty if it does not run. watched: ports of this machine. left: what a governor that is gone has left set.
    """

    here: Here
    processes: Processes
    settings: Settings
    rules: Sequence[Mapping[str, Any]] = ()
    gpus: Mapping[str, str] = field(default_factory=dict)
    watched: frozenset[int] = frozenset()
    left: str = ""

    def about(self, pid: int) -> Subject | None:
        """None if it is gone."""
        from memscaler.gvm.processes import about

        return about(pid, self.processes)

    def resolved(self, targets: Sequence[str]) -> dict[int, Subject]:
        """The processes that these words mean. Raise UsageError."""
        from memscaler.core.errors import UsageError
        from memscaler.gvm.named import resolve
        from memscaler.kernel.scopes import Unresolved

        found: dict[int, Subject] = {}
        for target in targets:
            try:
                pids = sorted(resolve(target, self.processes))
            except Unresolved as error:
                raise UsageError(str(error), hint=error.hint) from error
            for pid in pids:
                subject = self.about(pid)
                if subject is not None:
                    found[pid] = subject
        if not found:
            raise MemscalerError(f"{', '.join(targets)}: the process has just ended")
        return found

    @property
    def hidden(self) -> bool:
        """Whether there is a debugfs that we may not look into: GVM may be there, or not."""
        root = self.here.tree.gvm.root
        try:
            root.stat()
        except OSError as error:
            return error.errno in (errno.EACCES, errno.EPERM)
        return not os.access(root, os.R_OK | os.X_OK)

    def cannot(self, knob: Knob, how: How = "auto") -> str:
        """Why nobody's knob can be turned here, with what the machine lacks; "" if that is not the reason."""
        from memscaler.core.gpuctl import Knob
        from memscaler.core.knobs import GVM_ONLY
        from memscaler.gvm.capability import Facts, no_weight, refusal

        if knob is Knob.CPU_WEIGHT:
            return no_weight(self.here.cgroups)
        if knob not in GVM_ONLY and not (knob is Knob.COMPUTE_FREEZE and how == "gvm"):
            return ""
        why = self.here.tree.why_not()
        return why if self.hidden else refusal(knob, Facts(gvm=why, gvm_write=why), how) if why else ""

    def on_gpus(self, pids: Collection[int]) -> bool:
        """Whether one of these is on a GPU, as far as anybody knows: True if nobody tells."""
        if readings_of(self, frozenset(pids))[0]:
            return True
        try:
            return bool(_boards(ASK_S).on() & set(pids))
        except GpuError:
            return True

    def doing(self, pid: int, knob: Knob | None = None, gpus: Collection[str] | None = None) -> list[Mapping[str, Any]]:
        """What rules have set on it, or want to. gpus: as the governor may call the one in question; None: any."""
        return [
            each
            for each in self.rules
            if each["pid"] == pid
            and (knob is None or each["knob"] == knob)
            and (gpus is None or not each["gpu"] or each["gpu"] in gpus)
        ]

    def still(self, pid: int) -> tuple[Means, ...]:
        """By what of the kernel it stands still, whoever has done it."""
        from memscaler.core.gpuctl import Knob
        from memscaler.gvm.errors import KnobError
        from memscaler.gvm.turning import placed, read

        found = []
        for means, how in _STILL.items():
            try:
                where = placed(Knob.COMPUTE_FREEZE, [pid], self.here, how=how, may=lambda _pid: True)
                if any(read(place, self.here.proc).value for place in where.places):
                    found.append(means)
            except (KnobError, OSError):
                continue
        return tuple(found)


def look(
    config: Path | None,
    flags: Mapping[str, str | None],
    gvm_root: Path | None,
    proc_root: Path | None,
    *,
    anyway: bool = False,
) -> World:
    """anyway: without the configuration, if that is broken. Raise MemscalerError if it is, or there is no /proc."""
    from memscaler.cli.gpuctl import governor
    from memscaler.cli.options import settings_without_file
    from memscaler.cli.output import plain
    from memscaler.cli.simulated import at_home, simulate
    from memscaler.config.load import load
    from memscaler.gvm.turning import Here
    from memscaler.kernel.processes import Processes

    try:
        found = load(flags, os.environ, config)
    except (ConfigError, PermissionMissing, OSError) as error:
        if not anyway:
            raise
        why = plain(str(error).partition("\n")[0])
        print(f"memscaler: the configuration is left out: {why}", file=sys.stderr)
        found, config = settings_without_file(flags), None
    settings = at_home(found)
    status, left = governor.status_of(settings)
    simulate(settings.simulate or governor.boards(settings, status), settings.runtime_dir)
    gvm = settings.gvm if config is not None else governor.gvm_of(settings, status)
    gvm = replace(gvm, root=gvm_root or gvm.root, proc=proc_root or gvm.proc)
    here = Here.look(gvm)
    try:
        processes = Processes.look(here.proc)
    except OSError as error:
        raise MemscalerError(
            f"{here.proc}: {error.strerror or error}", hint="--proc-root names the right one"
        ) from error
    rules, names = governor.controlled(status), governor.gpu_names(status)
    return World(here, processes, settings, rules, names, governor.watched(settings, status), left)


# ---- who is on which GPU -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """A process on a GPU. reading: GVM's, None without. used_bytes: NVML's, of all its memory there.

    gpu: "gpu0"; what else is known of it where its index is not. frozen: by what means. rules: what they have set on
    it.
    """

    pid: int
    gpu: str
    uuid: str
    subject: Subject | None
    reading: GvmReading | None = None
    used_bytes: int | None = None
    frozen: tuple[Means, ...] = ()
    rules: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Seen:
    """gvm, nvml: why that does not tell, "" if it does; with both of them nobody tells of any process.

    late: what did not answer, a line for each. left: as World's.
    """

    rows: tuple[Row, ...]
    gvm: str
    nvml: str
    late: tuple[str, ...] = ()
    left: str = ""


def rows(world: World) -> Seen:
    """All processes on GPUs, by process and GPU."""
    gvm = world.here.tree.why_not()
    readings, late = readings_of(world, None)
    found: Boards | None = None
    nvml = ""
    try:
        found = _boards(DRIVER_S)
    except GpuError as error:
        nvml = str(error)
    boards_found = found.boards if found else {}
    names = {**world.gpus, **{uuid: f"gpu{board.index}" for uuid, board in boards_found.items()}}
    used = {(pid, uuid): count for uuid, board in boards_found.items() for pid, count in board.used.items()}
    told = []
    for each in readings:
        used_bytes = used.pop((each.pid, each.uuid), None)
        told.append(_row(world, each.pid, each.uuid, _gpu(each, names), each, used_bytes))
    told += [_row(world, pid, uuid, names.get(uuid, uuid), None, count) for (pid, uuid), count in used.items()]
    return Seen(tuple(sorted(told, key=lambda row: (row.pid, row.gpu))), gvm, nvml, late, world.left)


class Placed(Protocol):
    """What was found at a place: a dataclass whose `gpu` is not known yet."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def place(self) -> Place | None: ...


Found = TypeVar("Found", bound=Placed)


def with_gpus(world: World, found: Sequence[Found]) -> list[Found]:
    """The same, each with the name of its GPU as `ls` has it."""
    known = dict(world.gpus)
    if not known.keys() >= {each.place.uuid for each in found if each.place} - {""}:
        with suppress(GpuError):
            known |= {uuid: f"gpu{board.index}" for uuid, board in _boards(ASK_S).boards.items()}
    return [replace(each, gpu=_gpu_of(each.place, known)) for each in found]


def _gpu_of(place: Place | None, names: Mapping[str, str]) -> str:
    """For example "gpu0", or "gvm8" where nobody knows which it is; "" for what is not per GPU."""
    if place is None or place.means is not Means.GVM:
        return ""
    return names.get(place.uuid, place.uuid) or f"gvm{Path(place.path).name}"


def _boards(patience_s: float) -> Boards:
    """Raise GpuError. A driver that hangs must not keep this command from ending."""
    from memscaler.cli.gpuctl.apart import each
    from memscaler.gvm import boards

    (outcome,) = each([boards.look], patience_s)
    if isinstance(outcome, GpuError):
        raise outcome
    if isinstance(outcome, MemscalerError):
        raise GpuError(str(outcome))
    return outcome


def readings_of(world: World, pids: frozenset[int] | None) -> tuple[list[GvmReading], tuple[str, ...]]:
    """GVM's, of these processes or of all; and what did not answer. What has vanished meanwhile is left out."""
    from memscaler.cli.gpuctl.apart import each
    from memscaler.gvm.errors import Gone

    tree = world.here.tree
    if tree.why_not():
        return [], ()
    (entries,) = each([partial(tree.entries, pids)])
    if isinstance(entries, MemscalerError):
        return [], (f"GVM: {entries}",)
    found, late = [], []
    for entry, outcome in zip(entries, each([partial(tree.reading, entry) for entry in entries]), strict=True):
        if isinstance(outcome, Gone):
            continue
        if isinstance(outcome, MemscalerError):
            late.append(f"{entry.pid} on GPU {entry.uuid or entry.number}: {outcome}")
        else:
            found.append(outcome)
    return found, tuple(late)


def _row(world: World, pid: int, uuid: str, gpu: str, reading: GvmReading | None, used_bytes: int | None) -> Row:
    by_gvm = (Means.GVM,) if reading is not None and reading.compute_freeze else ()
    frozen = by_gvm + world.still(pid)
    return Row(pid, gpu, uuid, world.about(pid), reading, used_bytes, frozen, tuple(world.doing(pid, gpus=(gpu, uuid))))


def _gpu(reading: GvmReading, names: Mapping[str, str]) -> str:
    """For example "gpu0"; its UUID if the driver does not tell of it; GVM's own number if nobody knows which it is."""
    return names.get(reading.uuid, reading.uuid) or f"gvm{reading.number}"
