"""What a server has started, found wherever it went: its processes inherit a variable that no other process has.

A mark is STATE-DIRECTORY:NAME:RANDOM, of a server's or a hook's launch. Only processes of our own user are looked at,
by root all; one that has thrown its environment away is not found.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from functools import partial
from pathlib import Path

from memscaler.kernel.processes import start_time
from memscaler.servers.aside import aside_within

VARIABLE = "SERVER_MARK"
LOOK_S = 5.0  # reading a process that the driver holds may hang


def new(state: Path, name: str) -> str:
    """For a launch."""
    return f"{_of(state)}{name}:{secrets.token_hex(8)}"


def name_of(mark: str) -> str:
    """Of the server, or SERVER.HOOK."""
    return mark.rsplit(":", 2)[-2]


async def find(mark: str) -> dict[int, int]:
    """Pid -> start time of the living that have it; none if that cannot be found out in time."""
    return {pid: since for pid, (since, _) in (await _in_time(mark)).items()}


async def lost(state: Path) -> set[str]:
    """The marks of all that supervisors with this state directory have started, and that lives."""
    return {mark for _, mark in (await _in_time(_of(state))).values()}


async def _in_time(beginning: str) -> dict[int, tuple[int, str]]:
    nobody: dict[int, tuple[int, str]] = {}
    return await aside_within(LOOK_S, partial(living, beginning), nobody)


def living(beginning: str) -> dict[int, tuple[int, str]]:
    """Pid -> start time and mark, of those whose mark begins so."""
    wanted = f"\0{VARIABLE}={beginning}".encode()
    found: dict[int, tuple[int, str]] = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            if os.geteuid() not in (0, entry.stat().st_uid) or int(entry.name) == os.getpid():
                continue
            text = b"\0" + Path(entry.path, "environ").read_bytes()
            at = text.find(wanted)
            since = start_time(int(entry.name))
            if at >= 0 and since is not None:
                mark = text[at + len(VARIABLE) + 2 :].partition(b"\0")[0].decode(errors="replace")
                found[int(entry.name)] = since, mark
    return found


def _of(state: Path) -> str:
    return f"{state.absolute()}:"
