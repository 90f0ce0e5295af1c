"""What can be set on a process: each knob's range and default, and what people get the wrong way round."""

from __future__ import annotations

from collections.abc import Mapping

from memscaler.core.gpuctl import NO_LIMIT, Knob

GVM_ONLY = frozenset({Knob.MEMORY_LIMIT, Knob.COMPUTE_PRIORITY})
PER_GPU = frozenset({Knob.MEMORY_LIMIT, Knob.COMPUTE_PRIORITY, Knob.COMPUTE_FREEZE})

RANGES: Mapping[Knob, tuple[int, int]] = {
    Knob.MEMORY_LIMIT: (0, NO_LIMIT),
    Knob.COMPUTE_PRIORITY: (0, 15),
    Knob.COMPUTE_FREEZE: (0, 1),
    Knob.CPU_NICE: (-20, 19),
    Knob.CPU_WEIGHT: (1, 10000),
}
BEYOND_README = 16  # GVM's code takes this compute.priority, its README ends at 15

DEFAULTS: Mapping[Knob, int] = {
    Knob.MEMORY_LIMIT: NO_LIMIT,
    Knob.COMPUTE_PRIORITY: 8,
    Knob.COMPUTE_FREEZE: 0,
    Knob.CPU_NICE: 0,
    Knob.CPU_WEIGHT: 100,
}

# What people get the wrong way round.
DIRECTIONS: Mapping[Knob, str] = {
    Knob.COMPUTE_PRIORITY: "lower is higher priority",
    Knob.CPU_NICE: "lower is higher priority",
    Knob.CPU_WEIGHT: "higher is more CPU",
}
