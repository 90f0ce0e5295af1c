"""Where layers go: over random models and GPUs, and against trying everything."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memscaler.core.errors import MemscalerError
from memscaler.planner import rule
from memscaler.planner.devices import Budget, Device
from memscaler.planner.load import LayerLoad, Load
from memscaler.planner.placement import Placement, Shortfall, best_part, place, prove

NOTHING_KEPT = Budget(reserve_bytes=0, minimum_bytes=1, order="index")


def load_of(layers, output=0, compute=(0, 0, 0, 0), **others):
    """Layers: (weights, experts, cache) each. compute: of every GPU, the output's, when shared, what is copied."""
    names = ("compute_bytes", "output_compute_bytes", "shared_compute_bytes", "copied_bytes")
    parts = tuple(LayerLoad(*each) for each in layers)
    return Load(parts, output, **dict(zip(names, compute, strict=True)), **others)


def gpus(*free):
    return tuple(Device(i, f"GPU-{i}", f"card {i}", f"0000:0{i}:00.0", 100 + each, each) for i, each in enumerate(free))


amounts = st.integers(0, 30)
layer = st.tuples(st.integers(1, 30), amounts, amounts).map(lambda each: (each[0] + each[1], each[1], each[2]))
models = st.builds(
    load_of,
    st.lists(layer, min_size=1, max_size=12),
    amounts,
    compute=st.tuples(*[st.integers(0, 9)] * 4),
    embedding_bytes=amounts,
    cpu_compute_bytes=amounts,
    projector_bytes=st.sampled_from([0, 0, 7]),
    experts=st.sampled_from([0, 128]),
    experts_used=st.just(8),
    later_layers=st.sampled_from([0, 0, 1]),
)
machines = st.lists(st.integers(0, 250), min_size=0, max_size=5).map(lambda free: gpus(*free))


def parsed(words):
    return dict(zip(words[::2], words[1::2], strict=True))


def check(plan, load, devices):
    """What holds for every plan: the arguments reproduce it, it is contiguous, no GPU is over its budget."""
    layers = len(load.layers) + load.later_layers
    words = parsed(plan.arguments)
    split = [float(word) for word in words.get("-ts", "").split(",") if word]
    by_uuid = {gpu.uuid: gpu for gpu in devices}
    visible = [uuid for uuid in plan.environment["CUDA_VISIBLE_DEVICES"].split(",") if uuid]
    assert visible == [share.device.uuid for share in plan.shares]
    assert len(set(visible)) == len(visible)
    found = rule.slots(layers, int(words["-ngl"]), rule.proportions(split, [by_uuid[u].free_bytes for u in visible]))
    expected = [None] * (layers + 1)
    for index, share in enumerate(plan.shares):
        if share.first is not None:
            assert share.last >= share.first
            expected[share.first : share.last + 1] = [index] * (share.last + 1 - share.first)
        if share.has_output:
            expected[layers] = index
    assert list(found) == expected == list(plan.slots())
    on = [index for index in found if index is not None]
    assert on == sorted(on)
    assert set(on) == set(range(len(plan.shares)))
    assert all(share.used_bytes <= share.budget_bytes <= share.device.free_bytes for share in plan.shares)
    assert {gpu.uuid for gpu in plan.idle} | set(visible) == set(by_uuid)
    offloaded = int(words.get("--n-cpu-moe", 0))
    assert offloaded == plan.cpu_experts
    total = (
        sum(each.weight_bytes + each.context_bytes for each in load.layers) + load.output_bytes + load.embedding_bytes
    )
    placed = sum(share.weight_bytes + share.context_bytes for share in plan.shares)
    assert placed + plan.cpu_bytes - load.cpu_compute_bytes == total
    assert ("-ts" in words) == (len(plan.shares) > 1)


@given(load=models, devices=machines)
@settings(max_examples=200, deadline=None)
def test_every_plan_is_one_that_llama_cpp_follows(load, devices):
    """Whole or in part: llama.cpp's rule puts every layer from the arguments where the plan has it."""
    made = place(load, devices, NOTHING_KEPT)
    if isinstance(made, Placement):
        assert made.whole
    check(made if isinstance(made, Placement) else made.best, load, devices)


