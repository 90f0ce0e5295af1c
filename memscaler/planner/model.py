"""What a model is, as its GGUF files say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Layer:
    """One repeating layer (blk.N). Bytes of its tensors; experts: those of its MoE experts, which may stay on the CPU.

    kv_heads, key_length, value_length: per token in the KV cache; 0 heads: this layer has none (recurrent, or it uses
    another's). value_length 0: values are a part of the keys (MLA). index_length: a third row of the cache, the keys of
    sparse attention's indexer. window: tokens that sliding-window attention keeps, 0 is all.
    state_bytes: recurrent state per sequence; state_width: numbers that
    it works with for each token. heads: of the queries, which have query_length before they are made to
    fit the keys (MLA; 0 elsewhere). feed_forward: width of its dense feed-forward part,
    0 is none; expert_feed_forward: of one expert.
    """

    index: int
    tensor_bytes: int
    expert_bytes: int = 0
    kv_heads: int = 0
    key_length: int = 0
    value_length: int = 0
    window: int = 0
    state_bytes: int = 0
    state_width: int = 0
    heads: int = 0
    index_length: int = 0
    query_length: int = 0
    feed_forward: int = 0
    expert_feed_forward: int = 0


@dataclass(frozen=True, slots=True)
class Model:
    """A whole model. embedding_bytes: token_embd, always on the CPU. output_bytes: the output layer with its norm.

    tied: token_embd doubles as the output, which then has a copy of its own (counted in output_bytes).
    tensor_bytes of a layer count what llama.cpp loads; unused_bytes are those of tensors that it leaves in the file:
    the layers that predict further tokens, later_layers of them, which -ngl and -ts count between the last layer and
    the output. projector_compute_bytes: what the projector computes in, for one image.
    file_bytes: of all parts. types: bytes by ggml type name. warnings: sentences.
    """

    paths: tuple[Path, ...]
    name: str
    architecture: str
    layers: tuple[Layer, ...]
    embedding_bytes: int
    output_bytes: int
    tied: bool
    file_bytes: int
    context_length: int
    embedding_length: int
    feed_forward_length: int
    head_count: int
    vocabulary: int
    experts: int = 0
    experts_used: int = 0
    projector_bytes: int = 0
    unused_bytes: int = 0
    later_layers: int = 0
    projector_compute_bytes: int = 0
    types: tuple[tuple[str, int], ...] = ()
    warnings: tuple[str, ...] = ()
