"""llama.cpp's own rule, by which it puts the layers of a model onto devices (load_tensors in src/llama-model.cpp).

A model of n layers has n + 1 slots: slot n is the output layer. The last `-ngl` slots are on devices, those before on
the CPU; the token embedding is no slot, it is always on the CPU. Each device has a proportion, of `-ts` or of its free
memory. With p(d) the sum of the proportions up to device d, over the sum of all, the i-th of a slots on devices goes to
the first device with p(d) > i / a. All of that in 32-bit floating point, which this module does as C++ does it: a
64-bit sum or quotient of two 32-bit numbers, rounded to 32 bits, is what 32-bit arithmetic gives.

From this follows what `placement` relies on: with the numbers of slots themselves as proportions, p(d) and i / a are
the same quotients, and every device gets exactly as many slots as its number says.

llama.cpp before pull request 18148 (December 2025) put the output layer onto a device last, not first: there `-ngl k`
means the last k layers, and the output only with k = n + 1. With all slots on devices both mean the same.

tests/planner/test_rule.py compares with the same arithmetic in C++; a llama.cpp of 2026 with one to four devices (its
RPC backend on this host) put the layers of a model of 11 where this module says, in 300 of 300 random cases.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

Slots = tuple[int | None, ...]
"""For every layer and the output: the index of its device, None is the CPU."""

_FLOAT = struct.Struct("f")


def float32(value: float) -> float:
    """The nearest 32-bit floating point number."""
    rounded: float = _FLOAT.unpack(_FLOAT.pack(value))[0]
    return rounded


def points(proportions: Sequence[float]) -> tuple[float, ...]:
    """p(d) for every device."""
    sums = list(accumulate(map(float32, proportions), lambda total, each: float32(total + each)))
    return tuple(float32(each / sums[-1]) for each in sums)


def slots(layers: int, gpu_layers: int, proportions: Sequence[float], *, output_first: bool = True) -> Slots:
    """Where llama.cpp puts each of so many layers, and the output, with `-ngl gpu_layers`.

    proportions: one for each device, as given by `-ts`, or its free bytes without `-ts`. Negative gpu_layers: all.
    output_first: the rule since December 2025.
    """
    wanted = layers + 1 if gpu_layers < 0 else gpu_layers
    if not proportions or not any(proportions) or wanted == 0:
        return (None,) * (layers + 1)
    start = max(layers + output_first - wanted, 0)
    active = min(wanted, layers + 1)
    split = points(proportions)
    return tuple(
        bisect_right(split, float32((slot - start) / active)) if 0 <= slot - start < active else None
        for slot in range(layers + 1)
    )


def proportions(split: Sequence[float], free_bytes: Sequence[int]) -> tuple[float, ...]:
    """What llama.cpp computes with: `-ts`, filled up with zeros; the free memory where that is absent or all zeros."""
    given = (*split, *(0.0 for _ in free_bytes))[: len(free_bytes)]
    return given if any(given) else tuple(map(float, free_bytes))
