"""One daemon per machine, and nobody who governs while somebody calibrates.

A daemon that has let go of the driver holds its lock all the same. So who calibrates holds one of his own, which keeps
that daemon, and any other, from governing. Who begins to govern looks whether it is free, and need not keep it: while
he governs, nobody begins to calibrate.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from memscaler.core.errors import Calibrating, DaemonRunning, MemscalerError, PermissionMissing

DAEMON = "lock"
CALIBRATION = "calibrate.lock"
LOOK_S = 0.05


def prepare_runtime_dir(path: Path) -> None:
    """Make the directory of the journal and the lock. Raise PermissionMissing (exit 4) without the right to."""
    try:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
    except PermissionError as error:
        raise PermissionMissing(f"cannot make {path}") from error
    except OSError as error:
        raise MemscalerError(f"cannot make {path}: {error.strerror}") from error


def acquire(runtime_dir: Path, name: str = DAEMON) -> int:
    """Take the lock and return its descriptor, which holds it until the process ends, however it ends.

    name: of another lock than the daemon's. Raise DaemonRunning if somebody holds it.
    """
    path = runtime_dir / name
    try:
        # Readable for nobody else: a lock can be taken through any descriptor.
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        os.fchmod(fd, 0o600)
    except PermissionError as error:
        raise PermissionMissing(f"cannot write {path}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        pid = _pid(fd)
        os.close(fd)
        raise DaemonRunning(pid) from error
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def acquire_calibration(runtime_dir: Path, patience_s: float = 0.0) -> int:
    """Take the lock of who calibrates, as `acquire` does. Raise Calibrating if it is not free within patience_s."""
    end_s = time.monotonic() + patience_s
    while True:
        try:
            return acquire(runtime_dir, CALIBRATION)
        except DaemonRunning as error:
            if time.monotonic() >= end_s:
                raise Calibrating(error.pid) from error
        time.sleep(LOOK_S)


def refuse_beside_calibration(runtime_dir: Path) -> None:
    """Raise Calibrating if somebody calibrates with this directory. Says nothing if we may not look."""
    try:
        refuse_beside_daemon(runtime_dir, CALIBRATION)
    except DaemonRunning as error:
        raise Calibrating(error.pid) from error


def refuse_beside_daemon(runtime_dir: Path, name: str = DAEMON) -> None:
    """Raise DaemonRunning if a daemon governs with this directory. Says nothing if we may not look.

    name: of another lock than the daemon's.
    """
    try:
        fd = os.open(runtime_dir / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DaemonRunning(_pid(fd)) from error
    finally:
        os.close(fd)


def wait_until_free(runtime_dir: Path) -> None:
    """Sleep until no daemon governs with this directory, however it ended. Raise PermissionMissing (exit 4)."""
    path = runtime_dir / DAEMON
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except PermissionError as error:
        raise PermissionMissing(f"cannot read {path}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)  # at once: whoever wants to govern now must not find it taken


def _pid(fd: int) -> str:
    return os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
