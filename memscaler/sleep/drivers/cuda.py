"""The program cuda-checkpoint, one call at a time for each process, and never blindly: words are told from errors.

https://github.com/NVIDIA/cuda-checkpoint. A call that takes long has not failed, and killing the program does not end
what the driver does: one that changes something is left to run, holding the lock of its process, and whoever comes next
waits for it, and only at the end of the time kills it. Since the lock is a file, that may be another process of ours
(`memscaler restore`) after this one has died.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from memscaler.kernel.processes import start_time

NAME = "cuda-checkpoint"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/cuda/bin"
STATE_S = 60.0  # --get-state was seen to take 7 s
HELP_S = 20.0
KILLED_S = 2.0
LOCK_POLL_S = 0.1
_VERSION = re.compile(r"Version (\d{1,5})((?:\.\d{1,5})*)")
_MOST_TEXT = 200


class State(StrEnum):
    """Of a process, as --get-state says; CUprocessState of the driver API has the same, numbered."""

    RUNNING = "running"
    LOCKED = "locked"
    CHECKPOINTED = "checkpointed"
    FAILED = "failed"
    CHECKPOINTING = "checkpointing"
    RESTORING = "restoring"
    UNKNOWN = "unknown"


_NUMBERED = tuple(State)[:-1]


class ToolError(Exception):
    """The program could not be run, or says that it failed."""


class ToolHangs(ToolError):
    """It has not ended in time."""


class Busy(ToolError):
    """Another call for the same process does not end."""


@dataclass(frozen=True, slots=True)
class Tool:
    """version: of the program; major 0: it does not tell. actions: it knows --action, so 570 or later."""

    path: Path
    version: str
    major: int
    actions: bool


def find(wanted: str) -> Tool:
    """The program at this path, or where it usually is. Raise ToolError with a sentence."""
    found = wanted or shutil.which(NAME, path=PATH)
    if not found:
        raise ToolError(f"{NAME} is not installed (https://github.com/NVIDIA/cuda-checkpoint)")
    path = Path(found)
    try:
        facts = path.stat()
    except OSError as error:
        raise ToolError(f"{path} cannot be used: {error.strerror}") from error
    if facts.st_uid not in (0, os.geteuid()) or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ToolError(f"{path} may be changed by others than root: it is not run")
    return _asked(path, facts.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _asked(path: Path, _changed_ns: int) -> Tool:
    code, text = _run([str(path), "--help"], time.monotonic() + HELP_S)
    match = _VERSION.search(text)
    if match is None:
        raise ToolError(f"{path} --help does not tell its version (exit status {code})")
    return Tool(path, match[1] + match[2], int(match[1]), "--action" in text)


class Calls:
    """Calls for one process, while it is locked. Raise ToolError, ToolHangs."""

    def __init__(self, path: Path, pid: int, lock: int) -> None:
        self._path = path
        self._pid = pid
        self._lock = lock

    def state(self, until_s: float) -> State:
        """Changes nothing, so it is killed if it hangs."""
        code, text = _run(self._words("--get-state"), min(until_s, time.monotonic() + STATE_S))
        if code:
            raise ToolError(_failure("--get-state", code, text))
        word = (text.split() or [""])[-1].strip("\"'.").lower()
        if word.isdecimal() and int(word) < len(_NUMBERED):
            return _NUMBERED[int(word)]
        return State(word) if word in tuple(State) else State.UNKNOWN

    def act(self, action: str, until_s: float, *more: str) -> None:
        """One that hangs goes on without us, and keeps the lock."""
        code, text = _run(self._words("--action", action, *more), until_s, holds=self._lock)
        if code:
            raise ToolError(_failure(action, code, text))

    def _words(self, *words: str) -> list[str]:
        return [str(self._path), *words, "--pid", str(self._pid)]


@contextlib.contextmanager
def locked(tool: Path, pid: int, folder: Path, until_s: float, *, kill: bool) -> Iterator[Calls]:
    """Nobody else of ours calls the program for this process. Raise Busy.

    kill: whoever has not ended when half of the time is over is killed; it is a call that hangs.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / f"cuda-{pid}.lock"
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _lock(fd, until_s, kill=kill)
        yield Calls(tool, pid, fd)
    finally:
        os.close(fd)  # a call that goes on has a copy


def _lock(fd: int, until_s: float, *, kill: bool) -> None:
    began_s = time.monotonic()
    kill_s = began_s + (until_s - began_s) / 2
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if kill and time.monotonic() >= kill_s:
            _kill(fd)
        if time.monotonic() + LOCK_POLL_S >= until_s:
            raise Busy(f"an earlier call of {NAME} does not end")
        time.sleep(LOCK_POLL_S)


def _kill(fd: int) -> None:
    """What is written in the lock's file: the last call."""
    with contextlib.suppress(ValueError, OSError):
        pid, started = map(int, os.pread(fd, 64, 0).split())
        if start_time(pid) == started:
            os.kill(pid, signal.SIGKILL)


def _run(words: Sequence[str], until_s: float, *, holds: int | None = None) -> tuple[int, str]:
    """Exit status, and what it wrote. holds: a lock that it keeps until it ends; such a call is never killed here."""
    left_s = until_s - time.monotonic()
    if left_s <= 0:
        raise ToolHangs(f"no time is left for {NAME}")
    try:
        process = subprocess.Popen(  # noqa: S603  # a program of root's
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": PATH, "LC_ALL": "C"},
            cwd="/",
            start_new_session=True,  # a signal to us is none to it: half a restore is none
            pass_fds=() if holds is None else (holds,),
        )
    except OSError as error:
        raise ToolError(f"{words[0]} cannot be run: {error.strerror}") from error
    if holds is not None:
        os.ftruncate(holds, 0)
        os.pwrite(holds, f"{process.pid} {start_time(process.pid) or 0}\n".encode(), 0)
    try:
        text, _ = process.communicate(timeout=left_s)
    except subprocess.TimeoutExpired as error:
        if holds is None:
            _end(process)
        _STILL_RUNNING.append(process)
        raise ToolHangs(f"{NAME} {words[1].lstrip('-')} has not ended after {left_s:.0f} s") from error
    finally:
        _STILL_RUNNING[:] = [each for each in _STILL_RUNNING if each.poll() is None]
    return process.returncode, text.decode(errors="replace")


_STILL_RUNNING: list[subprocess.Popen[bytes]] = []  # so that they are reaped when they end


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=KILLED_S)


def _failure(what: str, code: int, text: str) -> str:
    words = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    how = f"exit status {code}" if code > 0 else f"signal {-code}"
    return f"{NAME} {what.lstrip('-')}: {words[-_MOST_TEXT:] or how}"
