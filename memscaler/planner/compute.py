"""The compute buffers: what a step of `ubatch` tokens needs between its operations, on each device.

llama.cpp lays out the graph of the largest step (src/llama-context.cpp, graph_reserve) and lets ggml-alloc
(ggml/src/ggml-alloc.c) give memory to its results, which is used again as soon as the last reader of a result is done.
The peak is in one of a few places: the feed-forward part, attention, the logits.
"""

from __future__ import annotations

from dataclasses import dataclass

from memscaler.planner.model import Layer, Model

COPIES = 4  # of the inputs when several GPUs work on steps at once (GGML_SCHED_MAX_COPIES)
_FLOAT, _INDEX = 4, 8


@dataclass(frozen=True, slots=True)
class Step:
    """The largest step. cells: of one stream's full cache, 0 is none; window_cells: of a sliding window's.

    outputs: tokens that get logits; slots: of them kept at once.
    """

    ubatch: int
    cells: int
    window_cells: int
    outputs: int
    slots: int
    flash: bool


@dataclass(frozen=True, slots=True)
class Compute:
    """Bytes of compute buffers.

    middle_bytes: on a GPU with layers only. output_bytes: on the one that also has the output layer.
    inputs_bytes: of them, what is given from outside (masks, positions, the state of the layer before): kept `COPIES`
    times on each GPU while several share a model that is wholly on them. cpu_bytes: on the host, when all layers are on
    GPUs, with the logits that it gets.
    """

    middle_bytes: int
    output_bytes: int
    inputs_bytes: int
    cpu_bytes: int

    def on_gpu(self, *, output: bool, pipelined: bool = False) -> int:
        """Of a GPU. pipelined: several GPUs share the model, all of whose layers are on them."""
        extra = (COPIES - 1) * self.inputs_bytes if pipelined else 0
        return (self.output_bytes if output else self.middle_bytes) + extra


def compute_of(model: Model, step: Step) -> Compute:
    """The buffers of a step."""
    state = _FLOAT * step.ubatch * model.embedding_length
    # Flash attention takes a mask of 16-bit numbers, the plain one of 32-bit numbers; windows have their own.
    mask = (2 if step.flash else 4) * step.ubatch * (step.cells + step.window_cells)
    inputs = mask + state + 3 * _INDEX * step.ubatch  # a position for each token, and where its key and value go
    peak = max((_layer_peak(each, model, step) for each in model.layers), default=0)
    middle = inputs + _FLOAT * step.ubatch * peak
    logits = _FLOAT * step.outputs * (model.vocabulary + model.embedding_length)
    return Compute(
        middle_bytes=middle,
        output_bytes=max(middle, inputs + 3 * state + logits),
        inputs_bytes=inputs,
        cpu_bytes=inputs + _FLOAT * step.slots * model.vocabulary,
    )


def _layer_peak(layer: Layer, model: Model, step: Step) -> int:
    """The most numbers that one layer holds at once for each token, beside what comes in.

    Each part counts what lies ready for it (its input, the same with its norm, what is added to its result) and its own
    results. Feed-forward: gate, up and their product. Experts: the same of each that is used, and later its result
    twice, with and without its weight.
    """
    width, used = model.embedding_length, model.experts_used
    dense = 3 * layer.feed_forward + 4 * width
    products = 3 * used * layer.expert_feed_forward + 4 * width
    results = used * (2 * width + layer.expert_feed_forward) + 2 * width
    experts = max(products, results) if layer.expert_bytes else 0
    recurrence = layer.state_width + 3 * width if layer.state_bytes else 0
    return max(dense, experts, _attention(layer, width, step), recurrence)


def _attention(layer: Layer, width: int, step: Step) -> int:
    """Queries before and after their rotation, keys, values, and without flash attention a score for every cell."""
    if not layer.heads:
        return 0
    cells = step.window_cells if layer.window else step.cells or step.ubatch  # without a cache: of the step itself
    scores = 0 if step.flash else layer.heads * cells
    queries = layer.heads * ((layer.query_length or 0) + 2 * layer.key_length)
    return queries + layer.kv_heads * (layer.key_length + layer.value_length) + 3 * width + scores