def cost(load, begin, end, start, offloaded, *, shared):
    """One GPU's bytes, counted layer by layer."""
    layers = len(load.layers) + load.later_layers
    inside = list(enumerate(load.layers))[begin:end]
    total = sum(each.weight_bytes + each.context_bytes for _, each in inside)
    total -= sum(each.expert_bytes for index, each in inside if index < offloaded)
    total += load.compute_bytes
    if end > layers:
        total += load.output_bytes + load.output_compute_bytes
    whole = start == 0 and offloaded == 0
    if begin == start:
        total += load.projector_bytes + (0 if whole else load.copied_bytes)
    return total + (load.shared_compute_bytes if shared and whole else 0)


def possible(load, devices, start, offloaded):
    """Every way of cutting the slots into one run per GPU, tried; some may be empty."""
    slots = len(load.layers) + load.later_layers + 1
    for cuts in itertools.combinations_with_replacement(range(start, slots + 1), max(len(devices) - 1, 0)):
        ends = [start, *cuts, slots]
        runs = [(a, b) for a, b in itertools.pairwise(ends)] if devices else []
        shared = sum(b > a for a, b in runs) > 1
        if runs and all(
            a == b or cost(load, a, b, start, offloaded, shared=shared) <= gpu.free_bytes
            for (a, b), gpu in zip(runs, devices, strict=True)
        ):
            return True
    return False


small = st.builds(
    load_of,
    st.lists(layer, min_size=1, max_size=5),
    amounts,
    compute=st.tuples(*[st.integers(0, 9)] * 4),
    projector_bytes=st.sampled_from([0, 5]),
    experts=st.sampled_from([0, 8]),
    experts_used=st.just(2),
    later_layers=st.sampled_from([0, 1]),
)


@given(load=small, devices=st.lists(st.integers(0, 200), max_size=3).map(lambda free: gpus(*free)))
@settings(max_examples=150, deadline=None)
def test_nothing_better_is_possible(load, devices):
    """It fits whole if any cutting fits; of what fits in part, none leaves the CPU less to read."""
    offered = [gpu for gpu in devices if gpu.free_bytes]
    made = place(load, devices, NOTHING_KEPT)
    assert isinstance(made, Placement) == possible(load, offered, 0, 0)
    if isinstance(made, Placement):
        return
    slots = len(load.layers) + load.later_layers + 1
    moe = any(each.expert_bytes for each in load.layers)
    reads = [
        read(load, start, offloaded)
        for start in range(slots + 1)
        for offloaded in (range(len(load.layers) + 1) if moe else (0,))
        if start == slots or possible(load, offered, start, offloaded)
    ]
    best = made.best
    start = best.layers + 1 - best.gpu_layers
    assert read(load, start, best.cpu_experts) == pytest.approx(min(reads))


def read(load, start, offloaded):
    """What the CPU reads for a token."""
    experts, used = load.experts, load.experts_used
    total = load.output_bytes if start > len(load.layers) + load.later_layers else 0
    for index, each in enumerate(load.layers):
        if index < start:
            total += each.weight_bytes - each.expert_bytes + each.context_bytes
        if index < max(start, offloaded):
            total += each.expert_bytes * (used / experts if experts else 1)
    return total


@given(load=models, devices=machines.filter(lambda found: any(gpu.free_bytes for gpu in found)))
@settings(max_examples=100, deadline=None)
def test_what_is_missing_is_what_is_missing(load, devices):
    """With so much more on the last GPU it fits, with one byte less it does not."""
    made = place(load, devices, NOTHING_KEPT)
    if isinstance(made, Placement):
        return
    *others, last = [gpu for gpu in devices if gpu.free_bytes]
    for more, fits in ((made.missing_bytes, True), (made.missing_bytes - 1, False)):
        enough = Device(last.index, last.uuid, last.name, last.pci, last.total_bytes, last.free_bytes + more)
        assert isinstance(place(load, (*others, enough), NOTHING_KEPT), Placement) == fits


