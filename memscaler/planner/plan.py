"""One call for others: a model file, how it is to be served, the GPUs; the answer is arguments, or what is missing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from memscaler.planner import fit, rule, visible
from memscaler.planner.devices import Budget, Device, Offer, choose, offers, survey
from memscaler.planner.gguf import read_model
from memscaler.planner.load import Load, load_of
from memscaler.planner.memory import PAD_TOKENS, Demand, Needs, needs
from memscaler.planner.model import Model
from memscaler.planner.placement import Placement, Share, Shortfall, by_slots, place, prove
from memscaler.planner.remedies import remedies


@dataclass(frozen=True, slots=True)
class Adviser:
    """llama.cpp's own program, to be asked before our figures count. program: its path."""

    program: str
    timeout_s: float = fit.TIMEOUT_S


def plan_for(  # what a plan depends on
    path: Path,
    demand: Demand | None = None,
    budget: Budget | None = None,
    devices: Sequence[Device] | None = None,
    *,
    projector: Path | None = None,
    adviser: Adviser | None = None,
    part: bool = False,
) -> Placement | Shortfall:
    """Where this model goes. devices: None is every GPU of this machine that CUDA_VISIBLE_DEVICES shows.

    part: with fewer layers, or experts on the CPU, where it does not fit whole; then the answer is a Placement.
    Raise ModelFileError, UsageError, DriverUnavailable.
    """
    model = read_model(path, projector)
    found = choose(survey(), os.environ).devices if devices is None else devices
    outcome = plan_model(model, demand or Demand(), budget or Budget(), found, adviser=adviser)
    return outcome.best if part and isinstance(outcome, Shortfall) else outcome


def plan_model(
    model: Model, demand: Demand, budget: Budget, devices: Sequence[Device], *, adviser: Adviser | None = None
) -> Placement | Shortfall:
    """The same for a model that is read already."""
    wanted = needs(model, demand)
    load = load_of(wanted)
    outcome = place(load, devices, budget)
    if adviser is not None and not any(gpu.hypothetical for gpu in devices):
        outcome = _advised(model, demand, load, budget, devices, outcome, adviser)
    outcome = replace(outcome, notes=(*outcome.notes, *_longer_than_made_for(model, wanted)))
    if isinstance(outcome, Shortfall):
        return replace(outcome, remedies=remedies(model, demand, devices, budget))
    return outcome


def _longer_than_made_for(model: Model, wanted: Needs) -> tuple[str, ...]:
    """What a context beyond the model's own is worth; up to its rounding nothing is to be said."""
    made_for = model.context_length
    if not made_for or wanted.slot_context - made_for < PAD_TOKENS:
        return ()
    note = f"the model was made for {made_for} tokens, and llama.cpp of 2026 gives no slot more"
    return (f"{note}; the memory of {wanted.context} is taken all the same",)


def after(devices: Sequence[Device], made: Placement) -> tuple[Device, ...]:
    """The GPUs as they are when this plan has been carried out: for the next model."""
    used = {share.device.uuid: share.used_bytes for share in made.shares}
    return tuple(replace(gpu, free_bytes=gpu.free_bytes - used.get(gpu.uuid, 0)) for gpu in devices)


# ---- llama-fit-params -----------------------------------------------------------------------------------------------


def _advised(
    model: Model,
    demand: Demand,
    load: Load,
    budget: Budget,
    devices: Sequence[Device],
    ours: Placement | Shortfall,
    adviser: Adviser,
) -> Placement | Shortfall:
    """Its plan for the GPUs that we would take, for all where that leaves something out; ours if it has none."""
    offered = offers(devices, budget)
    usable = [offer for offer in offered if offer.budget_bytes]
    busy = set(ours.uuids) if isinstance(ours, Placement) else {offer.device.uuid for offer in usable}
    chosen = [offer for offer in usable if offer.device.uuid in busy]
    demand = replace(demand, context=needs(model, demand).context)
    try:
        made = _ask(model, demand, load, budget, chosen, offered, adviser)
        if not made.whole and len(chosen) < len(usable):
            made = _ask(model, demand, load, budget, usable, offered, adviser)
    except fit.FitFailed as error:
        note = f"{Path(adviser.program).name}: {error}; planned with memscaler's own figures"
        return replace(ours, notes=(*ours.notes, note))
    if made.whole:
        return made
    if isinstance(ours, Shortfall):
        return replace(ours, best=made)
    note = f"memscaler's own figures would let it fit; {Path(adviser.program).name} says that it does not"
    left = load.output_bytes + sum(layer.weight_bytes + layer.context_bytes for layer in load.layers)
    left -= sum(share.weight_bytes + share.context_bytes for share in made.shares)
    total = left + sum(share.used_bytes for share in made.shares)
    return Shortfall(left, total, sum(offer.budget_bytes for offer in usable), made, notes=(note,))


def _ask(
    model: Model,
    demand: Demand,
    load: Load,
    budget: Budget,
    chosen: Sequence[Offer],
    offered: Sequence[Offer],
    adviser: Adviser,
) -> Placement:
    """Its plan for the chosen GPUs, as arguments of ours. Raise FitFailed."""
    if not chosen:
        raise fit.FitFailed("there is no GPU to ask it about")
    environ = {**os.environ, **visible.environment([offer.device.uuid for offer in chosen])}
    path, timeout_s = model.paths[0], adviser.timeout_s
    answer = fit.ask(adviser.program, path, demand, budget.reserve_bytes, environ, timeout_s)
    if len(answer.split) > len(chosen):
        raise fit.FitFailed(f"it splits over {len(answer.split)} GPUs, and was shown {len(chosen)}")
    if demand.context and answer.context != demand.context:
        raise fit.FitFailed(f"it plans for a context of {answer.context} tokens, and was asked for {demand.context}")
    free = [offer.device.free_bytes for offer in chosen]
    layers = len(load.layers) + load.later_layers
    slots = rule.slots(layers, answer.gpu_layers, rule.proportions(answer.split, free))
    made = by_slots(load, chosen, offered, slots)
    if answer.overrides:
        made = _overridden(made, answer.overrides, len(chosen))
    made = prove(replace(made, source=Path(adviser.program).name, notes=()))
    try:
        rows = fit.measure(adviser.program, path, demand, made.arguments, {**environ, **made.environment}, timeout_s)
    except fit.FitFailed as error:
        return replace(made, notes=(f"{Path(adviser.program).name}: {error}; the figures are memscaler's own",))
    if len(rows) != len(made.shares) + 1:
        return replace(made, notes=("the figures are memscaler's own: its table has other GPUs",))
    shares = tuple(_measured(share, row) for share, row in zip(made.shares, rows, strict=False))
    return replace(made, shares=shares)


def _overridden(made: Placement, overrides: str, shown: int) -> Placement:
    """With -ot. What it names other than the CPU is a GPU by its place among those shown: none may be left out."""
    elsewhere = [part for part in overrides.split(",") if not part.rpartition("=")[2].startswith("CPU")]
    if elsewhere and len(made.shares) < shown:
        raise fit.FitFailed(f"it puts tensors onto a GPU without layers: {elsewhere[0]}")
    return replace(made, overrides=overrides)


def _measured(share: Share, row: fit.Row) -> Share:
    return replace(
        share, weight_bytes=row.model_bytes, context_bytes=row.context_bytes, compute_bytes=row.compute_bytes
    )


def adviser_in(environ: Mapping[str, str]) -> Adviser | None:
    """llama-fit-params, where it is installed."""
    program = fit.find(environ)
    return None if program is None else Adviser(program)
