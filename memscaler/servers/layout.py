"""Where a model that is to be served goes: by the planner, or where llama.cpp puts it on the GPUs that it may use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memscaler.core.errors import MemscalerError
from memscaler.planner import devices, visible
from memscaler.planner.devices import Budget, Device
from memscaler.planner.memory import Demand
from memscaler.planner.placement import Placement, Shortfall
from memscaler.planner.plan import plan_for
from memscaler.planner.sizes import size

SHORT = 2  # exit code


@dataclass(frozen=True, slots=True)
class Layout:
    """words, environment: for llama-server. gpus: UUIDs that it uses. lines: for people. document: for programs."""

    words: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    gpus: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    document: Mapping[str, Any] = field(default_factory=dict)


class DoesNotFit(MemscalerError):
    """The model does not fit as it is wanted."""

    exit_code = SHORT
    hint = "--force serves what fits"


def planned(
    model: Path, projector: Path | None, demand: Demand, there: Sequence[Device], budget: Budget, *, force: bool
) -> Layout:
    """Raise DoesNotFit, NoRoom, or what is wrong with the model's file. force: serve what fits."""
    if not force:
        devices.require_room(there, budget)
    found = plan_for(model, demand, budget, there, projector=projector)
    if isinstance(found, Shortfall):
        if not force:
            raise DoesNotFit("\n".join(_shortfall(model, found)))
        found = found.best
    return _of(found)


def left_to_llama(there: Sequence[Device]) -> Layout:
    """llama.cpp places it itself, on these GPUs."""
    uuids = tuple(gpu.uuid for gpu in there)
    names = ", ".join(f"gpu{gpu.index}" for gpu in there) or "the CPU"
    return Layout(
        environment=visible.environment(uuids),
        gpus=uuids,
        lines=(f"placed by llama.cpp itself on {names}",),
        document={"source": "llama.cpp", "gpus": uuids},
    )


def _of(found: Placement) -> Layout:
    return Layout(
        words=found.arguments,
        environment=found.environment,
        gpus=found.uuids,
        lines=(*lines(found), *found.notes),
        document={
            "source": found.source,
            "whole": found.whole,
            "gpus": [
                {
                    "gpu": f"gpu{share.device.index}",
                    "uuid": share.device.uuid,
                    "first_layer": share.first,
                    "last_layer": share.last,
                    "output": share.has_output,
                    "used_bytes": share.used_bytes,
                    "budget_bytes": share.budget_bytes,
                }
                for share in found.shares
            ],
            "cpu_bytes": found.cpu_bytes,
            "arguments": found.arguments,
            "environment": found.environment,
        },
    )


def lines(found: Placement) -> list[str]:
    """Where everything is, for people."""
    told = []
    for share in found.shares:
        layers = "the output" if share.first is None else f"layers {share.first}-{share.last}"
        if share.has_output and share.first is not None:
            layers += " and the output"
        gpu = share.device
        told.append(f"gpu{gpu.index} ({gpu.name}): {layers}, {size(share.used_bytes)} of {size(share.budget_bytes)}")
    if found.cpu_experts:
        told.append(f"CPU: the experts of {found.cpu_experts} layers")
    if found.gpu_layers <= found.layers:
        told.append(f"CPU: {found.layers + 1 - found.gpu_layers} layers, {size(found.cpu_bytes)} in all")
    return told


def _shortfall(model: Path, found: Shortfall) -> list[str]:
    what = f"{model.name} does not fit: {found}"
    would = [f"would fit: {remedy.text}" for remedy in found.remedies]
    return [what, *found.notes, *would, *(f"what fits: {line}" for line in lines(found.best))]
