"""Who is on which GPU, by the NVIDIA driver: asked in a short session with NVML of its own.

It is asked every now and then: a session that stays open would keep the driver from being unloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from memscaler.core.errors import GpuError
from memscaler.gpu import nvml, nvml_calls
from memscaler.gpu.session import Attempt

Value = TypeVar("Value")

PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class Board:
    """persistence: None if the driver does not tell. used: pid -> bytes of the card's memory, None if not told.

    index: the driver's, as in gpu0.
    """

    persistence: bool | None
    used: Mapping[int, int | None] = field(default_factory=dict)
    index: int = 0


@dataclass(frozen=True, slots=True)
class Boards:
    """driver: its version, "" if it does not tell. boards: by UUID."""

    driver: str
    boards: Mapping[str, Board]

    def users(self, pids: Collection[int]) -> dict[int, dict[str, int | None]]:
        """Of these pids those that have contexts: pid -> UUID -> bytes."""
        found: dict[int, dict[str, int | None]] = {}
        for uuid, board in self.boards.items():
            for pid in board.used.keys() & set(pids):
                found.setdefault(pid, {})[uuid] = board.used[pid]
        return found

    def on(self, uuids: Collection[str] | None = None) -> frozenset[int]:
        """Who has a context on one of these GPUs; None: on any."""
        boards = self.boards.items()
        return frozenset(pid for uuid, board in boards if uuids is None or uuid in uuids for pid in board.used)

    def bytes_of(self, pids: Collection[int]) -> int | None:
        """What these use in all; None if that is not told of one of them."""
        used = [each for boards in self.users(pids).values() for each in boards.values()]
        return None if None in used else sum(each for each in used if each is not None)


def look(patience_s: float = PATIENCE_S) -> Boards:
    """All boards that answer. Raise GpuError if the driver does not, or takes longer than that."""
    return Attempt(_look).result(patience_s, nvml_calls.SESSION)


def _look() -> Boards:
    nvml.initialise()
    try:
        boards = {}
        for index in range(nvml.count()):
            handle = _or_none(lambda index=index: nvml.handle(index))  # type: ignore[misc]
            if handle is not None:
                persistence = _or_none(lambda handle=handle: nvml.persistence_mode(handle))  # type: ignore[misc]
                boards[nvml.uuid(handle)] = Board(persistence, nvml.compute_memory(handle), index)
        return Boards(nvml.driver_version(), boards)
    finally:
        nvml.shutdown()


def _or_none(ask: Callable[[], Value]) -> Value | None:
    try:
        return ask()
    except GpuError:
        return None
