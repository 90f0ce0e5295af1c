"""`memscaler gpuctl ls` and `get`: the processes on GPUs, and what is set on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from memscaler.cli.gpuctl.options import PROCESS, GvmRoot, ProcRoot
from memscaler.cli.options import Config, Json, RuntimeDir, Simulate
from memscaler.cli.output import columns, plain, print_json, show
from memscaler.core.errors import DriverUnavailable, MemscalerError
from memscaler.core.gpuctl import NO_LIMIT, Knob

if TYPE_CHECKING:
    from memscaler.cli.gpuctl.world import Row, World
    from memscaler.config.gpuctl import How
    from memscaler.gvm.processes import Subject
    from memscaler.gvm.turning import Place

HINT = "see `memscaler gpuctl get --help`"
STILL = (
    "see `memscaler doctor MS-DRIVER MS-GVM`. get, set and reset work all the same on processes that you name (PID, "
    "UNIT, PORT): compute.freeze, cpu.nice, and cpu.weight where cgroups have it"
)
BY: tuple[How, ...] = ("gvm", "cgroup", "signal")


def ls(
    config: Config = None,
    simulate: Simulate = None,
    runtime_dir: RuntimeDir = None,
    gvm_root: GvmRoot = None,
    proc_root: ProcRoot = None,
    as_json: Json = False,
) -> None:
    """Show the processes on GPUs: their memory there, limits, priorities, what stands still, and by which rule.

    Works with GVM's driver and without; what cannot be had is left out, and the reason said. Where neither GVM nor
    NVIDIA's driver tells who is on the GPUs the exit code is 69.
    """
    from memscaler.cli.gpuctl.text import table
    from memscaler.cli.gpuctl.world import look, rows

    world = look(config, {"simulate": simulate, "runtime_dir": runtime_dir}, gvm_root, proc_root, anyway=True)
    seen = rows(world)
    nobody_tells = bool(seen.nvml and seen.gvm)
    if as_json:
        told = {
            "gvm": not seen.gvm,
            "gvm_why_not": seen.gvm,
            "nvml_why_not": seen.nvml,
            "late": seen.late,
            "left": seen.left,
        }
        print_json({**told, "processes": [document(row) for row in seen.rows]})
    elif not nobody_tells:
        show(table(seen))
    elif seen.left:
        show(plain(seen.left))
    if nobody_tells:
        raise DriverUnavailable(f"nobody tells which processes are on the GPUs: {seen.nvml}; {seen.gvm}", hint=STILL)


def get(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="PROCESS|KNOB",
            help=f"Whose ({PROCESS}), and which: memory.limit, compute.priority, compute.freeze, cpu.nice, "
            "cpu.weight. Default: all that can be had.",
            show_default=False,
        ),
    ],
    config: Config = None,
    simulate: Simulate = None,
    runtime_dir: RuntimeDir = None,
    gvm_root: GvmRoot = None,
    proc_root: ProcRoot = None,
    as_json: Json = False,
) -> None:
    """Show what is set on processes, and by what. The exit code is 1 if a knob that was named cannot be read."""
    from memscaler.cli.gpuctl.words import knobs_of
    from memscaler.cli.gpuctl.world import look, with_gpus

    targets, named = knobs_of(words, HINT)
    world = look(config, {"simulate": simulate, "runtime_dir": runtime_dir}, gvm_root, proc_root, anyway=True)
    subjects = world.resolved(targets)
    found = [value for knob in named or tuple(Knob) for value in values(world, knob, subjects)]
    if not found:
        raise MemscalerError(f"{', '.join(targets)}: the process has just ended")
    found = with_gpus(world, found)
    if as_json:
        print_json({"values": [each.document() for each in found]})
    else:
        show(_text([each for each in found if named or each.value is not None], found))
    if named and any(each.value is None for each in found):
        raise typer.Exit(1)


# ---- one knob of one process ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Value:
    """What a knob is set to. value: None if that cannot be told: problem says why. place: None: there is none."""

    subject: Subject
    knob: Knob
    value: int | None = None
    place: Place | None = None
    problem: str = ""
    rules: tuple[Mapping[str, object], ...] = ()
    gpu: str = ""

    @property
    def means(self) -> str:
        """By what; empty if there is no place."""
        return str(self.place.means) if self.place else ""

    @property
    def uuid(self) -> str:
        """Empty for what is not per GPU."""
        return self.place.uuid if self.place else ""

    def document(self) -> dict[str, object]:
        """For programs."""
        told: dict[str, object] = {"pid": self.subject.pid, "name": self.subject.name, "unit": self.subject.unit}
        told |= {"gpu": self.gpu, "uuid": self.uuid, "knob": str(self.knob), "value": self.value, "means": self.means}
        path = self.place.path if self.place else ""
        return {**told, "path": path, "problem": self.problem, "rules": list(self.rules)}


def values(world: World, knob: Knob, subjects: Mapping[int, Subject]) -> list[Value]:
    """Of all these, in the order of the processes."""
    from memscaler.cli.gpuctl.apart import each
    from memscaler.gvm.errors import Gone
    from memscaler.gvm.turning import read

    places, refused = everywhere(world, knob, list(subjects))
    found = [Value(subjects[pid], knob, problem=why) for pid, why in refused.items()]
    reads = [partial(read, place, world.here.proc) for place in places]
    for place, outcome in zip(places, each(reads), strict=True):
        if isinstance(outcome, Gone):
            continue
        value = Value(
            subjects[place.pid],
            knob,
            None if isinstance(outcome, MemscalerError) else outcome.value,
            place,
            str(outcome) if isinstance(outcome, MemscalerError) else "",
            tuple(world.doing(place.pid, knob)),
        )
        found.append(value)
    return sorted(found, key=lambda each: (each.subject.pid, each.uuid, each.means))


def everywhere(world: World, knob: Knob, pids: Sequence[int]) -> tuple[list[Place], dict[int, str]]:
    """All places of a knob, and why there is none of the other processes. A freeze may be anybody's, by any means."""
    from memscaler.gvm.turning import placed

    if why := world.cannot(knob):
        return [], dict.fromkeys(pids, why)
    if knob is not Knob.COMPUTE_FREEZE:
        found = placed(knob, pids, world.here)
        return list(found.places), dict(found.refused)
    places: list[Place] = []
    refused: dict[int, str] = {}
    for how in BY:
        found = placed(knob, pids, world.here, how=how, may=lambda _pid: True)
        places += found.places
        refused |= found.refused
    have = {place.pid for place in places}
    return places, {pid: why for pid, why in refused.items() if pid not in have}


