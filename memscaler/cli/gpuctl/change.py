"""`memscaler gpuctl set` and `reset`. What is set by hand is its operator's: nobody undoes it for him."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from memscaler.cli.gpuctl.options import PROCESS, DryRun, GvmRoot, How, ProcRoot, Timeout
from memscaler.cli.options import Config, Json, RuntimeDir, Simulate
from memscaler.cli.output import plain, print_json, show
from memscaler.config import knobs
from memscaler.config.gpuctl import How as Hows
from memscaler.core.errors import UsageError
from memscaler.core.gpuctl import Knob, Means
from memscaler.core.knobs import DEFAULTS

if TYPE_CHECKING:
    from memscaler.cli.gpuctl.doing import Done, Orders
    from memscaler.cli.gpuctl.world import World

FAILED = 1
HINT = "see `memscaler gpuctl set --help`"
# What stops work comes first; what may take long, last.
ORDER = (Knob.COMPUTE_FREEZE, Knob.COMPUTE_PRIORITY, Knob.CPU_NICE, Knob.CPU_WEIGHT, Knob.MEMORY_LIMIT)
BY_DEFAULT = (Knob.COMPUTE_FREEZE, Knob.COMPUTE_PRIORITY, Knob.MEMORY_LIMIT)
STILL = "it stands still on the CPU; kernels that it had submitted run to their end on the GPU"
NOWHERE = "it stands still on the CPU; it is on no GPU that is known here"


def set_knobs(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="PROCESS|KNOB=VALUE",
            help=f"Of which ({PROCESS}), and what: memory.limit=6G (512MiB, max), compute.priority=0..15 "
            "(lower is higher), compute.freeze=0|1, cpu.nice=-20..19 (lower is higher), cpu.weight=1..10000.",
            show_default=False,
        ),
    ],
    how: How = "auto",
    dry_run: DryRun = False,
    beyond: Annotated[
        bool, typer.Option("--beyond", help="Also compute.priority=16, which GVM's code takes and its README has not.")
    ] = False,
    timeout: Timeout = "2m",
    config: Config = None,
    simulate: Simulate = None,
    runtime_dir: RuntimeDir = None,
    gvm_root: GvmRoot = None,
    proc_root: ProcRoot = None,
    as_json: Json = False,
) -> None:
    """Freeze processes, or change their limits and priorities, by hand.

    It holds until it is set otherwise, the process ends, or leaves the GPU. memory.limit and compute.priority need
    GVM's driver. Without it, compute.freeze stops the process, by its cgroup or by SIGSTOP. The exit code is 1 if a
    process could not be set; 69 if this machine cannot do it at all.
    """
    from memscaler.cli.gpuctl.doing import Orders, change
    from memscaler.cli.gpuctl.words import parsed
    from memscaler.cli.gpuctl.world import look

    wanted = parsed(words, beyond=beyond)
    by_place = any(not word.rpartition(":")[2].isdecimal() for word in wanted.targets)
    orders = Orders(_means(how), _seconds(timeout), dry_run, _wait, by_place)
    world = look(config, {"simulate": simulate, "runtime_dir": runtime_dir}, gvm_root, proc_root)
    subjects = world.resolved(wanted.targets)
    found = [
        done
        for knob in ORDER
        if knob in wanted.values
        for done in change(world, subjects, knob, wanted.values[knob], orders)
    ]
    _tell(world, found, orders, as_json=as_json)


def reset(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="PROCESS|KNOB",
            help=f"Whose ({PROCESS}), and which. Default: compute.freeze, compute.priority and memory.limit; "
            "cpu.nice and cpu.weight only if they are named.",
            show_default=False,
        ),
    ],
    dry_run: DryRun = False,
    timeout: Timeout = "2m",
    config: Config = None,
    simulate: Simulate = None,
    runtime_dir: RuntimeDir = None,
    gvm_root: GvmRoot = None,
    proc_root: ProcRoot = None,
    as_json: Json = False,
) -> None:
    """Set processes back to the defaults: they run, without a limit, with priority 8 (nice 0, weight 100)."""
    from memscaler.cli.gpuctl.doing import Orders, change
    from memscaler.cli.gpuctl.words import knobs_of
    from memscaler.cli.gpuctl.world import look

    targets, named = knobs_of(words, "see `memscaler gpuctl reset --help`")
    orders = Orders("auto", _seconds(timeout), dry_run, _wait)
    world = look(config, {"simulate": simulate, "runtime_dir": runtime_dir}, gvm_root, proc_root, anyway=True)
    subjects = world.resolved(targets)
    found = [
        done
        for knob in ORDER
        if knob in (named or BY_DEFAULT)
        for done in change(world, subjects, knob, DEFAULTS[knob], orders)
    ]
    if not named:  # what this machine does not have needs no reset
        found = [done for done in found if done.place is not None]
    _tell(world, found, orders, as_json=as_json)


# ---- telling -------------------------------------------------------------------------------------------------------


def _wait(done: Done) -> None:
    moving = ": the driver moves memory to the host" if done.knob is Knob.MEMORY_LIMIT else ""
    print(f"memscaler: {done.knob} of {done.subject.pid} takes long{moving}; waiting", file=sys.stderr, flush=True)


def _tell(world: World, found: Sequence[Done], orders: Orders, *, as_json: bool) -> None:
    """Print it. Exit with the code of what went wrong, if anything did."""
    from memscaler.cli.gpuctl.world import with_gpus

    found = with_gpus(world, found)
    bad = [done for done in found if done.error is not None]
    if as_json:
        documents = [done.document(dry_run=orders.dry_run) for done in found]
        print_json({"dry_run": orders.dry_run, "ok": not bad, "changes": documents})
    else:
        _show(world, [done for done in found if done.error is None], orders)
        if not found:
            show("nothing of it is set to anything but its default")
    _show_errors(bad, as_json=as_json)
    if bad:
        codes = {done.error.exit_code for done in bad if done.error}
        raise typer.Exit(codes.pop() if len(bad) == len(found) and len(codes) == 1 else FAILED)


def _show(world: World, good: Sequence[Done], orders: Orders) -> None:
    from memscaler.cli.gpuctl.doing import not_by_cgroup, serving
    from memscaler.cli.gpuctl.text import directions, ruled, wrapped

    for done in good:
        show(_line(done, orders))
    notes = directions({done.knob for done in good})
    if still := {done.subject.pid for done in good if _by_kernel(done)}:
        notes.append(STILL if world.on_gpus(still) else NOWHERE)
    by_rules = [(done, rule) for done in good for rule in done.rules if rule.get("since_s") is not None]
    notes += not_by_cgroup(world, good) if orders.how == "auto" and orders.by_place else []
    notes += dict.fromkeys(f"{ruled(rule)}: {_what_follows(done, rule)}" for done, rule in by_rules)
    frozen = {done.subject.pid for done in good if done.knob is Knob.COMPUTE_FREEZE and done.value}
    notes += [
        f"{pid}: {plain(why)}, and no rule would freeze it: its clients wait as long as it is frozen"
        for pid, why in serving(world, frozen).items()
    ]
    if notes:
        show(wrapped(notes))


def _what_follows(done: Done, rule: Mapping[str, object]) -> str:
    """Of a knob that a rule in force has set, too."""
    if done.value == rule.get("value"):
        return "when it lets go, it puts back what was before"
    if done.place and done.place.means is Means.GVM and done.value == DEFAULTS[done.knob]:
        return "it will set that again at its next look, because a process that comes back to its GPU has this value"
    return "what you set stays until the rule's next time"


def _by_kernel(done: Done) -> bool:
    """It is frozen, but not on the GPU."""
    return done.knob is Knob.COMPUTE_FREEZE and bool(done.value and done.place and done.place.means is not Means.GVM)


def _line(done: Done, orders: Orders) -> str:
    place, who = done.place, f"{done.subject.pid} {plain(done.subject.name)}"
    value = knobs.spoken(done.knob, done.value)
    would = "would be " if orders.dry_run else ""
    was = "?" if done.was is None else knobs.spoken(done.knob, done.was)
    changed = f"{value}, as it was" if done.was == done.value else f"{was} -> {value}"
    where = f" {plain(place.path)}" if place and place.means is Means.CGROUP else ""
    return f"{who}: {done.knob}{_at(done)}: {would}{changed}, by {place.means if place else '?'}{where}"


def _at(done: Done) -> str:
    return f" on {plain(done.gpu)}" if done.gpu else ""


def _show_errors(bad: Sequence[Done], *, as_json: bool) -> None:
    hints = []
    for done in bad:
        if not as_json:
            what = f"{done.knob} of {done.subject.pid}{_at(done)}"
            print(f"memscaler: {what}: {plain(done.error)}", file=sys.stderr)
        hints.append(done.error.hint if done.error else "")
    for hint in filter(None, dict.fromkeys(hints)):
        print(f"hint: {hint}", file=sys.stderr)


def _means(how: str) -> Hows:
    """Raise UsageError."""
    known = get_args(Hows)
    if how not in known:
        raise UsageError(f"--how: {how!r} is none of {', '.join(known)}", hint=HINT)
    return how  # type: ignore[return-value]


def _seconds(timeout: str) -> float:
    from memscaler.cli.steer import duration_s

    return duration_s("--timeout", timeout, HINT) or 0.0
