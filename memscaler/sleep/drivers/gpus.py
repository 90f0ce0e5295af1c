"""What the driver knows of the processes on GPUs, asked in a short session with NVML of its own.

Stages are entered every few minutes at most: a session that stays open would keep the driver from being unloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from memscaler.core.errors import GpuError
from memscaler.gpu import nvml
from memscaler.gpu.session import Attempt
from memscaler.kernel.processes import Processes
from memscaler.sleep.drivers.protocol import Later

Value = TypeVar("Value")

PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class Board:
    """persistence: None if the driver does not tell. used: pid -> bytes of the card's memory, None if not told."""

    persistence: bool | None
    used: Mapping[int, int | None] = field(default_factory=dict)


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

    def bytes_of(self, pids: Collection[int]) -> int | None:
        """What these use in all; None if that is not told of one of them."""
        used = [each for boards in self.users(pids).values() for each in boards.values()]
        return None if None in used else sum(each for each in used if each is not None)


def look() -> Boards:
    """All boards that answer. Raise Later if the driver does not."""
    try:
        return Attempt(_look).result(PATIENCE_S, nvml.SESSION)
    except GpuError as error:
        raise Later(f"the NVIDIA driver does not tell who uses its GPUs: {error}", hint=error.hint) from error


def _look() -> Boards:
    nvml.initialise()
    try:
        boards = {}
        for index in range(nvml.count()):
            handle = _or_none(lambda index=index: nvml.handle(index))  # type: ignore[misc]
            if handle is not None:
                persistence = _or_none(lambda handle=handle: nvml.persistence_mode(handle))  # type: ignore[misc]
                boards[nvml.uuid(handle)] = Board(persistence, nvml.compute_memory(handle))
        return Boards(nvml.driver_version(), boards)
    finally:
        nvml.shutdown()


def _or_none(ask: Callable[[], Value]) -> Value | None:
    try:
        return ask()
    except GpuError:
        return None


def family(pids: Collection[int], processes: Processes) -> frozenset[int]:
    """The listeners of a server, and all that they have started: vLLM's engine has the GPU, but no clients."""
    return frozenset(pids) | processes.descendants(pids)
