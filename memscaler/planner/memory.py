"""What a model needs in memory to serve: weights, cache, recurrent state, compute buffers.

The rules are llama.cpp's. Context and slots: src/llama-context.cpp (llama_context). The cache: src/llama-kv-cache.cpp,
src/llama-kv-cache-iswa.cpp (sliding windows), src/llama-kv-cache-dsa.cpp (the indexer's). Recurrent state:
src/llama-memory-recurrent.cpp, src/llama-memory-hybrid.cpp. Compute buffers: see compute.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from memscaler.core.errors import UsageError
from memscaler.planner.compute import Compute, Step, compute_of
from memscaler.planner.header import library
from memscaler.planner.model import Layer, Model

PAD_TOKENS = 256  # of the context, and of the cache of a sliding window
MOST_SLOTS = 256  # LLAMA_MAX_SEQ
AUTO_SLOTS = 4  # llama-server without -np: four, which share one cache
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")

FlashAttention = Literal["on", "off", "auto"]


@dataclass(frozen=True, slots=True)
class Demand:
    """How a model is to be served, in llama-server's words.

    context: tokens of all slots together, 0 is what the model was made for (-c). slots: requests at once, 0 is
    llama-server's own choice (-np). unified: slots share one cache of `context` tokens (-kvu); None: they do where
    llama-server chooses the slots. outputs: tokens of a step that get logits, 0 is `ubatch`, which servers before 2026
    reserve; later ones reserve one for each slot. offload_cache False: the cache stays on the CPU (-nkvo).
    layers_on_gpu: -ngl, None is as many as fit. experts_on_cpu: of that many first layers (--n-cpu-moe), -1 is of all.
    """

    context: int = 0
    slots: int = 0
    unified: bool | None = None
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    batch: int = 2048
    ubatch: int = 512
    flash_attention: FlashAttention = "auto"
    swa_full: bool = False
    offload_cache: bool = True
    layers_on_gpu: int | None = None
    experts_on_cpu: int = 0
    mmap: bool = True
    outputs: int = 0


@dataclass(frozen=True, slots=True)
class LayerNeeds:
    """Bytes of one layer. expert_bytes are a part of weight_bytes, and may stay on the CPU."""

    index: int
    weight_bytes: int
    expert_bytes: int
    kv_bytes: int
    state_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.kv_bytes + self.state_bytes


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes that a model takes. context: tokens in the cache, after rounding; slot_context: of one slot.

    embedding_bytes: always on the CPU. output_bytes: the output layer, one slot after the last layer in -ngl and -ts.
    compute: the buffers of a device, by what it does. projector_bytes: of the mmproj file and of what it
    computes in, on the first GPU.
    """

    model: Model
    demand: Demand
    context: int
    slot_context: int
    slots: int
    unified: bool
    flash_attention: bool
    layers: tuple[LayerNeeds, ...]
    embedding_bytes: int
    output_bytes: int
    compute: Compute
    projector_bytes: int = 0

    @property
    def weight_bytes(self) -> int:
        """Of the layers and the output."""
        return sum(each.weight_bytes for each in self.layers) + self.output_bytes

    @property
    def cache_bytes(self) -> int:
        """Of the cache and the recurrent state of all layers."""
        return sum(each.kv_bytes + each.state_bytes for each in self.layers)


def needs(model: Model, demand: Demand | None = None) -> Needs:
    """What a model needs to be served like this. Raise UsageError for what llama.cpp refuses."""
    demand = demand or Demand()
    _check(demand)
    slots = demand.slots or AUTO_SLOTS
    unified = demand.unified if demand.unified is not None else not demand.slots
    context, slot_context = _context(demand.context or model.context_length or 4096, slots, unified=unified)
    flash = demand.flash_attention != "off"
    if demand.flash_attention == "off" and _block(demand.cache_type_v)[0] > 1:
        hint = "leave -fa on, or --cache-type-v f16"
        raise UsageError("a quantised cache of values takes flash attention", hint=hint)
    cells = Cells(context, slot_context, slots, unified)
    ubatch = min(demand.ubatch, demand.batch, context)
    _check_rows(model, demand)
    layers = tuple(_layer_needs(model, each, demand, cells, flash=flash) for each in model.layers)
    windows = (cells.of(each.window, ubatch, swa_full=demand.swa_full) for each in model.layers if each.window)
    compute = compute_of(
        model,
        Step(
            ubatch=ubatch,
            cells=slot_context if any(each.kv_heads and not each.window for each in model.layers) else 0,
            window_cells=max(windows, default=0),
            outputs=min(demand.outputs or ubatch, ubatch),
            slots=slots,
            flash=flash,
        ),
    )
    return Needs(
        model=model,
        demand=demand,
        context=context,
        slot_context=slot_context,
        slots=slots,
        unified=unified,
        flash_attention=flash,
        layers=layers,
        embedding_bytes=model.embedding_bytes,
        output_bytes=model.output_bytes,
        compute=compute,
        projector_bytes=model.projector_bytes + model.projector_compute_bytes,
    )


