"""What a model puts onto GPUs: memory.Needs with every share of it as bytes, which is what placement computes with."""

from __future__ import annotations

from dataclasses import dataclass

from memscaler.planner.memory import Needs


@dataclass(frozen=True, slots=True)
class LayerLoad:
    """One layer, in bytes. weight_bytes: all its tensors, those of its experts (expert_bytes) among them.

    context_bytes: its KV cache and recurrent state.
    """

    weight_bytes: int
    expert_bytes: int = 0
    context_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """A whole model, in bytes.

    output_bytes: the output layer with its norm, a copy of the token embedding where that is tied.
    embedding_bytes: the token embedding, always on the CPU. later_layers: slots without anything between the last layer
    and the output (layers that predict further tokens).
    compute_bytes: the compute buffer of every GPU that has a slot; output_compute_bytes: what the GPU with the output
    has on top; shared_compute_bytes: what each of several GPUs has on top when the whole model is on them.
    copied_bytes: what the first GPU has on top when weights are left on the CPU.
    projector_bytes: of the multimodal projector, on the first GPU. cpu_compute_bytes: on the CPU.
    experts, experts_used: per layer, of which so many are read for a token.
    offload_context: False leaves KV cache and state on the CPU. layers_on_gpu: -ngl, where the operator fixes it.
    experts_on_cpu: --n-cpu-moe, where the operator fixes it; -1 is all.
    """

    layers: tuple[LayerLoad, ...]
    output_bytes: int
    embedding_bytes: int = 0
    later_layers: int = 0
    compute_bytes: int = 0
    output_compute_bytes: int = 0
    shared_compute_bytes: int = 0
    copied_bytes: int = 0
    projector_bytes: int = 0
    cpu_compute_bytes: int = 0
    experts: int = 0
    experts_used: int = 0
    offload_context: bool = True
    layers_on_gpu: int | None = None
    experts_on_cpu: int = 0


def load_of(needs: Needs) -> Load:
    """The same as bytes."""
    model, demand, compute = needs.model, needs.demand, needs.compute
    middle = compute.on_gpu(output=False)
    return Load(
        layers=tuple(
            LayerLoad(each.weight_bytes, each.expert_bytes, each.kv_bytes + each.state_bytes) for each in needs.layers
        ),
        output_bytes=needs.output_bytes,
        embedding_bytes=needs.embedding_bytes,
        later_layers=model.later_layers,
        compute_bytes=middle,
        output_compute_bytes=max(compute.on_gpu(output=True) - middle, 0),
        shared_compute_bytes=compute.on_gpu(output=False, pipelined=True) - middle,
        copied_bytes=_copied_bytes(needs),
        projector_bytes=needs.projector_bytes,
        cpu_compute_bytes=compute.cpu_bytes,
        experts=model.experts,
        experts_used=model.experts_used,
        offload_context=demand.offload_cache,
        layers_on_gpu=demand.layers_on_gpu,
        experts_on_cpu=demand.experts_on_cpu,
    )


def _copied_bytes(needs: Needs) -> int:
    """For a large batch llama.cpp copies one tensor after another from the CPU to the GPU: room for the largest.

    An estimate: of a layer's experts, in three tensors, two may be one; of the rest the largest is a third at most.
    """
    return max(
        (max(each.expert_bytes * 2 // 3, (each.weight_bytes - each.expert_bytes) // 3) for each in needs.layers),
        default=0,
    )