def test_one_gpu_comes_before_two():
    """What fits into one is not spread: the other sleeps, and -ts says nothing."""
    made = place(load_of([(10, 0, 0)] * 4, 5), gpus(30, 50), NOTHING_KEPT)
    assert made.arguments == ("-ngl", "5")
    assert made.environment == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "GPU-1"}
    assert [gpu.index for gpu in made.idle] == [0]


def test_two_gpus():
    """The first is filled, the second takes the rest and the output."""
    made = place(load_of([(10, 0, 0)] * 4, 5), gpus(30, 30), NOTHING_KEPT)
    assert made.arguments == ("-ngl", "5", "-ts", "3,2")
    assert [(share.first, share.last, share.has_output) for share in made.shares] == [(0, 2, False), (3, 3, True)]
    assert made.uuids == ("GPU-0", "GPU-1")


def test_fewer_layers():
    """A dense model that does not fit: the last layers and the output are on the GPU, the first on the CPU."""
    made = place(load_of([(12, 0, 0)] * 4, 6, embedding_bytes=3), gpus(34), NOTHING_KEPT)
    assert isinstance(made, Shortfall)
    assert made.missing_bytes == 54 - 34
    assert made.best.arguments == ("-ngl", "3")
    assert made.best.cpu_bytes == 3 + 24
    means = "llama.cpp before December 2025 reads -ngl 3 as that many layers without the output"
    assert made.best.notes == (f"{means}: gpu0 would take 1 MiB more than it may",)


def test_experts_on_the_cpu_come_before_layers():
    """Of a mixture of experts all layers stay on the GPU, and only as many experts leave as must."""
    made = place(load_of([(100, 90, 1)] * 10, 5, experts=128, experts_used=8), gpus(600), NOTHING_KEPT)
    assert made.best.arguments == ("-ngl", "11", "--n-cpu-moe", "5")
    only_layers = best_part(load_of([(100, 90, 1)] * 10, 5), gpus(600), NOTHING_KEPT, experts=False)
    assert only_layers.arguments == ("-ngl", "6")


def test_no_gpu_at_all():
    """Then the CPU has everything, and CUDA is shown no GPU."""
    made = place(load_of([(10, 0, 2)] * 2, 5), (), NOTHING_KEPT)
    assert made.best.arguments == ("-ngl", "0")
    assert made.best.environment["CUDA_VISIBLE_DEVICES"] == ""
    assert made.missing_bytes == 29


def test_what_the_demand_fixes():
    """-ngl and --n-cpu-moe of the operator are kept: what is asked for fits, or it does not."""
    layers = [(100, 90, 1)] * 4
    made = place(load_of(layers, 5, layers_on_gpu=2), gpus(200), NOTHING_KEPT)
    assert made.arguments == ("-ngl", "2")
    made = place(load_of(layers, 5, experts=8, experts_used=1, experts_on_cpu=-1), gpus(200), NOTHING_KEPT)
    assert made.arguments == ("-ngl", "5", "--n-cpu-moe", "4")
    assert isinstance(place(load_of(layers, 5, layers_on_gpu=3), gpus(200), NOTHING_KEPT), Shortfall)


def test_the_cache_may_stay_on_the_cpu():
    """With -nkvo the GPU load no room for it."""
    made = place(load_of([(10, 0, 50)] * 2, 5, offload_context=False), gpus(25), NOTHING_KEPT)
    assert made.arguments == ("-ngl", "3")
    assert made.cpu_bytes == 100


class Crooked(Placement):
    """Means its GPUs the other way round than it says."""

    def slots(self):
        return tuple(None if index is None else 1 - index for index in super().slots())


def test_a_plan_that_llama_cpp_would_not_follow():
    """It is refused rather than handed out."""
    made = place(load_of([(10, 0, 0)] * 4, 5), gpus(30, 30), NOTHING_KEPT)
    assert prove(made) is made
    with pytest.raises(MemscalerError, match="would not follow this plan: -ngl 5 -ts 3,2"):
        prove(Crooked(made.layers, made.shares, 0, 0))


def test_a_hypothetical_gpu_has_no_environment():
    """Nobody can show it to a server."""
    gpu = Device(0, "hypothetical-0", "24 GiB", "", 100, 100)
    assert place(load_of([(10, 0, 0)], 5), (gpu,), NOTHING_KEPT).environment == {}
