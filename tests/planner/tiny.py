"""Small but real models with random weights, of many architectures: llama.cpp loads each in a tenth of a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

WIDTH, HEADS, KV_HEADS, HEAD, FEED_FORWARD, LAYERS = 256, 8, 2, 32, 704, 3
CONTEXT, VOCABULARY = 8192, 1024
EXPERTS, USED, EXPERT_FEED_FORWARD = 8, 2, 160


class Tiny:
    """One model that is being written."""

    def __init__(self, path: Path, architecture: str, *, layers: int = LAYERS, vocabulary: int = VOCABULARY) -> None:
        self.path = path
        self.name = architecture
        self.layers = layers
        self.vocabulary = vocabulary
        self.writer = gguf.GGUFWriter(str(path), architecture)
        self.random = np.random.default_rng(1)
        self._add_basics()

    def _add_basics(self) -> None:
        writer = self.writer
        writer.add_name("tiny and random")
        writer.add_context_length(CONTEXT)
        writer.add_embedding_length(WIDTH)
        writer.add_block_count(self.layers)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_layer_norm_eps(1e-5)
        kinds = gguf.TokenType
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        tokens += [f"word{number}" for number in range(self.vocabulary - len(tokens))]
        types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *([kinds.BYTE] * 256)]
        types += [kinds.NORMAL] * (self.vocabulary - len(types))
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_scores([0.0] * len(tokens))
        writer.add_token_types(types)
        writer.add_unk_token_id(0)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)

    def key(self, name: str, value: Any) -> None:
        """A field under the architecture's prefix."""
        key = f"{self.name}.{name}"
        if isinstance(value, bool):
            self.writer.add_bool(key, value)
        elif isinstance(value, int):
            self.writer.add_uint32(key, value)
        elif isinstance(value, float):
            self.writer.add_float32(key, value)
        else:
            self.writer.add_array(key, value)

    def weights(self, name: str, *shape: int, suffix: str = ".weight") -> None:
        self.writer.add_tensor(f"{name}{suffix}", (self.random.standard_normal(shape) * 0.1).astype(np.float32))

    def vectors(self, names: str, size: int, suffix: str = ".weight") -> None:
        for name in names.split():
            self.writer.add_tensor(f"{name}{suffix}", np.ones(size, np.float32))

    def ends(self, *, tied: bool = False) -> None:
        self.weights("token_embd", self.vocabulary, WIDTH)
        if not tied:
            self.weights("output", self.vocabulary, WIDTH)
        self.vectors("output_norm", WIDTH)

    def attention(self, block: str, heads: int = HEADS, kv_heads: int = KV_HEADS, head: int = HEAD) -> None:
        self.weights(f"{block}.attn_q", heads * head, WIDTH)
        self.weights(f"{block}.attn_k", kv_heads * head, WIDTH)
        self.weights(f"{block}.attn_v", kv_heads * head, WIDTH)
        self.weights(f"{block}.attn_output", WIDTH, heads * head)

    def feed_forward(self, block: str, size: int = FEED_FORWARD) -> None:
        self.weights(f"{block}.ffn_gate", size, WIDTH)
        self.weights(f"{block}.ffn_up", size, WIDTH)
        self.weights(f"{block}.ffn_down", WIDTH, size)

    def experts(self, block: str, size: int = EXPERT_FEED_FORWARD) -> None:
        self.weights(f"{block}.ffn_gate_inp", EXPERTS, WIDTH)
        self.weights(f"{block}.ffn_gate_exps", EXPERTS, size, WIDTH)
        self.weights(f"{block}.ffn_up_exps", EXPERTS, size, WIDTH)
        self.weights(f"{block}.ffn_down_exps", EXPERTS, WIDTH, size)

    def heads(self, heads: int = HEADS, kv_heads: Any = KV_HEADS, head: int = HEAD) -> None:
        self.key("attention.head_count", heads)
        self.key("attention.head_count_kv", kv_heads)
        self.key("attention.key_length", head)
        self.key("attention.value_length", head)
        self.key("rope.dimension_count", head)
        self.key("feed_forward_length", FEED_FORWARD)

    def moe(self) -> None:
        self.key("expert_count", EXPERTS)
        self.key("expert_used_count", USED)
        self.key("expert_feed_forward_length", EXPERT_FEED_FORWARD)

    def close(self) -> None:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def llama(tiny: Tiny) -> None:
    """Grouped queries, and rope factors that belong to every layer."""
    tiny.heads()
    tiny.ends()
    tiny.vectors("rope_freqs", HEAD // 2)
    for block in _blocks(tiny):
        tiny.vectors(f"{block}.attn_norm {block}.ffn_norm", WIDTH)
        tiny.attention(block)
        tiny.feed_forward(block)


def mixtral(tiny: Tiny) -> None:
    tiny.heads()
    tiny.moe()
    tiny.ends()
    for block in _blocks(tiny):
        tiny.vectors(f"{block}.attn_norm {block}.ffn_norm", WIDTH)
        tiny.attention(block)
        tiny.experts(block, FEED_FORWARD)


def qwen2(tiny: Tiny) -> None:
    """Biases, and an output that is the embedding."""
    tiny.heads()
    tiny.ends(tied=True)
    for block in _blocks(tiny):
        tiny.vectors(f"{block}.attn_norm {block}.ffn_norm", WIDTH)
        tiny.attention(block)
        tiny.vectors(f"{block}.attn_q", HEADS * HEAD, ".bias")
        tiny.vectors(f"{block}.attn_k {block}.attn_v", KV_HEADS * HEAD, ".bias")
        tiny.feed_forward(block)


def qwen3moe(tiny: Tiny) -> None:
    tiny.heads()
    tiny.moe()
    tiny.ends()
    for block in _blocks(tiny):
        tiny.vectors(f"{block}.attn_norm {block}.ffn_norm", WIDTH)
        tiny.vectors(f"{block}.attn_q_norm {block}.attn_k_norm", HEAD)
        tiny.attention(block)
        tiny.experts(block)


def gemma2(tiny: Tiny) -> None:
    """Every other layer looks back 512 tokens."""
    tiny.heads()
    tiny.key("attention.sliding_window", 512)
    tiny.ends(tied=True)
    for block in _blocks(tiny):
        norms = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
        tiny.vectors(" ".join(f"{block}.{each}" for each in norms), WIDTH)
        tiny.attention(block)
        tiny.feed_forward(block)


def gemma3(tiny: Tiny) -> None:
    tiny.heads()
    tiny.key("attention.sliding_window", 300)
    tiny.ends(tied=True)
    for block in _blocks(tiny):
        norms = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
        tiny.vectors(" ".join(f"{block}.{each}" for each in norms), WIDTH)
        tiny.vectors(f"{block}.attn_q_norm {block}.attn_k_norm", HEAD)
        tiny.attention(block)
        tiny.feed_forward(block)


def gpt_oss(tiny: Tiny) -> None:
    tiny.heads()
    tiny.moe()
    tiny.key("attention.sliding_window", 128)
    tiny.ends()
    for block in _blocks(tiny):
        tiny.vectors(f"{block}.attn_norm {block}.post_attention_norm", WIDTH)
        tiny.attention(block)
        tiny.vectors(f"{block}.attn_sinks", HEADS)
        tiny.vectors(f"{block}.attn_q", HEADS * HEAD, ".bias")
        tiny.vectors(f"{block}.attn_k {block}.attn_v", KV_HEADS * HEAD, ".bias")
        tiny.vectors(f"{block}.attn_output", WIDTH, ".bias")
        tiny.experts(block)
        tiny.vectors(f"{block}.ffn_gate_inp", EXPERTS, ".bias")
        for name, size in (("gate", EXPERT_FEED_FORWARD), ("up", EXPERT_FEED_FORWARD), ("down", WIDTH)):
            tiny.weights(f"{block}.ffn_{name}_exps", EXPERTS, size, suffix=".bias")


def phi3(tiny: Tiny) -> None:
    """Its queries, keys and values are one tensor; its file names a window that llama.cpp does not use."""
    tiny.heads()
    tiny.key("attention.sliding_window", 512)
    tiny.key("rope.scaling.original_context_length", CONTEXT)
    tiny.ends()
    for block in _blocks(tiny):
        tiny.vectors(f"{block}.attn_norm {block}.ffn_norm", WIDTH)
        tiny.weights(f"{block}.attn_qkv", (HEADS + 2 * KV_HEADS) * HEAD, WIDTH)
        tiny.weights(f"{block}.attn_output", WIDTH, HEADS * HEAD)
        tiny.weights(f"{block}.ffn_up", 2 * FEED_FORWARD, WIDTH)
        tiny.weights(f"{block}.ffn_down", WIDTH, FEED_FORWARD)


def cohere2(tiny: Tiny) -> None:
    """Three of four layers look back; a scale for the logits."""
    tiny.heads()
    tiny.key("attention.sliding_window", 256)
    tiny.key("logit_scale", 0.25)
    tiny.ends(tied=True)
    for block in _blocks(tiny):
        tiny.vectors(f"{block}.attn_norm", WIDTH)
        tiny.attention(block)
        tiny.feed_forward(block)


def llama4(tiny: Tiny) -> None:
    """Attention in chunks of 8192 tokens in three of four layers; every second layer has experts."""
    tiny.heads()
    tiny.moe()
    tiny.key("interleave_moe_layer_step", 2)
    tiny.ends()
    for number, block in enumerate(_blocks(tiny)):
        tiny.vectors(f"{block}.attn_norm {block}.ffn_norm", WIDTH)
        tiny.attention(block)
        if number % 2:
            tiny.experts(block)
            for name, shape in (
                ("gate", (EXPERT_FEED_FORWARD, WIDTH)),
                ("up", (EXPERT_FEED_FORWARD, WIDTH)),
                ("down", (WIDTH, EXPERT_FEED_FORWARD)),
            ):
                tiny.weights(f"{block}.ffn_{name}_shexp", *shape)
        else:
            tiny.feed_forward(block)


def smallthinker(tiny: Tiny) -> None:
    """The layer that sees everything is the first of its four."""
    tiny.heads()
    tiny.moe()
    tiny.key("attention.sliding_window", 256)
    tiny.key("expert_gating_func", 1)
    tiny.ends()
    for block in _blocks(tiny):
        tiny.vectors(f"{block}.attn_norm {block}.ffn_norm", WIDTH)
        tiny.attention(block)
        tiny.experts(block)


INNER, STATE, CONVOLUTION, RANK = 512, 16, 4, 16


def _ssm(tiny: Tiny, groups: int = 0, rank: int = RANK, state: int = STATE) -> None:
    tiny.key("ssm.conv_kernel", CONVOLUTION)
    tiny.key("ssm.inner_size", INNER)
    tiny.key("ssm.state_size", state)
    tiny.key("ssm.time_step_rank", rank)
    tiny.key("ssm.group_count", groups)


def mamba(tiny: Tiny) -> None:
    """No attention at all."""
    _ssm(tiny)
    tiny.key("attention.head_count", 0)
    tiny.key("feed_forward_length", 0)
    tiny.ends(tied=True)
    for block in _blocks(tiny):
        tiny.vectors(f"{block}.attn_norm", WIDTH)
        tiny.weights(f"{block}.ssm_in", 2 * INNER, WIDTH)
        tiny.weights(f"{block}.ssm_conv1d", INNER, CONVOLUTION)
        tiny.vectors(f"{block}.ssm_conv1d", INNER, ".bias")
        tiny.weights(f"{block}.ssm_x", RANK + 2 * STATE, INNER)
        tiny.weights(f"{block}.ssm_dt", INNER, RANK)
        tiny.vectors(f"{block}.ssm_dt", INNER, ".bias")
        tiny.weights(f"{block}.ssm_a", INNER, STATE, suffix="")
        tiny.vectors(f"{block}.ssm_d", INNER, "")
        tiny.weights(f"{block}.ssm_out", WIDTH, INNER)


def _mamba2_block(tiny: Tiny, block: str, groups: int, heads: int, state: int) -> None:
    channels = INNER + 2 * groups * state
    tiny.weights(f"{block}.ssm_in", INNER + channels + heads, WIDTH)
    tiny.weights(f"{block}.ssm_conv1d", channels, CONVOLUTION)
    tiny.vectors(f"{block}.ssm_conv1d", channels, ".bias")
    tiny.vectors(f"{block}.ssm_dt", heads, ".bias")
    tiny.weights(f"{block}.ssm_a", heads, 1, suffix="")
    tiny.weights(f"{block}.ssm_d", heads, 1, suffix="")
    tiny.weights(f"{block}.ssm_norm", groups, INNER // groups)
    tiny.weights(f"{block}.ssm_out", WIDTH, INNER)


def mamba2(tiny: Tiny) -> None:
    _ssm(tiny, groups=2, rank=8, state=64)
    tiny.key("attention.head_count", 0)
    tiny.key("feed_forward_length", 0)
    tiny.ends()
    for block in _blocks(tiny):
        tiny.vectors(f"{block}.attn_norm", WIDTH)
        _mamba2_block(tiny, block, 2, 8, 64)


def granitehybrid(tiny: Tiny) -> None:
    """Recurrent layers, and one of three with attention."""
    tiny.heads(kv_heads=[0 if number % 3 != 1 else KV_HEADS for number in range(tiny.layers)])
    _ssm(tiny, groups=2, rank=8, state=64)
    tiny.ends(tied=True)
    for number, block in enumerate(_blocks(tiny)):
        tiny.vectors(f"{block}.attn_norm {block}.ffn_norm", WIDTH)
        if number % 3 == 1:
            tiny.attention(block)
        else:
            _mamba2_block(tiny, block, 2, 8, 64)
        tiny.feed_forward(block)


def lfm2(tiny: Tiny) -> None:
    """Short convolutions, and one of three layers with attention."""
    tiny.heads(kv_heads=[0 if number % 3 != 1 else KV_HEADS for number in range(tiny.layers)])
    tiny.key("shortconv.l_cache", 3)
    tiny.weights("token_embd", tiny.vocabulary, WIDTH)
    tiny.vectors("token_embd_norm", WIDTH)
    for number, block in enumerate(_blocks(tiny)):
        tiny.vectors(f"{block}.attn_norm {block}.ffn_norm", WIDTH)
        if number % 3 == 1:
            tiny.vectors(f"{block}.attn_q_norm {block}.attn_k_norm", HEAD)
            tiny.attention(block)
        else:
            tiny.weights(f"{block}.shortconv.conv", WIDTH, 3)
            tiny.weights(f"{block}.shortconv.in_proj", 3 * WIDTH, WIDTH)
            tiny.weights(f"{block}.shortconv.out_proj", WIDTH, WIDTH)
        tiny.feed_forward(block)


def qwen3next(tiny: Tiny) -> None:
    """Three of four layers are a gated delta net; the attention's queries carry a gate; experts."""
    tiny.heads()
    tiny.moe()
    tiny.key("expert_shared_feed_forward_length", EXPERT_FEED_FORWARD)
    groups, state, rank = 4, 64, 8
    tiny.key("ssm.conv_kernel", CONVOLUTION)
    tiny.key("ssm.inner_size", INNER)
    tiny.key("ssm.state_size", state)
    tiny.key("ssm.time_step_rank", rank)
    tiny.key("ssm.group_count", groups)
    tiny.ends()
    for number, block in enumerate(_blocks(tiny)):
        tiny.vectors(f"{block}.attn_norm {block}.post_attention_norm", WIDTH)
        if number % 4 == 3:
            tiny.weights(f"{block}.attn_q", 2 * HEADS * HEAD, WIDTH)
            tiny.weights(f"{block}.attn_k", KV_HEADS * HEAD, WIDTH)
            tiny.weights(f"{block}.attn_v", KV_HEADS * HEAD, WIDTH)
            tiny.weights(f"{block}.attn_output", WIDTH, HEADS * HEAD)
            tiny.vectors(f"{block}.attn_q_norm {block}.attn_k_norm", HEAD)
        else:
            channels = 2 * groups * state + INNER
            tiny.weights(f"{block}.attn_qkv", channels, WIDTH)
            tiny.weights(f"{block}.attn_gate", INNER, WIDTH)
            tiny.weights(f"{block}.ssm_conv1d", channels, CONVOLUTION)
            tiny.vectors(f"{block}.ssm_dt", rank, ".bias")
            tiny.vectors(f"{block}.ssm_a", rank, "")
            tiny.weights(f"{block}.ssm_ba", 2 * rank, WIDTH)
            tiny.vectors(f"{block}.ssm_norm", INNER // rank)
            tiny.weights(f"{block}.ssm_out", WIDTH, INNER)
        tiny.experts(block)
        tiny.vectors(f"{block}.ffn_gate_inp_shexp", WIDTH)
        tiny.weights(f"{block}.ffn_gate_shexp", EXPERT_FEED_FORWARD, WIDTH)
        tiny.weights(f"{block}.ffn_up_shexp", EXPERT_FEED_FORWARD, WIDTH)
        tiny.weights(f"{block}.ffn_down_shexp", WIDTH, EXPERT_FEED_FORWARD)


def deepseek2(tiny: Tiny) -> None:
    """Latent attention: the cache holds what keys and values are made of, once for all heads."""
    rank, rope, nope, value = 128, 32, 64, 48
    tiny.key("attention.head_count", HEADS)
    tiny.key("attention.head_count_kv", 1)
    tiny.key("attention.key_length", rank + rope)
    tiny.key("attention.value_length", rank)
    tiny.key("attention.key_length_mla", nope + rope)
    tiny.key("attention.value_length_mla", value)
    tiny.key("attention.kv_lora_rank", rank)
    tiny.key("attention.q_lora_rank", 96)
    tiny.key("rope.dimension_count", rope)
    tiny.key("feed_forward_length", FEED_FORWARD)
    tiny.moe()
    tiny.key("leading_dense_block_count", 1)
    tiny.key("expert_shared_count", 1)
    tiny.key("expert_weights_scale", 1.0)
    tiny.key("expert_gating_func", 1)
    tiny.key("vocab_size", tiny.vocabulary)
    tiny.ends()
    for number, block in enumerate(_blocks(tiny)):
        tiny.vectors(f"{block}.attn_norm {block}.ffn_norm", WIDTH)
        tiny.weights(f"{block}.attn_q_a", 96, WIDTH)
        tiny.vectors(f"{block}.attn_q_a_norm", 96)
        tiny.weights(f"{block}.attn_q_b", HEADS * (nope + rope), 96)
        tiny.weights(f"{block}.attn_kv_a_mqa", rank + rope, WIDTH)
        tiny.vectors(f"{block}.attn_kv_a_norm", rank)
        tiny.weights(f"{block}.attn_k_b", HEADS, rank, nope)
        tiny.weights(f"{block}.attn_v_b", HEADS, value, rank)
        tiny.weights(f"{block}.attn_output", WIDTH, HEADS * value)
        if number == 0:
            tiny.feed_forward(block)
        else:
            tiny.experts(block)
            tiny.weights(f"{block}.ffn_gate_shexp", EXPERT_FEED_FORWARD, WIDTH)
            tiny.weights(f"{block}.ffn_up_shexp", EXPERT_FEED_FORWARD, WIDTH)
            tiny.weights(f"{block}.ffn_down_shexp", WIDTH, EXPERT_FEED_FORWARD)


def glm4moe(tiny: Tiny) -> None:
    """The last layer predicts a further token: llama.cpp leaves it in the file."""
    tiny.heads()
    tiny.moe()
    tiny.key("expert_shared_count", 1)
    tiny.key("leading_dense_block_count", 1)
    tiny.key("nextn_predict_layers", 1)
    tiny.ends()
    for number, block in enumerate(_blocks(tiny)):
        tiny.vectors(f"{block}.attn_norm {block}.post_attention_norm", WIDTH)
        tiny.attention(block)
        tiny.vectors(f"{block}.attn_q", HEADS * HEAD, ".bias")
        tiny.vectors(f"{block}.attn_k {block}.attn_v", KV_HEADS * HEAD, ".bias")
        if number == 0:
            tiny.feed_forward(block)
        else:
            tiny.experts(block)
            tiny.vectors(f"{block}.exp_probs_b", EXPERTS, ".bias")
            tiny.weights(f"{block}.ffn_gate_shexp", EXPERT_FEED_FORWARD, WIDTH)
            tiny.weights(f"{block}.ffn_up_shexp", EXPERT_FEED_FORWARD, WIDTH)
            tiny.weights(f"{block}.ffn_down_shexp", WIDTH, EXPERT_FEED_FORWARD)
        if number == tiny.layers - 1:
            tiny.weights(f"{block}.nextn.eh_proj", WIDTH, 2 * WIDTH)
            tiny.vectors(f"{block}.nextn.enorm {block}.nextn.hnorm", WIDTH)
            tiny.vectors(f"{block}.nextn.shared_head_norm", WIDTH)


def _blocks(tiny: Tiny) -> list[str]:
    return [f"blk.{number}" for number in range(tiny.layers)]


# What the model is called here: its architecture, how it is written, its layers.
KINDS: dict[str, tuple[str, Callable[[Tiny], None], int]] = {
    "llama": ("llama", llama, 3),
    "mixtral": ("llama", mixtral, 3),
    "qwen2": ("qwen2", qwen2, 3),
    "qwen3moe": ("qwen3moe", qwen3moe, 3),
    "gemma2": ("gemma2", gemma2, 5),
    "gemma3": ("gemma3", gemma3, 7),
    "gpt-oss": ("gpt-oss", gpt_oss, 4),
    "phi3": ("phi3", phi3, 3),
    "cohere2": ("cohere2", cohere2, 5),
    "llama4": ("llama4", llama4, 5),
    "smallthinker": ("smallthinker", smallthinker, 5),
    "mamba": ("mamba", mamba, 3),
    "mamba2": ("mamba2", mamba2, 3),
    "granitehybrid": ("granitehybrid", granitehybrid, 5),
    "lfm2": ("lfm2", lfm2, 5),
    "qwen3next": ("qwen3next", qwen3next, 5),
    "deepseek2": ("deepseek2", deepseek2, 3),
    "glm4moe": ("glm4moe", glm4moe, 4),
}


def write(path: Path, kind: str, *, vocabulary: int = VOCABULARY) -> Path:
    """Write such a model."""
    architecture, fill, layers = KINDS[kind]
    tiny = Tiny(path, architecture, layers=layers, vocabulary=vocabulary)
    fill(tiny)
    tiny.close()
    return path