def _check(demand: Demand) -> None:
    for value, name in ((demand.context, "context"), (demand.slots, "slots"), (demand.outputs, "outputs")):
        if value < 0:
            raise UsageError(f"{name} {value}: not below 0")
    if demand.slots > MOST_SLOTS:
        raise UsageError(f"slots {demand.slots}: llama.cpp has {MOST_SLOTS} at most")
    for value, name in ((demand.batch, "batch"), (demand.ubatch, "ubatch")):
        if value < 1:
            raise UsageError(f"{name} {value}: at least 1")
    for each in (demand.cache_type_k, demand.cache_type_v):
        if each not in CACHE_TYPES:
            raise UsageError(f"cache type {each}: one of {', '.join(CACHE_TYPES)}")


def _context(wanted: int, slots: int, *, unified: bool) -> tuple[int, int]:
    """Tokens in all, and of one slot (llama_context: n_ctx, n_ctx_seq)."""
    whole = _padded(wanted)
    if unified:
        return whole, whole
    each = _padded(whole // slots) or PAD_TOKENS
    return each * slots, each


def _padded(tokens: int) -> int:
    return -(-tokens // PAD_TOKENS) * PAD_TOKENS


@dataclass(frozen=True, slots=True)
class Cells:
    """How many tokens a layer's cache holds."""

    context: int
    slot_context: int
    slots: int
    unified: bool

    @property
    def streams(self) -> int:
        return 1 if self.unified else self.slots

    def of(self, window: int, ubatch: int, *, swa_full: bool) -> int:
        """Of one stream: llama_kv_cache_iswa keeps the window of each slot in it and one step, rounded up."""
        if not window or swa_full:
            return self.slot_context
        kept = window * (self.slots if self.unified else 1) + ubatch
        return _padded(min(self.slot_context, kept))


def _layer_needs(model: Model, layer: Layer, demand: Demand, cells: Cells, *, flash: bool) -> LayerNeeds:
    ubatch = min(demand.ubatch, demand.batch)
    rows = cells.of(layer.window, ubatch, swa_full=demand.swa_full) * cells.streams
    value = layer.kv_heads * layer.value_length
    if not flash and value:  # transposed values have rows of one length in all layers
        value = max(each.kv_heads * each.value_length for each in model.layers)
    kv = _row_bytes(demand.cache_type_k, layer.kv_heads * layer.key_length) + _row_bytes(demand.cache_type_v, value)
    if layer.kv_heads:
        kv += _row_bytes(demand.cache_type_k, layer.index_length)
    return LayerNeeds(
        index=layer.index,
        weight_bytes=layer.tensor_bytes,
        expert_bytes=layer.expert_bytes,
        kv_bytes=rows * kv,
        state_bytes=layer.state_bytes * cells.slots,
    )


def _row_bytes(kind: str, numbers: int) -> int:
    """Of one token's keys or values."""
    block, block_bytes = _block(kind)
    return numbers // block * block_bytes


def _check_rows(model: Model, demand: Demand) -> None:
    """Raise UsageError where a head is no whole number of a cache type's blocks: llama.cpp refuses it."""
    for layer in model.layers:
        lengths = ((demand.cache_type_k, layer.key_length), (demand.cache_type_v, layer.value_length))
        for kind, length in lengths:
            block, _ = _block(kind)
            if layer.kv_heads and length % block:
                raise UsageError(
                    f"cache type {kind} takes heads of a multiple of {block} numbers; this model's have {length}",
                    hint="leave this cache at f16",
                )


def _block(kind: str) -> tuple[int, int]:
    """Numbers in a block of a cache type, and its bytes."""
    constants = library()
    size: tuple[int, int] = constants.GGML_QUANT_SIZES[constants.GGMLQuantizationType[kind.upper()]]
    return size
