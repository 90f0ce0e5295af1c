"""What must be so before a process is checkpointed: cuda-checkpoint leaves one that it fails with dead, so doubt is no.

https://github.com/NVIDIA/cuda-checkpoint (its README and issues #25, #27, #56), and the driver API's group CHECKPOINT.
`refusal` is pure; the facts are gathered by checkpoint.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from memscaler.config.gpuctl import Gvm
from memscaler.gvm.errors import Gone
from memscaler.gvm.tree import Entry, Tree
from memscaler.kernel.processes import Processes

FIRST_DRIVER = 570
FIRST_WITH_IPC = 610
MACHINES = frozenset({"x86_64"})
UNIFIED = "GGML_CUDA_ENABLE_UNIFIED_MEMORY"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a server and its machine.

    users: of its processes those with a context: pid -> UUID -> bytes of the card's memory, None if not told.
    persistence: of the GPUs concerned, None where not told. unified, managed: pids that use managed memory, by their
    environment and by GVM's account. tool_problem: why there is no program that can be used.
    """

    machine: str
    root: bool
    driver: str
    users: Mapping[int, Mapping[str, int | None]]
    persistence: Mapping[str, bool | None]
    unified: frozenset[int] = frozenset()
    managed: frozenset[int] = frozenset()
    tool_problem: str = ""
    tool_version: str = ""
    tool_actions: bool = True


def refusal(facts: Facts) -> str:  # noqa: C901, PLR0911, PLR0912  # a list of reasons, in order
    """Why not, a sentence; "" if all gates are open."""
    major = driver_major(facts.driver)
    if not facts.root:
        return "only root may checkpoint the processes of others"
    if facts.machine not in MACHINES:
        return f"cuda-checkpoint is for x86-64, and this machine is {facts.machine}"
    if major is None:
        return "the NVIDIA driver does not tell its version"
    if major < FIRST_DRIVER:
        return f"driver {facts.driver} is older than {FIRST_DRIVER}: no lock with a deadline"
    if facts.tool_problem:
        return facts.tool_problem
    if not facts.tool_actions:
        return f"cuda-checkpoint {facts.tool_version} is older than {FIRST_DRIVER}: it can only toggle, blindly"
    if not facts.users:
        return "none of its processes has a CUDA context"
    if len(facts.users) > 1 and major < FIRST_WITH_IPC:
        return f"{len(facts.users)} of its processes use GPUs: what they share is lost below driver {FIRST_WITH_IPC}"
    if len(facts.users) > 1:
        return f"{len(facts.users)} of its processes use GPUs: only a single one is checkpointed"
    ((pid, boards),) = facts.users.items()
    if len(boards) > 1:
        return f"it uses {len(boards)} GPUs: only a single one is checkpointed"
    (uuid,) = boards
    if not facts.persistence.get(uuid):
        return f"persistence mode of {uuid} is off: the process may die (`nvidia-smi -pm 1`)"
    if boards[uuid] is None:
        return "the driver does not tell how much memory of the GPU it uses"
    if pid in facts.unified:
        return f"it uses unified memory ({UNIFIED}), which cannot be checkpointed"
    if pid in facts.managed:
        return "GVM manages its memory, and managed memory cannot be checkpointed"
    return ""


def driver_major(version: str) -> int | None:
    """570 of "570.86.15"; None for what is no version."""
    head = version.partition(".")[0]
    return int(head) if head.isascii() and head.isdigit() else None


def unified(pids: frozenset[int], processes: Processes) -> frozenset[int]:
    """Those that were told to use unified memory; llama.cpp looks only whether the variable is there."""
    return frozenset(pid for pid in pids if _has(pid, processes))


def _has(pid: int, processes: Processes) -> bool:
    """Its value may be empty, and an environment that cannot be read may have it."""
    try:
        words = Path(processes.path(pid, "environ")).read_bytes().split(b"\0")
    except OSError:
        return True
    return any(word.startswith(f"{UNIFIED}=".encode()) for word in words)


def managed(pids: frozenset[int], root: Path, gvm: Gvm) -> frozenset[int]:
    """Those with memory on GVM's account, by whichever of their threads; none where there is no GVM.

    One whose account cannot be read has some.
    """
    tree = Tree(replace(gvm, root=root / gvm.root.relative_to(gvm.root.anchor)))
    return frozenset(entry.pid for entry in tree.entries(pids) if _is_managed(tree, entry))


def _is_managed(tree: Tree, entry: Entry) -> bool:
    try:
        return tree.reading(entry).memory_current_bytes != 0
    except Gone:  # it has left that GPU
        return False
