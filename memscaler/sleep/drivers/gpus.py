"""What the driver knows of the processes on GPUs, for stages: what it does not tell now is asked again later."""

from __future__ import annotations

from collections.abc import Collection

from memscaler.core.errors import GpuError
from memscaler.gvm import boards
from memscaler.gvm.boards import Board, Boards
from memscaler.kernel.processes import Processes
from memscaler.sleep.drivers.protocol import Later

__all__ = ["Board", "Boards", "family", "look"]


def look() -> Boards:
    """All boards that answer. Raise Later if the driver does not."""
    try:
        return boards.look()
    except GpuError as error:
        raise Later(f"the NVIDIA driver does not tell who uses its GPUs: {error}", hint=error.hint) from error


def family(pids: Collection[int], processes: Processes) -> frozenset[int]:
    """The listeners of a server, and all that they have started: vLLM's engine has the GPU, but no clients."""
    return frozenset(pids) | processes.descendants(pids)
