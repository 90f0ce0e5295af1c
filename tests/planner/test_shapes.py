"""Well-known large models: what is read of them against their published sizes, and against llama.cpp's own plan.

The files are true headers over holes (see shapes.py). llama.cpp lays each out without loading it (`-fit on`), and says in
whole MiB what it would take.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest

from memscaler.planner.gguf import read_model
from memscaler.planner.header import read_header
from memscaler.planner.memory import Demand, needs
from memscaler.planner.model import Layer, Model
from tests.planner import real, shapes

MIB = real.MIB


read_once = cache(read_model)
# Newer llama.cpp does not load Mixtral's old form; the two of 7B differ in the sizes of tensors only, tested below.
LAID_OUT = [name for name in shapes.SHAPES if name not in ("mixtral-8x7b.Q4_K_M", "llama-2-7b.Q4_K_M")]


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_sizes_are_the_published_ones(hollow, name):
    """To the digits that are published; and as many tensors of each type as in the published file."""
    shape, path = shapes.SHAPES[name], hollow[name]
    model = read_once(path)
    loaded = sum(each.tensor_bytes for each in model.layers) + model.embedding_bytes + model.output_bytes
    assert loaded == pytest.approx(shape.published_bytes, abs=shape.tolerance_bytes), shape.source
    assert sum(size for _, size in model.types) == loaded
    assert model.file_bytes == path.stat().st_size
    assert len(model.layers) == shape.layers
    assert model.vocabulary == shape.vocabulary
    if shape.counts:
        assert Counter(each.type for each in read_header(path).tensors) == dict(shape.counts)


@pytest.mark.parametrize("name", ["mixtral-8x7b.Q4_K_M", "qwen3-30b-a3b.Q4_K_M", "gpt-oss-120b.MXFP4"])
def test_experts_are_nearly_all_of_such_a_model(hollow, name):
    """They may stay on the CPU."""
    model = read_model(hollow[name])
    experts = sum(each.expert_bytes for each in model.layers)
    assert 0.93 < experts / sum(each.tensor_bytes for each in model.layers) < 0.99
    assert ("newer llama.cpp does not load" in " ".join(model.warnings)) == name.startswith("mixtral")


@pytest.mark.parametrize("name", LAID_OUT)
@pytest.mark.parametrize(
    "how",
    [
        {"context": 4096, "ubatch": 512, "slots": 1},
        {"context": 32768, "ubatch": 2048, "slots": 1},
        {"context": 16384, "ubatch": 512, "slots": 4},
        {"context": 4096, "ubatch": 512, "slots": 1, "flash_attention": "off"},
    ],
    ids=str,
)
def test_llama_cpp_plans_the_same(hollow, name, how):
    """Weights and cache to the MiB in which it says them, compute buffers within 1.5 %."""
    path = hollow[name]
    flash = "DISABLED" if how.get("flash_attention") == "off" else "ENABLED"
    projected = real.project(
        path,
        n_ctx=how["context"],
        n_ubatch=how["ubatch"],
        n_parallel=how["slots"],
        kv_unified=False,
        flash_attn_type=f"LLAMA_FLASH_ATTN_TYPE_{flash}",
    )
    needed = needs(read_once(path), Demand(**{"flash_attention": "on", **how}, outputs=how["slots"]))
    weights = (needed.weight_bytes + needed.embedding_bytes) / MIB
    assert 0 <= weights - projected.model < projected.rows
    assert 0 <= needed.cache_bytes / MIB - projected.context < projected.rows
    assert needed.compute.output_bytes / MIB / projected.compute == pytest.approx(1, abs=0.015)


def test_buffers_on_two_gpus_are_the_published_ones(hollow):
    """Qwen3-30B-A3B without flash attention, its experts on the CPU, in a log of June 2025.

    `CUDA0 compute buffer size = 1080.00 MiB`, the same for CUDA1, `CUDA_Host compute buffer size = 36.01 MiB`,
    `KV buffer size = 384.00 MiB` and 1152 (mtcl, in a discussion of ik_llama.cpp, with llama.cpp itself).
    """
    model = read_model(hollow["qwen3-30b-a3b.Q4_K_M"])
    needed = needs(model, Demand(context=16384, slots=1, flash_attention="off", outputs=1))
    assert needed.cache_bytes / MIB == 1536
    assert 1080.00 <= needed.compute.on_gpu(output=False) / MIB <= 1.02 * 1080.00
    assert needed.compute.cpu_bytes / MIB == pytest.approx(36.01 + 0.58, abs=0.1)  # with its "output buffer size"


def test_gpus_that_share_a_model_keep_inputs_four_times():
    """Command-R with 4096 tokens on two GPUs: `CUDA0 compute buffer size = 672.01 MiB` (llama.cpp pull 6122)."""
    layer = Layer(0, 0, kv_heads=64, key_length=128, value_length=128, heads=64, feed_forward=22528)
    model = Model(
        paths=(),
        name="command-r",
        architecture="command-r",
        layers=(layer,) * 40,
        embedding_bytes=0,
        output_bytes=0,
        tied=True,
        file_bytes=0,
        context_length=131072,
        embedding_length=8192,
        feed_forward_length=22528,
        head_count=64,
        vocabulary=256000,
    )
    needed = needs(model, Demand(context=4096, slots=1, flash_attention="off"))
    assert needed.cache_bytes / MIB == 5120  # as that log says
    assert 672.01 <= needed.compute.on_gpu(output=False, pipelined=True) / MIB <= 1.1 * 672.01
