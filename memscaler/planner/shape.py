"""What each layer keeps in memory beside its weights, as its model's metadata and tensors say.

The facts are llama.cpp's: src/llama-hparams.cpp (n_embd_k_gqa, n_embd_r, n_embd_s, set_swa_pattern, has_kv),
src/llama-model.cpp (load_hparams, create_memory) and src/models/*.cpp (load_arch_hparams).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memscaler.planner.header import Value

# No cache at all (create_memory): they read all of a text at once.
ENCODERS = frozenset({
    "bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert",
    "gemma-embedding", "t5encoder", "wavtokenizer-dec", "dream", "llada", "llada-moe", "rnd1",
})  # fmt: skip

# Every how many layers one sees all of the context, where the file does not say (sliding_window_pattern).
_PERIODS = {
    "gemma2": 2, "gemma3": 6, "gemma3n": 5, "cohere2": 4, "cohere2moe": 4, "gpt-oss": 2, "llama4": 4, "exaone4": 4,
    "exaone-moe": 4, "olmo2": 4, "smallthinker": 4, "afmoe": 4, "laguna": 4, "plamo3": 8,
}  # fmt: skip
_DENSE_FIRST = frozenset({"smallthinker", "laguna"})  # the full layer is the first of its group, not the last
_WINDOWS = {"gemma2": 4096, "llama4": 8192}  # where the file does not say
_FIXED_WINDOWS = {"llama4": 8192, "smallthinker": 4096}  # whatever the file says, unless it says 0
_NO_WINDOW = frozenset({"phi3", "phimoe"})  # the file names one, llama.cpp does not use it
_EXAONE4_WITH_WINDOW = 64  # layers: the 32B model; the small one has full attention
_FLOAT_BYTES = 4  # recurrent state is always f32

_RECURRENT_TENSORS = ("ssm_", "time_mix_", "shortconv.")
_ATTENTION_TENSORS = ("attn_output.weight", "attn_o.weight", "attn_out.weight")


@dataclass(frozen=True, slots=True)
class Cache:
    """What one layer keeps: see model.Layer."""

    heads: int = 0
    kv_heads: int = 0
    key_length: int = 0
    value_length: int = 0
    index_length: int = 0
    query_length: int = 0
    window: int = 0
    state_bytes: int = 0
    state_width: int = 0


class Metadata:
    """The fields of a model under its architecture's prefix, each of the type that is asked for, or the default."""

    def __init__(self, fields: Mapping[str, Value], architecture: str) -> None:
        self.fields = fields
        self.architecture = architecture

    def raw(self, key: str) -> Value:
        return self.fields.get(f"{self.architecture}.{key}")

    def number(self, key: str, default: int = 0) -> int:
        """A whole number; of an array its first."""
        value = self.raw(key)
        if isinstance(value, tuple):
            value = value[0] if value else None
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else default

    def at(self, key: str, layer: int, default: int = 0) -> int:
        """A whole number that may differ from layer to layer."""
        value = self.raw(key)
        if not isinstance(value, tuple):
            return self.number(key, default)
        each = value[layer] if layer < len(value) else None
        return int(each) if isinstance(each, int) and each >= 0 else default

    def largest(self, key: str, default: int = 0) -> int:
        """Of an array its largest."""
        value = self.raw(key)
        if isinstance(value, tuple):
            return max((each for each in value if isinstance(each, int)), default=default)
        return self.number(key, default)


def cache_of(meta: Metadata, layer: int, layers: int, tensors: frozenset[str]) -> Cache:
    """What a layer keeps. layers: how many there are; tensors: their names in this layer, without blk.N."""
    if meta.architecture in ENCODERS:
        return Cache(heads=meta.at("attention.head_count", layer))
    recurrent = any(name.startswith(_RECURRENT_TENSORS) for name in tensors)
    state, wide = (_state_bytes(meta), _state_width(meta, tensors)) if recurrent else (0, 0)
    heads = meta.at("attention.head_count", layer)
    kv_heads = meta.at("attention.head_count_kv", layer, heads)
    attends = any(name in tensors for name in _ATTENTION_TENSORS) and _has_own_cache(meta, layer, layers)
    if not attends or not kv_heads:
        return Cache(heads=heads if attends else 0, state_bytes=state, state_width=wide)
    window = _window(meta, layer, layers)
    key, value = _lengths(meta, window > 0)
    latent = meta.number("attention.key_length_mla")
    return Cache(
        heads=heads,
        kv_heads=kv_heads,
        key_length=key,
        value_length=0 if latent else value,
        index_length=meta.number("attention.indexer.key_length"),
        query_length=latent,
        window=window,
        state_bytes=state,
        state_width=wide,
    )


