"""One daemon per machine."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from memscaler.core.errors import DaemonRunning, MemscalerError, PermissionMissing


def prepare_runtime_dir(path: Path) -> None:
    """Make the directory of the journal and the lock. Raise PermissionMissing (exit 4) without the right to."""
    try:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
    except PermissionError as error:
        raise PermissionMissing(f"cannot make {path}") from error
    except OSError as error:
        raise MemscalerError(f"cannot make {path}: {error.strerror}") from error


def acquire(runtime_dir: Path) -> int:
    """Take the lock and return its descriptor, which holds it until the process ends, however it ends."""
    path = runtime_dir / "lock"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except PermissionError as error:
        raise PermissionMissing(f"cannot write {path}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        pid = os.pread(fd, 32, 0).decode(errors="replace").strip()
        os.close(fd)
        raise DaemonRunning(f"memscaler runs already (pid {pid or 'unknown'})") from error
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd
