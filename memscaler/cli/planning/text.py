"""Plans in words: tables of 80 columns where they can be, and the same as documents for programs."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memscaler.cli.output import INDENT, columns, labelled, plain
from memscaler.planner.devices import Budget, Device, Offer
from memscaler.planner.memory import Needs
from memscaler.planner.model import Model
from memscaler.planner.placement import Placement, Share, Shortfall
from memscaler.planner.sizes import size

NAME_WIDTH = 18


@dataclass(frozen=True, slots=True)
class Planned:
    """One model and what came of it. forced: what does not fit whole is done in part."""

    model: Model
    needs: Needs
    outcome: Placement | Shortfall
    forced: bool = False

    @property
    def placement(self) -> Placement:
        """The plan, or the best that can be done instead."""
        return self.outcome.best if isinstance(self.outcome, Shortfall) else self.outcome


def label(gpu: Device) -> str:
    """As operators call it."""
    return f"gpu{gpu.index}"


def short_name(gpu: Device) -> str:
    """What of the name tells it from others."""
    name = plain(gpu.name).removeprefix("NVIDIA ")
    return name if len(name) <= NAME_WIDTH else name[: NAME_WIDTH - 3] + "..."


def layers(share: Share) -> str:
    """For example "0-25", "26-31, output"."""
    parts = []
    if share.first is not None and share.last is not None:
        parts.append(f"{share.first}-{share.last}" if share.last > share.first else str(share.first))
    return ", ".join([*parts, "output"] if share.has_output else parts)


# ---- budgets --------------------------------------------------------------------------------------------------------


def budgets(offered: Sequence[Offer], budget: Budget) -> str:
    """What each GPU has to give."""
    rows = [("GPU", "NAME", "TOTAL", "FREE", "BUDGET")]
    for each in offered:
        gpu = each.device
        gives = size(each.budget_bytes) if each.budget_bytes else "not used"
        rows.append((label(gpu), short_name(gpu), size(gpu.total_bytes), size(gpu.free_bytes), gives))
    kept = f"{size(budget.reserve_bytes)} of each are reserved; filled in this order ({budget.order})"
    return f"{columns(rows)}\n{kept}"


def budgets_document(offered: Sequence[Offer], budget: Budget, environment: Mapping[str, str]) -> dict[str, object]:
    """The same for programs."""
    return {
        "reserve_bytes": budget.reserve_bytes,
        "min_budget_bytes": budget.minimum_bytes,
        "device_order": budget.order,
        "environment": dict(environment),
        "tensor_split": [each.budget_bytes >> 20 for each in offered if each.budget_bytes],
        "gpus": [{**device_document(each.device), "budget_bytes": each.budget_bytes} for each in offered],
    }


def device_document(gpu: Device) -> dict[str, object]:
    """One GPU."""
    return {
        "index": gpu.index,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "pci_bus_id": gpu.pci,
        "total_bytes": gpu.total_bytes,
        "free_bytes": gpu.free_bytes,
    }


# ---- one model ------------------------------------------------------------------------------------------------------


def heading(planned: Planned) -> str:
    """The model and how it is to be served."""
    model, demand, needs = planned.model, planned.needs.demand, planned.needs
    kinds = demand.cache_type_k
    if demand.cache_type_v != kinds:
        kinds += f"/{demand.cache_type_v}"
    slots = "1 slot" if needs.slots == 1 else f"{needs.slots} slots"
    first = f"{plain(model.name)}: {plain(model.architecture)}, {len(model.layers)} layers, {size(model.file_bytes)}"
    return f"{first}\n{INDENT}context {needs.context} tokens, {slots}, KV cache {kinds}"


def outcome(planned: Planned) -> str:
    """The table, the words for llama-server, what is missing and what would help."""
    made, result = planned.placement, planned.outcome
    parts = []
    if isinstance(result, Shortfall):
        parts.append(_missing(result))
        if not planned.forced:
            return "\n".join(parts)
    parts += [*_table(made), *_words(made)]
    for note in made.notes:
        parts += labelled("note:", plain(note))
    return "\n".join(parts)


def _missing(short: Shortfall) -> str:
    lines = [f"does not fit: {short}"]
    if short.remedies:
        lines.append("what would help:")
    lines += [f"{INDENT}{each.text}: {' '.join(map(shlex.quote, each.arguments))}" for each in short.remedies]
    for note in short.notes:
        lines += labelled("note:", plain(note))
    return "\n".join(lines)


def _table(made: Placement) -> list[str]:
    """Nothing, if nothing is on GPUs."""
    rows = [("GPU", "NAME", "LAYERS", "WEIGHTS", "CONTEXT", "COMPUTE", "FULL"), *map(_row, made.shares)]
    on_cpu = f"CPU: {cpu_part(made)}; {size(made.cpu_bytes)}"
    return [columns(rows), on_cpu] if made.shares else [on_cpu]


def _row(share: Share) -> tuple[str, ...]:
    return (
        label(share.device),
        short_name(share.device),
        layers(share),
        size(share.weight_bytes),
        size(share.context_bytes),
        size(share.compute_bytes),
        f"{math.ceil(100 * share.used_bytes / share.budget_bytes)}%",
    )


def cpu_part(made: Placement) -> str:
    """What is left to the CPU."""
    first = made.layers + 1 - made.gpu_layers
    if first > made.layers:
        return "everything"
    parts = ["embedding"]
    if first:
        parts.append("0" if first == 1 else f"0-{first - 1}")
    if made.cpu_experts:
        parts.append(f"experts of {'0' if made.cpu_experts == 1 else f'0-{made.cpu_experts - 1}'}")
    if made.overrides:
        parts.append("some tensors (-ot)")
    return ", ".join(parts)


def _words(made: Placement) -> list[str]:
    lines = [f"arguments: {' '.join(map(shlex.quote, made.arguments))}"]
    lines += [f"environment: {key}={value}" for key, value in made.environment.items()]
    if made.source != "memscaler":
        lines.append(f"planned by {plain(made.source)}")
    return lines


def document(planned: Planned) -> dict[str, object]:
    """For programs."""
    result, made, model = planned.outcome, planned.placement, planned.model
    return {
        "model": {
            "paths": [str(path) for path in model.paths],
            "name": model.name,
            "architecture": model.architecture,
            "layers": len(model.layers),
            "file_bytes": model.file_bytes,
            "warnings": list(model.warnings),
        },
        "context": planned.needs.context,
        "slots": planned.needs.slots,
        "fits": isinstance(result, Placement),
        "shortfall": _shortfall(result) if isinstance(result, Shortfall) else None,
        "placement": placement_document(made),
    }


def _shortfall(short: Shortfall) -> dict[str, object]:
    return {
        "missing_bytes": short.missing_bytes,
        "needed_bytes": short.needed_bytes,
        "budget_bytes": short.budget_bytes,
        "split_bytes": short.split_bytes,
        "remedies": [{"text": each.text, "arguments": list(each.arguments)} for each in short.remedies],
        "notes": list(short.notes),
    }


def placement_document(made: Placement) -> dict[str, object]:
    """A plan; layer_uuids: the GPU of every layer and of the output, None is the CPU."""
    return {
        "whole": made.whole,
        "source": made.source,
        "arguments": list(made.arguments),
        "environment": made.environment,
        "cpu_bytes": made.cpu_bytes,
        "cpu_experts": made.cpu_experts,
        "idle": [gpu.uuid for gpu in made.idle],
        "notes": list(made.notes),
        "gpus": [
            {
                **device_document(share.device),
                "budget_bytes": share.budget_bytes,
                "first_layer": share.first,
                "last_layer": share.last,
                "output": share.has_output,
                "weight_bytes": share.weight_bytes,
                "context_bytes": share.context_bytes,
                "compute_bytes": share.compute_bytes,
            }
            for share in made.shares
        ],
        "layer_uuids": [None if index is None else made.uuids[index] for index in made.slots()],
    }
