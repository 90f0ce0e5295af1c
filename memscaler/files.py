"""Files of ours: read with distrust, written as a whole."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path


def read_own(path: Path, most_bytes: int) -> str:
    """The text of a file of ours: of no other kind, not what a link leads to, and no more than we would have written.

    Raise OSError or ValueError.
    """
    # a FIFO would wait for its writer
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"more than {most_bytes} bytes")
    return data.decode("utf-8")


def write_own(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace the file; it is old or new, never half, also after a power loss. Makes its directory. Raise OSError.

    The draft is a new file, whatever lies in its place.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        draft.unlink(missing_ok=True)
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(fd, mode)
            os.fsync(fd)
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