def _has_own_cache(meta: Metadata, layer: int, layers: int) -> bool:
    """False: it uses what an earlier layer keeps (gemma3n, gemma4)."""
    shared = meta.number("attention.shared_kv_layers")
    if meta.architecture == "gemma3n" and not shared:
        return layer < 20  # noqa: PLR2004 -- fixed in llama.cpp: n_layer_kv_from_start
    return layer < layers - shared


def _lengths(meta: Metadata, windowed: bool) -> tuple[int, int]:  # noqa: FBT001
    heads = meta.largest("attention.head_count")
    default = meta.number("embedding_length") // heads if heads else 0
    key = meta.number("attention.key_length", default)
    value = meta.number("attention.value_length", default)
    if windowed:
        key = meta.number("attention.key_length_swa", key)
        value = meta.number("attention.value_length_swa", value)
    return key, value


def _window(meta: Metadata, layer: int, layers: int) -> int:
    """How many tokens a layer looks back; 0: at all."""
    name = meta.architecture
    window = meta.number("attention.sliding_window", _WINDOWS.get(name, 0))
    if window:
        window = _FIXED_WINDOWS.get(name, window)
    if name == "exaone4" and layers == _EXAONE4_WITH_WINDOW:
        window = window or 4096
    if not window or name in _NO_WINDOW or (name == "exaone4" and layers != _EXAONE4_WITH_WINDOW):
        return 0
    return window if _slides(meta, layer) else 0


def _slides(meta: Metadata, layer: int) -> bool:
    pattern = meta.raw("attention.sliding_window_pattern")
    if isinstance(pattern, tuple):
        return bool(pattern[layer]) if layer < len(pattern) else False
    period = meta.number("attention.sliding_window_pattern", _PERIODS.get(meta.architecture, 1))
    if not period:
        return True
    return bool(layer % period) if meta.architecture in _DENSE_FIRST else layer % period < period - 1


def window_is_unknown(meta: Metadata) -> bool:
    """Whether the file names a window but neither it nor we know which layers slide."""
    return (
        bool(meta.number("attention.sliding_window"))
        and meta.raw("attention.sliding_window_pattern") is None
        and meta.architecture not in _PERIODS
        and meta.architecture not in _NO_WINDOW
        and meta.architecture not in ENCODERS
    )


def _state_width(meta: Metadata, tensors: frozenset[str]) -> int:
    """How many numbers a recurrent layer holds at once for each token; measured, as all of compute.py."""
    inner = meta.number("ssm.inner_size")
    if not inner:  # RWKV, short convolutions
        return 8 * meta.number("embedding_length")
    convolved = inner + 2 * meta.number("ssm.group_count") * meta.number("ssm.state_size")
    if "ssm_in.weight" in tensors:  # Mamba: one projection, and four forms of what is convolved
        return 2 * inner + 4 * convolved
    return inner + 3 * convolved  # a delta net: its gate, and three


def _state_bytes(meta: Metadata) -> int:
    """Of one sequence in one recurrent layer (n_embd_r and n_embd_s)."""
    width = meta.number("embedding_length")
    if head := meta.number("wkv.head_size"):
        return _FLOAT_BYTES * (meta.number("token_shift_count", 2) * width + width * head)
    if kept := meta.number("shortconv.l_cache"):
        return _FLOAT_BYTES * width * (kept - 1)
    convolved = max(0, meta.number("ssm.conv_kernel") - 1)
    if head := meta.number("kda.head_dim"):
        inner = meta.largest("attention.head_count") * head
        return _FLOAT_BYTES * (3 * convolved * inner + inner * head)
    inner, state = meta.number("ssm.inner_size"), meta.number("ssm.state_size")
    return _FLOAT_BYTES * (convolved * (inner + 2 * meta.number("ssm.group_count") * state) + state * inner)
