"""The CPU's share of a process, by setpriority(2) of all its threads: what feeds a GPU from a crowded CPU counts, too.

It says nothing of the GPU, where all contexts have equal turns. Threads that are started later have their starter's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from memscaler.gvm.errors import Gone, NotAllowed, Refused
from memscaler.gvm.processes import is_alive, threads_of
from memscaler.kernel.processes import PROC

_PASSES = 5  # threads that are started while we are at it


def nice_of(pid: int, started: int, proc: Path = PROC) -> dict[int, int]:
    """Of each thread. Raise Gone."""
    found = {}
    for tid in threads_of(pid, proc):
        try:
            found[tid] = os.getpriority(os.PRIO_PROCESS, tid)
        except ProcessLookupError:
            continue
    if not found or not is_alive(pid, started, proc):
        raise Gone(f"process {pid} has ended")
    return found


def set_nice(pid: int, started: int, value: int, proc: Path = PROC) -> None:
    """Of all threads. Raise KnobError."""
    done: set[int] = set()
    for _ in range(_PASSES):
        wanted = {tid: value for tid in nice_of(pid, started, proc) if tid not in done}
        if not wanted:
            return
        _apply(pid, wanted, changed=bool(done))
        done |= wanted.keys()


def undo_nice(pid: int, started: int, was: Mapping[int, int], otherwise: int, ours: int, proc: Path = PROC) -> bool:
    """Give back to each thread that has ours what it had; `otherwise` to those that came later. Raise KnobError.

    False if none has ours, and not all have what they had: somebody else has changed it.
    """
    now = nice_of(pid, started, proc)
    wanted = {tid: was.get(tid, otherwise) for tid, value in now.items() if value == ours}
    if not wanted:
        return all(value == was.get(tid, otherwise) for tid, value in now.items())
    _apply(pid, wanted)
    return True


def _apply(pid: int, wanted: Mapping[int, int], *, changed: bool = False) -> None:
    """changed: others of its threads were changed before."""
    for tid, value in _lowest_last(wanted.items()):
        try:
            os.setpriority(os.PRIO_PROCESS, tid, value)
            changed = True
        except ProcessLookupError:
            continue
        except PermissionError as error:
            message = f"process {pid}: nice {value} is not allowed"
            raise NotAllowed(message, code=error.errno or 0, changed=changed) from error
        except OSError as error:
            message = f"process {pid}: nice {value}: {error.strerror}"
            raise Refused(message, code=error.errno or 0, changed=changed) from error


def _lowest_last(wanted: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """What anybody may do first: the rest may be refused."""
    return sorted(wanted, key=lambda each: -each[1])
