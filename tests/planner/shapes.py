"""Well-known large models as files that hold nothing but a true header: their tensors are holes, so 60 GiB take 1 MB.

Every tensor has the shape and the type that it has in the published file: llama.cpp's mix for the quantisation
(llama_tensor_get_type in src/llama-quant.cpp), checked against the counts of types that llama.cpp printed for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import gguf
import numpy as np

Types = gguf.GGMLQuantizationType
Row = tuple[str, tuple[int, ...], str]  # name, shape as NumPy has it (rows first), type


@dataclass(frozen=True)
class Shape:
    """A published model. gib, file_bytes: its size as published, of which one is known; tensors: of each type."""

    architecture: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    feed_forward: int
    vocabulary: int
    quantisation: str
    source: str
    context: int
    published_bytes: float
    tolerance_bytes: float
    counts: tuple[tuple[str, int], ...] = ()
    experts: int = 0
    used: int = 0
    separate_experts: bool = False


GIB, GB = 1 << 30, 10**9

LLAMA_2_7B = Shape(
    "llama", 4096, 32, 32, 32, 128, 11008, 32000, "Q4_0", "tools/llama-bench/README.md: llama 7B mostly Q4_0, 3.56 GiB", 4096, 3.56 * GIB, 0.005 * GIB,
)  # fmt: skip
LLAMA_2_7B_K = Shape(
    "llama", 4096, 32, 32, 32, 128, 11008, 32000, "Q4_K_M", "llama.cpp discussions 4167: LLaMA 7B Q4_K - Medium, 3.80 GiB", 4096, 3.80 * GIB, 0.005 * GIB,
    (("F32", 65), ("Q4_K", 193), ("Q6_K", 33)),
)  # fmt: skip
LLAMA_3_70B = Shape(
    "llama", 8192, 80, 64, 8, 128, 28672, 128256, "Q4_K_M", "bartowski/Meta-Llama-3.1-70B-Instruct-GGUF: 42.52GB", 131072, 42.52 * GB, 0.012 * GB,
)  # fmt: skip
MIXTRAL = Shape(
    "llama", 4096, 32, 32, 8, 128, 14336, 32000, "Q4_K_M", "ggml-org/llama.cpp pull 4406, ls -l: 26441533376 bytes", 32768, 26441533376, 2 << 20,
    experts=8, used=2, separate_experts=True,
)  # fmt: skip
QWEN3_30B = Shape(
    "qwen3moe", 2048, 48, 32, 4, 128, 768, 151936, "Q4_K_M", "ggml-org/llama.cpp issue 14235: 17.28 GiB", 40960, 17.28 * GIB, 0.005 * GIB,
    (("F32", 241), ("Q4_K", 289), ("Q6_K", 49)), experts=128, used=8,
)  # fmt: skip
GPT_OSS_120B = Shape(
    "gpt-oss", 2880, 36, 64, 8, 64, 2880, 201088, "MXFP4", "ggml-org/llama.cpp issue 15253: 59.02 GiB", 131072, 59.02 * GIB, 0.005 * GIB,
    (("F32", 433), ("Q8_0", 146), ("MXFP4", 108)), experts=128, used=4,
)  # fmt: skip

SHAPES = {
    "llama-2-7b.Q4_0": LLAMA_2_7B,
    "llama-2-7b.Q4_K_M": LLAMA_2_7B_K,
    "llama-3.1-70b.Q4_K_M": LLAMA_3_70B,
    "mixtral-8x7b.Q4_K_M": MIXTRAL,
    "qwen3-30b-a3b.Q4_K_M": QWEN3_30B,
    "gpt-oss-120b.MXFP4": GPT_OSS_120B,
}


def write(path: Path, shape: Shape) -> Path:
    """Write the header, and make the file as long as it says."""
    writer = gguf.GGUFWriter(str(path), shape.architecture)
    _fields(writer, shape)
    end = 0
    for name, dimensions, kind in _tensors(shape):
        block, size = gguf.GGML_QUANT_SIZES[Types[kind]]
        total = prod(dimensions) // block * size
        writer.add_tensor_info(name, dimensions, np.dtype(np.float32), total, raw_dtype=Types[kind])
        end += -(-total // writer.data_alignment) * writer.data_alignment
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    header = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(-(-header // 32) * 32 + end)
    return path


def _fields(writer: gguf.GGUFWriter, shape: Shape) -> None:
    name = shape.architecture
    writer.add_name("hollow")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head)
    writer.add_value_length(shape.head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.head)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.used)
        writer.add_expert_feed_forward_length(shape.feed_forward)
    if name == "gpt-oss":
        writer.add_sliding_window(128)
    kinds = gguf.TokenType
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *([kinds.BYTE] * 256)]
    more = shape.vocabulary - len(tokens)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*tokens, *(f"word{number}" for number in range(more))])
    writer.add_token_scores([0.0] * shape.vocabulary)
    writer.add_token_types([*types, *([kinds.NORMAL] * more)])


def _tensors(shape: Shape) -> Iterator[Row]:
    q, width = shape.quantisation, shape.width
    base = {"Q4_0": "Q4_0", "Q4_K_M": "Q4_K", "MXFP4": "Q8_0"}[q]
    yield "token_embd.weight", (shape.vocabulary, width), base
    yield "output.weight", (shape.vocabulary, width), "Q8_0" if q == "MXFP4" else "Q6_K"
    yield "output_norm.weight", (width,), "F32"
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        more = q == "Q4_K_M" and _more_bits(layer, shape.layers)
        yield from _attention(shape, block, base, more=more)
        if shape.experts:
            yield from _experts(shape, block, base, more=more)
        else:
            yield f"{block}.ffn_norm.weight", (width,), "F32"
            yield f"{block}.ffn_gate.weight", (shape.feed_forward, width), base
            yield f"{block}.ffn_up.weight", (shape.feed_forward, width), base
            yield f"{block}.ffn_down.weight", (width, shape.feed_forward), "Q6_K" if more else base


def _attention(shape: Shape, block: str, base: str, *, more: bool) -> Iterator[Row]:
    width, keys = shape.width, shape.kv_heads * shape.head
    value = "Q6_K" if more else base
    if shape.layers == 80 and not more:
        value = "Q5_K"  # eight heads share a value in a 70B model
    key = "Q8_0" if shape.experts == 8 else base
    value = "Q8_0" if shape.experts == 8 else value
    yield f"{block}.attn_norm.weight", (width,), "F32"
    yield f"{block}.attn_q.weight", (shape.heads * shape.head, width), base
    yield f"{block}.attn_k.weight", (keys, width), key
    yield f"{block}.attn_v.weight", (keys, width), value
    yield f"{block}.attn_output.weight", (width, shape.heads * shape.head), base
    if shape.architecture == "qwen3moe":
        yield f"{block}.attn_q_norm.weight", (shape.head,), "F32"
        yield f"{block}.attn_k_norm.weight", (shape.head,), "F32"
    if shape.architecture == "gpt-oss":
        yield f"{block}.attn_sinks.weight", (shape.heads,), "F32"
        yield f"{block}.attn_q.bias", (shape.heads * shape.head,), "F32"
        yield f"{block}.attn_k.bias", (keys,), "F32"
        yield f"{block}.attn_v.bias", (keys,), "F32"
        yield f"{block}.attn_output.bias", (width,), "F32"


def _experts(shape: Shape, block: str, base: str, *, more: bool) -> Iterator[Row]:
    width, inner, count = shape.width, shape.feed_forward, shape.experts
    norm = "post_attention_norm" if shape.architecture == "gpt-oss" else "ffn_norm"
    yield f"{block}.{norm}.weight", (width,), "F32"
    if shape.separate_experts:
        yield f"{block}.ffn_gate_inp.weight", (count, width), "F16"
        for expert in range(count):
            yield f"{block}.ffn_gate.{expert}.weight", (inner, width), base
            yield f"{block}.ffn_up.{expert}.weight", (inner, width), base
            yield f"{block}.ffn_down.{expert}.weight", (width, inner), base
        return
    kind = "MXFP4" if shape.quantisation == "MXFP4" else base
    yield f"{block}.ffn_gate_inp.weight", (count, width), "F32"
    yield f"{block}.ffn_gate_exps.weight", (count, inner, width), kind
    yield f"{block}.ffn_up_exps.weight", (count, inner, width), kind
    yield f"{block}.ffn_down_exps.weight", (count, width, inner), "Q6_K" if more else kind
    if shape.architecture == "gpt-oss":
        yield f"{block}.ffn_gate_inp.bias", (count,), "F32"
        yield f"{block}.ffn_gate_exps.bias", (count, inner), "F32"
        yield f"{block}.ffn_up_exps.bias", (count, inner), "F32"
        yield f"{block}.ffn_down_exps.bias", (count, width), "F32"


def _more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's use_more_bits: the first and the last eighth, and every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
