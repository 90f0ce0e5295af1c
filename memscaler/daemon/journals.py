"""Where it is written down what has to be undone: folders of the runtime directory, a journal in each."""

from __future__ import annotations

from pathlib import Path

JOURNAL = "journal"  # levers of GPUs (gpu/journal.py)
CONTROLLED = "gpuctl"  # what is set on applications (gvm/journal.py)
ASLEEP = "sleep"  # servers in deeper stages (sleep/journal.py)


def tells_of_something(runtime_dir: Path, name: str) -> bool:
    """Whether there is anything to undo, in CONTROLLED or ASLEEP. Cheap."""
    return any((runtime_dir / name).glob("*.json"))
