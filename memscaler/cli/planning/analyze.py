"""`memscaler analyze`: what is in a model file, and what it needs in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memscaler.cli.options import Json, RuntimeDir, Simulate
from memscaler.cli.planning import options
from memscaler.cli.planning.options import Served, Where

if TYPE_CHECKING:
    from memscaler.cli.planning.text import Planned
    from memscaler.planner.devices import Survey
    from memscaler.planner.memory import Demand
    from memscaler.planner.model import Model

CONTEXTS = (4096, 8192, 32768, 131072)
KINDS = ("f16", "q8_0", "q4_0")


def analyze(
    model_file: Annotated[
        Path | None,
        typer.Argument(metavar="MODEL", help="A GGUF file; of a split model any part.", show_default=False),
    ] = None,
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
    devices: options.Devices = None,
    device_order: options.DeviceOrder = None,
    reserve_mib: options.Reserve = None,
    min_budget_mib: options.MinBudget = None,
    gpu: options.Gpu = None,
    layers: Annotated[bool, typer.Option("--layers", help="List every layer.")] = False,
    simulate: Simulate = None,
    runtime_dir: RuntimeDir = None,
    as_json: Json = False,
) -> None:
    """Show what a model file holds, what it needs in memory by context and cache type, and whether it fits here."""
    from memscaler.core.errors import UsageError

    served = Served(n_ctx, slots, cache_type_k, cache_type_v, batch, ubatch, flash_attn, swa_full, no_kv_offload)
    where = Where(devices, device_order, reserve_mib, min_budget_mib, gpu, simulate, runtime_dir, options.OFF)
    path = model_file or model
    if path is None or (model_file and model):
        raise UsageError("which model? Name one file", hint="memscaler analyze MODEL.gguf")
    planned, found = _look(path, mmproj, served.demand(), where)
    if as_json:
        _print_document(planned, found)
        return
    _print(planned, found, where, layers=layers)


def _look(path: Path, projector: Path | None, demand: Demand, where: Where) -> tuple[Planned, Survey]:
    """A machine without GPUs is none to be ashamed of: the model is shown all the same."""
    from memscaler.cli.planning.text import Planned
    from memscaler.core.errors import DriverUnavailable
    from memscaler.planner.devices import Survey
    from memscaler.planner.gguf import read_model
    from memscaler.planner.memory import needs
    from memscaler.planner.plan import plan_model

    budget = where.budget()
    model = read_model(path, projector)
    wanted = needs(model, demand)
    try:
        found = where.survey()
    except DriverUnavailable as error:
        found = Survey((), (f"no GPUs to plan for ({error}); --gpu 24GiB plans for one that you do not have",))
    return Planned(model, wanted, plan_model(model, demand, budget, found.devices)), found


def _print(planned: Planned, found: Survey, where: Where, *, layers: bool) -> None:
    from memscaler.cli.output import labelled, plain, show
    from memscaler.cli.paint import is_terminal
    from memscaler.cli.planning import text
    from memscaler.planner.placement import Placement

    show(text.heading(planned))
    for warning in planned.model.warnings:
        show("\n".join(labelled("warning:", plain(warning))))
    show("\n" + _contents(planned))
    show("\n" + _contexts(planned.model, planned.needs.demand))
    if layers:
        show("\n" + _layers(planned))
    if found.devices:
        print()
        if isinstance(planned.outcome, Placement) and is_terminal():
            from memscaler.cli.planning.picture import draw

            draw(planned.placement, found.devices, where.budget())
        show(text.outcome(planned))
    for note in found.notes:
        show("\n".join(labelled("note:", plain(note))))


def _contents(planned: Planned) -> str:
    """What the bytes are."""
    from memscaler.cli.output import columns, plain
    from memscaler.planner.sizes import size

    model, needs = planned.model, planned.needs
    weights = [layer.weight_bytes for layer in needs.layers]
    experts = sum(layer.expert_bytes for layer in needs.layers)
    rows = [("files", f"{len(model.paths)}, {size(model.file_bytes)}")]
    if weights:
        least, most = size(min(weights)), size(max(weights))
        rows.append(
            ("layers", f"{len(weights)} of {most}" if least == most else f"{len(weights)} of {least} to {most}")
        )
    if experts:
        rows.append(("experts", f"{size(experts)} of them; {model.experts_used} of {model.experts} are used per token"))
    tied = " (a copy of the embedding)" if model.tied else ""
    rows += [
        ("output", f"{size(needs.output_bytes)}{tied}"),
        ("embedding", f"{size(needs.embedding_bytes)}, on the CPU"),
    ]
    if needs.projector_bytes:
        rows.append(("projector", size(needs.projector_bytes)))
    if model.unused_bytes:
        rows.append(("not loaded", size(model.unused_bytes)))
    rows.append(("types", ", ".join(f"{plain(kind)} {size(amount)}" for kind, amount in model.types)))
    cache = sum(layer.kv_bytes for layer in needs.layers)
    state = sum(layer.state_bytes for layer in needs.layers)
    rows.append(("KV cache", f"{size(cache)} for {needs.context} tokens"))
    if state:
        rows.append(("state", f"{size(state)} for {needs.slots} slots"))
    rows.append(("compute", f"{size(needs.compute.on_gpu(output=True))} on the GPU with the output, an estimate"))
    return columns(rows)


def _contexts(model: Model, demand: Demand) -> str:
    """The KV cache by context and type."""
    from memscaler.cli.output import columns
    from memscaler.core.errors import UsageError
    from memscaler.planner.memory import needs
    from memscaler.planner.sizes import size

    lengths = [each for each in CONTEXTS if not model.context_length or each <= model.context_length]
    lengths = lengths or [model.context_length]
    rows: list[tuple[str, ...]] = [("KV CACHE", *(f"{each} tokens" for each in lengths))]
    for kind in KINDS:
        cells = []
        for length in lengths:
            try:
                wanted = needs(model, replace(demand, context=length, cache_type_k=kind, cache_type_v=kind))
                cells.append(size(sum(layer.kv_bytes for layer in wanted.layers)))
            except UsageError:
                cells.append("-")
        rows.append((kind, *cells))
    return columns(rows)


def _layers(planned: Planned) -> str:
    from memscaler.cli.output import columns
    from memscaler.planner.sizes import size

    rows: list[tuple[str, ...]] = [("LAYER", "WEIGHTS", "EXPERTS", "KV CACHE", "STATE")]
    for index, each in enumerate(planned.needs.layers):
        amounts = (each.weight_bytes, each.expert_bytes, each.kv_bytes, each.state_bytes)
        rows.append((str(index), *(size(amount) if amount else "-" for amount in amounts)))
    return columns(rows)


def _print_document(planned: Planned, found: Survey) -> None:
    from memscaler.cli.output import print_json
    from memscaler.cli.planning import text

    model, needs = planned.model, planned.needs
    document = text.document(planned)
    if not found.devices:
        document |= {"fits": None, "shortfall": None, "placement": None}
    print_json(
        {
            **document,
            "bytes": {
                "layers": [
                    {
                        "weight_bytes": each.weight_bytes,
                        "expert_bytes": each.expert_bytes,
                        "kv_bytes": each.kv_bytes,
                        "state_bytes": each.state_bytes,
                    }
                    for each in needs.layers
                ],
                "output_bytes": needs.output_bytes,
                "embedding_bytes": needs.embedding_bytes,
                "projector_bytes": needs.projector_bytes,
                "unused_bytes": model.unused_bytes,
                "compute_bytes": needs.compute.on_gpu(output=True),
                "types": dict(model.types),
            },
            "tied": model.tied,
            "context_length": model.context_length,
            "experts": model.experts,
            "experts_used": model.experts_used,
            "notes": list(found.notes),
        }
    )