def _text(shown: Sequence[Value], found: Sequence[Value]) -> str:
    from memscaler.cli.gpuctl.text import NONE, cut, directions, ruled, wrapped
    from memscaler.config.knobs import spoken

    rows = [("PID", "NAME", "KNOB", "VALUE", "BY", "GPU")]
    for each in shown:
        told = NONE if each.value is None else spoken(each.knob, each.value)
        about = each.subject
        rows.append((str(about.pid), cut(about.name), each.knob, told, each.means or NONE, plain(each.gpu) or NONE))
    why = [f"{each.knob} of {each.subject.pid}: {plain(each.problem)}" for each in found if each.problem]
    notes = (
        directions({each.knob for each in shown})
        + why
        + list(dict.fromkeys(ruled(rule) for each in found for rule in each.rules))
    )
    table = columns(rows) if shown else "nothing can be told"
    return f"{table}\n\n{wrapped(notes)}" if notes else table


def document(row: Row) -> dict[str, object]:
    """A line of ls, for programs. memory_limit_bytes and limited: as in the status document."""
    reading, subject = row.reading, row.subject
    told: dict[str, object] = {"pid": row.pid, "gpu": row.gpu, "uuid": row.uuid}
    for key in ("name", "unit", "container", "user", "cgroup"):
        told[key] = getattr(subject, key) if subject else ""
    told["memory_used_bytes"] = row.used_bytes
    for key in (
        "tid",
        "number",
        "memory_current_bytes",
        "memory_limit_bytes",
        "swap_bytes",
        "compute_priority",
        "compute_freeze",
        "kernels_submitted",
        "kernels_ended",
        "kernels_pending",
    ):
        told[key] = getattr(reading, key) if reading else None
    limit = told["memory_limit_bytes"]
    told |= {
        "memory_limit_bytes": None if limit == NO_LIMIT else limit,
        "limited": None if limit is None else limit != NO_LIMIT,
    }
    return {**told, "frozen_by": [str(means) for means in row.frozen], "rules": list(row.rules)}
