"""`memscaler plan`: where models go on the GPUs, and the words that make llama.cpp do it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memscaler.cli.options import Json, RuntimeDir, Simulate
from memscaler.cli.planning import options
from memscaler.cli.planning.options import Served, Where

if TYPE_CHECKING:
    from memscaler.cli.planning.text import Planned
    from memscaler.planner.devices import Budget, Survey
    from memscaler.planner.memory import Demand
    from memscaler.planner.model import Model

DOES_NOT_FIT = 2

Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL",
        help="GGUF files, placed one after the other. Without one: what the GPUs have to give.",
        show_default=False,
    ),
]


def plan(
    models: Models = None,
    model: options.Model = None,
    n_ctx: options.Context = None,
    slots: options.Slots = None,
    cache_type_k: options.CacheTypeK = None,
    cache_type_v: options.CacheTypeV = None,
    batch: options.Batch = None,
    ubatch: options.Ubatch = None,
    flash_attn: options.FlashAttention = None,
    mmproj: options.Projector = None,
    swa_full: options.SwaFull = False,
    no_kv_offload: options.NoKvOffload = False,
    n_gpu_layers: options.GpuLayers = None,
    n_cpu_moe: options.CpuMoe = None,
    devices: options.Devices = None,
    device_order: options.DeviceOrder = None,
    reserve_mib: options.Reserve = None,
    min_budget_mib: options.MinBudget = None,
    gpu: options.Gpu = None,
    fit_params: options.FitParams = None,
    force: Annotated[
        bool, typer.Option("--force", help="What does not fit whole: with fewer layers, or experts on the CPU.")
    ] = False,
    simulate: Simulate = None,
    runtime_dir: RuntimeDir = None,
    as_json: Json = False,
) -> None:
    """Plan where models go: layers per GPU, and llama-server's arguments for it. Exits with 2 if one does not fit."""
    from memscaler.planner.devices import refuse_reserve

    served = Served(n_ctx, slots, cache_type_k, cache_type_v, batch, ubatch, flash_attn, swa_full, no_kv_offload,
                    n_gpu_layers, n_cpu_moe)  # fmt: skip
    where = Where(devices, device_order, reserve_mib, min_budget_mib, gpu, simulate, runtime_dir, fit_params)
    paths = [*([model] if model else []), *map(Path, models or [])]
    demand, budget = served.demand(), where.budget()
    read = _read(paths, mmproj)
    found = where.survey()
    refuse_reserve(found.devices, budget)
    if not read:
        _show_budgets(found, budget, as_json=as_json)
        return
    made = _plan(read, demand, budget, found, where, force=force)
    _show(made, budget, found, as_json=as_json)
    from memscaler.planner.placement import Shortfall

    if any(isinstance(each.outcome, Shortfall) for each in made) and not force:
        raise typer.Exit(DOES_NOT_FIT)


def _read(paths: Sequence[Path], projector: Path | None) -> list[Model]:
    """Before a GPU is asked anything: a wrong file is wrong without one, too."""
    from memscaler.core.errors import UsageError
    from memscaler.planner.gguf import read_model

    if projector is not None and len(paths) != 1:
        several = "with several models: whose is it?" if paths else "without a model"
        raise UsageError(f"--mmproj {several}", hint="memscaler plan MODEL.gguf --mmproj FILE, one model at a time")
    return [read_model(path, projector) for path in paths]


def _plan(
    models: Sequence[Model], demand: Demand, budget: Budget, found: Survey, where: Where, *, force: bool
) -> list[Planned]:
    """One after the other: each on what those before it leave."""
    from memscaler.cli.planning.text import Planned
    from memscaler.planner.memory import needs
    from memscaler.planner.placement import Placement
    from memscaler.planner.plan import after, plan_model

    adviser, devices, made = where.adviser(), found.devices, []
    for model in models:
        outcome = plan_model(model, demand, budget, devices, adviser=adviser)
        planned = Planned(model, needs(model, demand), outcome, forced=force)
        if force or isinstance(outcome, Placement):
            devices = after(devices, planned.placement)
        made.append(planned)
    return made


def _show(made: Sequence[Planned], budget: Budget, found: Survey, *, as_json: bool) -> None:
    from memscaler.cli.output import labelled, plain, print_json, show
    from memscaler.cli.paint import is_terminal
    from memscaler.cli.planning import text
    from memscaler.planner.placement import Placement
    from memscaler.planner.plan import after

    if as_json:
        print_json({"plans": [text.document(each) for each in made], "notes": list(found.notes)})
        return
    devices, busy = found.devices, set[str]()
    for position, each in enumerate(made):
        if position:
            print()
        show(text.heading(each))
        for warning in each.model.warnings:
            show("\n".join(labelled("warning:", plain(warning))))
        does = each.forced or isinstance(each.outcome, Placement)
        if does and is_terminal() and devices:
            from memscaler.cli.planning.picture import draw

            draw(each.placement, devices, budget)
        show(text.outcome(each))
        if does:
            devices = after(devices, each.placement)
            busy |= set(each.placement.uuids)
    idle = [text.label(gpu) for gpu in devices if gpu.uuid not in busy]
    if idle and busy:
        print(f"not used: {', '.join(idle)}")
    for note in found.notes:
        show("\n".join(labelled("note:", plain(note))))


def _show_budgets(found: Survey, budget: Budget, *, as_json: bool) -> None:
    from memscaler.cli.output import labelled, plain, print_json, show
    from memscaler.cli.planning import text
    from memscaler.planner import visible
    from memscaler.planner.devices import offers, require_room

    require_room(found.devices, budget)
    offered = offers(found.devices, budget)
    used = [each.device for each in offered if each.budget_bytes]
    environment = {} if used[0].hypothetical else visible.environment([gpu.uuid for gpu in used])
    if as_json:
        print_json({**text.budgets_document(offered, budget, environment), "notes": list(found.notes)})
        return
    show(text.budgets(offered, budget))
    for key, value in environment.items():
        print(f"environment: {key}={value}")
    for note in found.notes:
        show("\n".join(labelled("note:", plain(note))))
