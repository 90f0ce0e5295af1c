"""How many cases each part of the fuzzing gets, how many there were, and mutations that they share."""

from __future__ import annotations

import gc
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

TOTAL = int(os.environ.get("MEMSCALER_FUZZ", "1600"))  # of all parts together; `make fuzz` has 110,000
LONGEST_CPU_S = 5.0  # for one case; of this thread, for the machine may be busy (and its host, which counts too)
ran: Counter[str] = Counter()

Edit = tuple[str, int, int, bytes]


def fuzzed(share: float) -> Callable[[Any], Any]:
    """This share of all cases is for the test."""
    return settings(max_examples=max(20, round(TOTAL * share)), deadline=None, suppress_health_check=list(HealthCheck))


@contextmanager
def case(part: str) -> Iterator[None]:
    """Count one, which is over in good time."""
    ran[part] += 1
    began = time.thread_time()
    yield
    took_s = time.thread_time() - began
    assert took_s < LONGEST_CPU_S, f"{part}: {took_s:.1f} s for one case"


def mutated(seeds: Sequence[bytes], words: Sequence[bytes], most: int = 5) -> st.SearchStrategy[bytes]:
    """One of the seeds with up to so many edits; words: what is put in, beside random bytes."""
    edit = st.tuples(
        st.sampled_from(("cut", "put", "over", "again", "flip")),
        st.integers(0, 1 << 16),
        st.integers(1, 40),
        st.sampled_from(words) | st.binary(max_size=12),
    )
    return st.builds(_edited, st.sampled_from(seeds), st.lists(edit, max_size=most))


def _edited(seed: bytes, edits: list[Edit]) -> bytes:
    data = bytearray(seed)
    for what, where, size, word in edits:
        at = where % (len(data) + 1)
        match what:
            case "cut":
                del data[at : at + size]
            case "put":
                data[at:at] = word
            case "over":
                data[at : at + len(word)] = word
            case "again":
                data[at:at] = data[max(0, at - size) : at] * (1 + where % 7)
            case _ if at < len(data):
                data[at] ^= 1 << size % 8
    return bytes(data)


def json_like(leaves: Sequence[object] = ()) -> st.SearchStrategy[Any]:
    """What JSON can say, and the numbers that it should not."""
    odd = st.sampled_from(
        [
            None,
            True,
            0,
            -1,
            1 << 70,
            10**400,
            1e308,
            float("inf"),
            float("nan"),
            "",
            "\x00",
            "\ud800",
            "../../x",
            *leaves,
        ]
    )
    leaf = odd | st.text(max_size=8) | st.integers()
    return st.recursive(
        leaf,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=4,
    )


def open_files_and_threads() -> tuple[int, int]:
    """What this process has of each; what earlier tests dropped is closed first."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))
