"""From a model's file to the words that place it, and what is said where it does not fit."""

from dataclasses import replace
from pathlib import Path

import pytest

from memscaler.planner import rule
from memscaler.planner.devices import Budget, Device, hypothetical
from memscaler.planner.gguf import read_model
from memscaler.planner.header import ModelFileError
from memscaler.planner.memory import Demand
from memscaler.planner.placement import Placement, Shortfall
from memscaler.planner.plan import after, plan_for, plan_model
from memscaler.planner.words import read

GIB = 1 << 30
BUDGET = Budget()


@pytest.fixture
def models(hollow):
    """Large models, all of them holes."""
    return hollow


def gpus(*gib):
    return tuple(Device(i, f"GPU-{i}", f"card {i}", "", each * GIB, each * GIB) for i, each in enumerate(gib))


def test_a_70b_on_two_gpus(models):
    """Cut where the first is full; the map from layers to GPUs is what llama.cpp makes of the arguments."""
    made = plan_for(models["llama-3.1-70b.Q4_K_M"], Demand(context=8192), BUDGET, gpus(24, 24))
    assert isinstance(made, Placement)
    words = dict(zip(made.arguments[::2], made.arguments[1::2], strict=True))
    assert words["-ngl"] == "81"
    counts = [int(word) for word in words["-ts"].split(",")]
    assert sum(counts) == 81
    assert made.slots() == rule.slots(80, 81, counts)
    assert made.environment["CUDA_VISIBLE_DEVICES"] == "GPU-0,GPU-1"
    assert all(share.used_bytes <= 23 * GIB for share in made.shares)
    assert made.shares[0].used_bytes > 22 * GIB
    weights = sum(share.weight_bytes for share in made.shares)
    assert 38 * GIB < weights < 40 * GIB
    assert sum(share.context_bytes for share in made.shares) == 80 * 8192 * 8 * 128 * 2 * 2


def test_one_gpu_is_enough(models):
    """No -ts, and the others are not shown."""
    made = plan_for(models["llama-2-7b.Q4_K_M"], Demand(context=4096), BUDGET, gpus(16, 24, 12))
    assert made.arguments == ("-ngl", "33")
    assert made.uuids == ("GPU-1",)
    assert {gpu.uuid for gpu in made.idle} == {"GPU-0", "GPU-2"}


@pytest.mark.parametrize(
    ("name", "demand", "gib"),
    [
        ("llama-2-7b.Q4_0", Demand(context=4096, slots=1), (6,)),
        ("llama-3.1-70b.Q4_K_M", Demand(context=131072, slots=1), (48, 24)),
        ("llama-3.1-70b.Q4_K_M", Demand(context=65536, slots=4), (48,)),
        ("llama-3.1-70b.Q4_K_M", Demand(context=8192), (24,)),
        ("qwen3-30b-a3b.Q4_K_M", Demand(), (20,)),
        ("gpt-oss-120b.MXFP4", Demand(context=32768), (24, 24)),
        ("gpt-oss-120b.MXFP4", Demand(context=131072, slots=2), (64,)),
    ],
)
def test_what_would_help_helps(models, name, demand, gib):
    """Every remedy is put to the test: with its arguments the model fits; and a context is the longest that does."""
    model, devices = read_model(models[name]), gpus(*gib)
    short = plan_model(model, demand, BUDGET, devices)
    assert isinstance(short, Shortfall)
    assert short.missing_bytes > 0
    assert short.remedies
    for remedy in short.remedies:
        words = list(remedy.arguments)
        if "-ts" in words:
            at = words.index("-ts")
            del words[at : at + 2]
        given = read(words).demand
        helped = replace(
            demand,
            context=given.context or demand.context,
            cache_type_k=given.cache_type_k,
            cache_type_v=given.cache_type_v,
            layers_on_gpu=given.layers_on_gpu,
            experts_on_cpu=given.experts_on_cpu,
        )
        made = plan_model(model, helped, BUDGET, devices)
        assert isinstance(made, Placement), remedy
        if given.layers_on_gpu is not None:
            assert made.arguments == remedy.arguments
        if given.context:
            longer = replace(helped, context=given.context + 256 * max(demand.slots, 1))
            assert isinstance(plan_model(model, longer, BUDGET, devices), Shortfall), remedy
    best = short.best
    assert best.arguments in [remedy.arguments for remedy in short.remedies] or best.cpu_experts
    assert all(share.used_bytes <= share.budget_bytes for share in best.shares)


def test_experts_before_layers(models):
    """Of a mixture of experts every layer stays on the GPU: the CPU reads least so."""
    made = plan_for(models["gpt-oss-120b.MXFP4"], Demand(context=32768), BUDGET, gpus(24), part=True)
    assert made.gpu_layers == 37
    assert 20 < made.cpu_experts < 32
    assert made.arguments == ("-ngl", "37", "--n-cpu-moe", str(made.cpu_experts))


def test_without_a_gpu(models):
    """The CPU alone is the only remedy."""
    short = plan_for(models["llama-2-7b.Q4_0"], Demand(), BUDGET, ())
    assert [remedy.arguments for remedy in short.remedies] == [("-ngl", "0")]
    assert "the CPU alone" in short.remedies[0].text


def test_one_model_after_the_other(models):
    """What the first takes is not there for the second."""
    devices = gpus(24, 16)
    first = plan_for(models["qwen3-30b-a3b.Q4_K_M"], Demand(context=16384), BUDGET, devices)
    left = after(devices, first)
    assert left[0].free_bytes == 24 * GIB - first.shares[0].used_bytes
    assert left[1] == devices[1]
    second = plan_for(models["llama-2-7b.Q4_0"], Demand(context=4096), BUDGET, left)
    assert second.uuids == ("GPU-1",)


def test_hypothetical_gpus(models):
    """A plan to buy by: arguments, but nothing to show to CUDA."""
    made = plan_for(models["llama-2-7b.Q4_0"], Demand(context=4096), BUDGET, hypothetical([8 * GIB]))
    assert made.arguments == ("-ngl", "33")
    assert made.environment == {}


def test_no_model(tmp_path: Path):
    """The reader's own error."""
    (tmp_path / "x.gguf").write_text("nothing")
    with pytest.raises(ModelFileError):
        plan_for(tmp_path / "x.gguf", Demand(), BUDGET, gpus(8))
