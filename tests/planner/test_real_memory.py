"""What `needs` says against what the real llama.cpp says when it loads the same model.

Weights, cache and recurrent state agree to the last digit that it prints (0.01 MiB). Compute buffers are within
`TOLERANCE` of it: 1 % for attention and feed-forward, up to 12 % too much for recurrent layers.
"""

from __future__ import annotations

import pytest

from memscaler.core.errors import UsageError
from memscaler.planner.devices import Budget, Device
from memscaler.planner.gguf import read_model
from memscaler.planner.memory import Demand, Needs, needs
from memscaler.planner.plan import plan_for
from tests.planner import real, tiny

PRINTED = 0.0051  # half of its last digit
MIB = real.MIB
RECURRENT = {"mamba", "mamba2", "granitehybrid", "qwen3next", "lfm2"}
TOLERANCE = {  # of compute buffers: how far below, how far above what llama.cpp takes
    "recurrent": (0.99, 1.12),
    "smallthinker": (0.94, 1.01),  # it chooses experts before it attends, and keeps that choice
    "deepseek2": (0.99, 1.05),
    "others": (0.99, 1.01),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Each model, written once."""
    folder = tmp_path_factory.mktemp("models")
    return lambda kind: path if (path := folder / f"{kind}.gguf").exists() else tiny.write(path, kind)


def weights_in_ram(needed: Needs) -> float:
    """On a CPU a tied output is the embedding itself, no copy."""
    model = needed.model
    copy = model.vocabulary * model.embedding_length * 4 if model.tied else 0
    return (needed.weight_bytes + needed.embedding_bytes - copy) / MIB


def check(kind: str, measured: real.Real, needed: Needs) -> None:
    assert measured.model == pytest.approx(weights_in_ram(needed), abs=PRINTED)
    rows = 2 if any(layer.window for layer in needed.model.layers) else 1  # it prints two caches then
    assert measured.kv == pytest.approx(sum(each.kv_bytes for each in needed.layers) / MIB, abs=PRINTED * rows)
    assert measured.rs == pytest.approx(sum(each.state_bytes for each in needed.layers) / MIB, abs=PRINTED)
    assert int(measured.settings["n_ctx"]) == needed.context
    assert int(measured.settings["n_ctx_seq"]) == needed.slot_context
    least, most = TOLERANCE["recurrent" if kind in RECURRENT else kind if kind in TOLERANCE else "others"]
    assert least <= needed.compute.output_bytes / MIB / measured.compute <= most


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_every_architecture_takes_what_is_said(models, kind):
    """One slot, and flash attention."""
    path = models(kind)
    measured = real.load(path, n_ctx=4096, n_parallel=1)
    check(kind, measured, needs(read_model(path), Demand(context=4096, slots=1, outputs=1)))


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt-oss", "granitehybrid", "qwen3next", "deepseek2"])
def test_slots_with_caches_of_their_own(models, kind):
    """Three slots that share 8000 tokens: each gets a third, rounded."""
    path = models(kind)
    measured = real.load(path, n_ctx=8000, n_parallel=3, kv_unified=False)
    check(kind, measured, needs(read_model(path), Demand(context=8000, slots=3, outputs=3)))


@pytest.mark.parametrize("kind", ["llama", "gemma3", "mamba2"])
def test_slots_that_share_one_cache(models, kind):
    """As llama-server does when nobody says how many slots there are; and the context that the model was made for."""
    path = models(kind)
    measured = real.load(path, n_ctx=0, n_parallel=-1)
    check(kind, measured, needs(read_model(path), Demand(outputs=4)))


@pytest.mark.parametrize("kind", ["llama", "gemma2", "granitehybrid", "smallthinker"])
def test_without_flash_attention_every_score_is_kept(models, kind):
    """The buffers are many times as large, and values are stored the other way round."""
    path = models(kind)
    measured = real.load(path, n_ctx=4096, n_parallel=1, flash_attn_type="LLAMA_FLASH_ATTN_TYPE_DISABLED")
    needed = needs(read_model(path), Demand(context=4096, slots=1, outputs=1, flash_attention="off"))
    assert needed.compute.output_bytes > 70 * MIB
    check(kind, measured, needed)


@pytest.mark.parametrize(("keys", "values"), [("q8_0", "q8_0"), ("q4_0", "q8_0"), ("bf16", "f32"), ("iq4_nl", "q5_1")])
def test_types_of_the_cache(models, keys, values):
    """Each type at its true size."""
    path = models("gemma2")
    kinds = {"cache_type_k": f"GGML_TYPE_{keys.upper()}", "cache_type_v": f"GGML_TYPE_{values.upper()}"}
    measured = real.load(
        path, n_ctx=2048, n_parallel=2, kv_unified=False, flash_attn_type="LLAMA_FLASH_ATTN_TYPE_ENABLED", **kinds
    )
    demand = Demand(context=2048, slots=2, outputs=2, cache_type_k=keys, cache_type_v=values, flash_attention="on")
    needed = needs(read_model(path), demand)
    assert measured.kv == pytest.approx(needed.cache_bytes / MIB, abs=2 * PRINTED)


@pytest.mark.parametrize(
    ("settings", "demand"),
    [
        ({"swa_full": True}, {"swa_full": True}),
        ({"n_ubatch": 1024}, {"ubatch": 1024}),
        ({"n_ubatch": 64}, {"ubatch": 64}),
        ({"n_batch": 300}, {"batch": 300}),
    ],
    ids=str,
)
def test_a_sliding_window_keeps_itself_and_one_step(models, settings, demand):
    """Unless all of it is asked for; a step is no longer than a batch."""
    path = models("gemma3")
    measured = real.load(path, n_ctx=4096, n_parallel=1, **settings)
    check("gemma3", measured, needs(read_model(path), Demand(context=4096, slots=1, outputs=1, **demand)))


def test_the_logits_of_a_large_vocabulary(tmp_path):
    """48 slots that each want a choice among 65 536 tokens: more than the layers take."""
    path = tiny.write(tmp_path / "words.gguf", "llama", vocabulary=65536)
    measured = real.load(path, n_ctx=512, n_parallel=48, n_ubatch=64, kv_unified=True)
    model = read_model(path)
    needed = needs(model, Demand(context=512, slots=48, unified=True, ubatch=64, outputs=48))
    assert needed.compute.output_bytes > 4 * needed.compute.middle_bytes
    assert needed.compute.output_bytes / MIB / measured.compute == pytest.approx(1, abs=0.02)


def test_what_llama_cpp_refuses_is_refused(models):
    """A quantised cache of values without flash attention."""
    path = models("llama")
    settings = {"cache_type_v": "GGML_TYPE_Q8_0", "flash_attn_type": "LLAMA_FLASH_ATTN_TYPE_DISABLED"}
    with pytest.raises(AssertionError, match="flash_attn"):
        real.load(path, n_ctx=512, n_parallel=1, **settings)
    with pytest.raises(UsageError, match="flash attention"):
        needs(read_model(path), Demand(cache_type_v="q8_0", flash_attention="off"))


def test_more_slots_than_there_are(models):
    """llama.cpp has 256."""
    path = models("llama")
    with pytest.raises(AssertionError, match="n_seq_max must be <= 256"):
        real.load(path, n_ctx=512, n_parallel=257, kv_unified=True)
    with pytest.raises(UsageError, match="has 256 at most"):
        needs(read_model(path), Demand(slots=257))
    assert needs(read_model(path), Demand(slots=256)).slots == 256


def test_a_context_that_is_longer_than_the_models(models):
    """llama.cpp takes the memory, and gives no slot more than the model was made for: said in the plan."""
    path = models("llama")
    measured = real.load(path, n_ctx=16384, n_parallel=1)
    assert "exceeds the training context of the model (8192) - capping" in measured.log
    check("llama", measured, needs(read_model(path), Demand(context=16384, slots=1, outputs=1)))
    for gib in (2, 0):
        gpus = (Device(0, "GPU-0", "card", "", gib << 30, gib << 30),)
        noted = [plan_for(path, Demand(context=each, slots=1), Budget(0, 1), gpus).notes for each in (8192, 16384)]
        assert noted[0] == ()
        assert "the model was made for 8192 tokens" in noted[1][0]


@pytest.mark.parametrize(
    ("demand", "says"),
    [
        ({"context": -1}, "context -1"),
        ({"slots": -1}, "slots -1"),
        ({"ubatch": 0}, "ubatch 0"),
        ({"batch": 0}, "batch 0"),
        ({"cache_type_k": "q2_K"}, "cache type q2_K: one of f32, f16"),
    ],
)
def test_impossible_demands_are_refused(models, demand, says):
    with pytest.raises(UsageError, match=says):
        needs(read_model(models("llama")), Demand(**demand))


def test_heads_that_are_no_whole_blocks_are_refused(tmp_path):
    """By llama.cpp, too: 16 numbers are half a block of q8_0."""
    from demo.model import write

    path = tmp_path / "small.gguf"
    write(path)
    with pytest.raises(AssertionError, match="block size 32"):
        real.load(path, n_ctx=512, n_parallel=1, cache_type_k="GGML_TYPE_Q8_0")
    with pytest.raises(UsageError, match="multiple of 32 numbers; this model's have 16"):
        needs(read_model(path), Demand(cache_type_k="q8_0"))
