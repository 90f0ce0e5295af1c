"""What would make a model fit that does not: every answer is tried out before it is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from memscaler.core.errors import UsageError
from memscaler.planner import placement
from memscaler.planner.devices import Budget, Device
from memscaler.planner.load import load_of
from memscaler.planner.memory import PAD_TOKENS, Demand, needs
from memscaler.planner.model import Model
from memscaler.planner.placement import Remedy, best_part
from memscaler.planner.sizes import size

SMALLER = ("q8_0", "q4_0")  # cache types, the better first
LEAST_TOKENS = 1024  # per slot: with less there is no talking


def remedies(model: Model, demand: Demand, devices: Sequence[Device], budget: Budget) -> tuple[Remedy, ...]:
    """The best first: those that keep everything on the GPUs come before those that do not."""
    return (*_whole(model, demand, devices, budget), *_part(model, demand, devices, budget))


def fits(model: Model, demand: Demand, devices: Sequence[Device], budget: Budget) -> bool:
    """Whether it does with this demand; one that llama.cpp refuses does not."""
    try:
        return placement.fits(load_of(needs(model, demand)), devices, budget)
    except UsageError:
        return False


def _whole(model: Model, demand: Demand, devices: Sequence[Device], budget: Budget) -> Iterator[Remedy]:
    tokens = _context(model, demand, devices, budget)
    if tokens:
        yield Remedy(f"a context of {tokens} tokens", ("-c", str(tokens)))
    if demand.flash_attention == "off":
        return  # without it the values cannot be quantised
    for kind in SMALLER:
        smaller = replace(demand, cache_type_k=kind, cache_type_v=kind)
        words = ("-ctk", kind, "-ctv", kind)
        if kind in (demand.cache_type_k, demand.cache_type_v):
            continue
        if fits(model, smaller, devices, budget):
            yield Remedy(f"a KV cache of type {kind}", words)
            return
        both = _context(model, smaller, devices, budget)
        if both > tokens:
            yield Remedy(f"a KV cache of type {kind} with a context of {both} tokens", (*words, "-c", str(both)))


def _context(model: Model, demand: Demand, devices: Sequence[Device], budget: Budget) -> int:
    """The longest context that fits; 0 if none does."""
    try:
        now = needs(model, demand)
    except UsageError:
        return 0
    step = PAD_TOKENS * max(1, now.context // max(now.slot_context, 1))
    low, high = 0, now.context // step
    while low < high - 1:
        middle = (low + high) // 2
        if fits(model, replace(demand, context=middle * step), devices, budget):
            low = middle
        else:
            high = middle
    slots = max(1, now.context // max(now.slot_context, 1))
    return low * step if low * step >= min(LEAST_TOKENS * slots, now.context) else 0


def _part(model: Model, demand: Demand, devices: Sequence[Device], budget: Budget) -> Iterator[Remedy]:
    wanted = load_of(needs(model, demand))
    if any(layer.expert_bytes for layer in wanted.layers):
        made = best_part(wanted, devices, budget, layers=False)
        if made.shares:
            text = f"the experts of the first {made.cpu_experts} layers on the CPU"
            yield Remedy(f"{text} ({size(made.cpu_bytes)} of its memory)", made.arguments)
    made = best_part(wanted, devices, budget, experts=False)
    if made.shares:
        kept = made.gpu_layers
        text = f"{kept} of {made.layers + 1} layers on GPUs, counting the output"
        yield Remedy(f"{text} ({size(made.cpu_bytes)} on the CPU, slower)", made.arguments)
    else:
        yield Remedy(f"the CPU alone ({size(made.cpu_bytes)} of its memory, much slower)", made.arguments)
