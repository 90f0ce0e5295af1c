"""Reading spans while the kernel writes them."""

from __future__ import annotations

from typing import Any

from memscaler.kernel.work import SPAN_WORDS, SPANS, WORK_WORDS, Spans, WorkRings


class Memory(list[int]):
    """Shared memory with a full ring; the kernel begins to write the next span just when the oldest is read."""

    def __init__(self) -> None:
        super().__init__([0] * WORK_WORDS)
        for index in range(SPANS):
            self[1 + index * SPAN_WORDS : 1 + (index + 1) * SPAN_WORDS] = [index + 1, 100 * index, 100 * index + 50]
        self[0] = SPANS

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice) and key.start == 1 and super().__getitem__(0) == SPANS:
            self[0] = SPANS + 1
            self[2] = 100 * SPANS  # its begin; end and number are still those of the span before
        return super().__getitem__(key)


class Rings(WorkRings):
    """Of this memory."""

    def __init__(self, memory: Memory) -> None:
        self._all = memory

    def _of(self, slot: int) -> Memory:  # noqa: ARG002
        return self._all


def test_a_span_that_is_written_over_while_it_is_read() -> None:
    """What is half old and half new is not told; that something is missing is."""
    assert Rings(Memory()).read(0, 1) == Spans((), SPANS, None)


def test_as_many_as_there_is_room_for() -> None:
    """Nothing is missing as long as nothing is written."""
    memory = Memory()
    told = Rings(memory).read(0, SPANS - 2)
    assert [span[0] for span in told.spans] == [100 * (SPANS - 3), 100 * (SPANS - 2), 100 * (SPANS - 1)]
    assert told.lost_ns == 0
