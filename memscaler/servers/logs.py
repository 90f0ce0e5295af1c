"""Where servers write: straight to the journal, or to a file, never through us: they write on while we are not there.

A journal's stream is a socket to journald (systemd's journald-stream.c; sd_journal_stream_fd(3)). A file is opened with
O_APPEND and rotated by copying it and cutting it short, because its writers keep it open: what they write between the
last read and the cut is lost, a line at the most. Nothing looks at a file that nobody writes to (inotify(7)).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from memscaler.servers.last_words import most_telling

STREAM = Path("/run/systemd/journal/stdout")
PREFIX = "memscaler-"
ROTATE_BYTES = 10 * 1024 * 1024
KEPT = 3
LOOK_AGAIN_S = 10.0
CONNECT_S = 2.0
MOST_COPIED_BYTES = 64 * 1024 * 1024  # of what one look has found; a writer may be as fast as we are
TAIL_BYTES = 16384
HINT_CHARACTERS = 160
_INFO = 6
_IN_MODIFY, _IN_ONESHOT = 0x2, 0x80000000

Kind = Literal["auto", "journal", "file"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where somebody's output goes. identifier: SYSLOG_IDENTIFIER in the journal; path: of the file; one of them."""

    identifier: str = ""
    path: str = ""

    @property
    def words(self) -> str:
        return self.path or f"journalctl -t {self.identifier}"


@dataclass(frozen=True, slots=True)
class Output:
    """An open place. fd: to be handed to the process and closed. begins: where its own output begins in the file."""

    fd: int
    place: Place
    begins: int = 0


def opened(name: str, kind: Kind, folder: Path, stream: Path = STREAM) -> Output:
    """name: of the server, or SERVER.HOOK. "auto" is the journal where there is one. Raise OSError."""
    if kind != "file":
        try:
            return Output(_journal(PREFIX + name, stream), Place(identifier=PREFIX + name))
        except OSError:
            if kind == "journal":
                raise
    folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    path = folder / f"{name}.log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    return Output(fd, Place(path=str(path)), os.fstat(fd).st_size)


def _journal(identifier: str, stream: Path) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(CONNECT_S)  # a journald that hangs takes no more after a while
        connection.connect(str(stream))
        connection.shutdown(socket.SHUT_RD)
        # identifier, unit, priority, whether lines begin with <N>, and whether to forward to syslog, kmsg, console
        connection.sendall(f"{identifier}\n\n{_INFO}\n1\n0\n0\n0\n".encode())
        connection.setblocking(True)  # the flag is the server's, too
        return connection.detach()


def last_words(place: Place, begins: int = 0, *, killed: bool = False) -> str:
    """The line that says why, for a hint; "" if it is not in a file of ours. begins: nothing before this counts.

    killed: then its last line, for it could not say why.
    """
    if not place.path:
        return ""
    try:
        with Path(place.path).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(begins if begins <= size else 0, size - TAIL_BYTES))
            lines = file.read(TAIL_BYTES).decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    said = most_telling(lines, killed=killed)
    text = "".join(character if character.isprintable() else " " for character in said).strip()
    return text if len(text) <= HINT_CHARACTERS else text[: HINT_CHARACTERS - 1] + "…"


def rotate(path: Path, *, most_bytes: int = ROTATE_BYTES, kept: int = KEPT) -> bool:
    """If the file is too long, NAME.log.1 has it from now on, and it begins anew. Raise OSError if that fails."""
    with path.open("rb+") as file:
        if os.fstat(file.fileno()).st_size <= most_bytes:
            return False
        draft = Path(f"{path}.new")
        try:
            draft.unlink(missing_ok=True)
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
            with os.fdopen(fd, "wb") as copy:
                _copy_end(file, copy)
        except OSError:  # a full disk: what is there stays as it is
            with contextlib.suppress(OSError):
                draft.unlink()
            raise
        for number in range(kept, 1, -1):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{path}.{number - 1}").replace(f"{path}.{number}")
        draft.replace(f"{path}.1")
        file.truncate(0)
    return True


def _copy_end(file: BinaryIO, copy: BinaryIO) -> None:
    """What is there, until nothing more is; of very much its end."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - MOST_COPIED_BYTES))
    left = 2 * MOST_COPIED_BYTES
    while left > 0 and (data := file.read(min(left, 1024 * 1024))):
        copy.write(data)
        left -= len(data)
    copy.flush()


class Rotation:
    """Keeps files short, while the loop runs: a look some time after the first write since the last look."""

    def __init__(self, *, most_bytes: int = ROTATE_BYTES, kept: int = KEPT, again_s: float = LOOK_AGAIN_S) -> None:
        self._most_bytes, self._kept, self._again_s = most_bytes, kept, again_s
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._paths: set[Path] = set()
        self._watched: dict[int, Path] = {}
        if self._fd >= 0:
            asyncio.get_running_loop().add_reader(self._fd, self._written)

    def watch(self, path: Path) -> None:
        """Once more is no harm."""
        if path not in self._paths:
            self._paths.add(path)
            self._look(path)

    def close(self) -> None:
        self._paths.clear()
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _look(self, path: Path) -> None:
        if self._fd < 0 or path not in self._paths:
            return
        try:
            rotate(path, most_bytes=self._most_bytes, kept=self._kept)
        except FileNotFoundError:
            self._paths.discard(path)
            return
        except OSError:
            pass  # a full disk: the next look comes
        number = self._libc.inotify_add_watch(self._fd, os.fsencode(path), ctypes.c_uint32(_IN_MODIFY | _IN_ONESHOT))
        if number >= 0:
            self._watched[number] = path

    def _written(self) -> None:
        """One event per file and look: struct inotify_event, of which only the first field says something here."""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._fd, 65536)
            while len(data) >= 16:  # noqa: PLR2004  # its size without a name
                number, length = (int.from_bytes(data[at : at + 4], "little") for at in (0, 12))
                data = data[16 + length :]
                path = self._watched.pop(number, None)
                if path is not None:
                    asyncio.get_running_loop().call_later(self._again_s, self._look, path)
