"""The driver's processes/ as a FUSE file system: paths, modes, errors and open files, over model.Model.

Two things that FUSE cannot do, and what is done instead:
- write(2) that returns more than was written: the kernel makes EIO of it (fuse_send_write). The status waits in the
  extended attribute user.nv_status of the file, and status.c, preloaded into who writes, returns it.
- Unlike debugfs, a path that is gone answers ENOENT at the next open, as it should, but the kernel asks us each time:
  nothing is cached.
"""

from __future__ import annotations

import errno
import itertools
import stat
import threading
from collections.abc import Iterator
from typing import Any

import mfusepy

from tests.gvm.fake.model import MODES, Group, Model, Positive

ATTRIBUTE = "user.nv_status"


class Tree(mfusepy.Operations):
    """What libfuse calls, from several threads at once."""

    use_ns = True

    def __init__(self, model: Model) -> None:
        self._model = model
        self._open: dict[int, tuple[int, int, Group, str] | None] = {}  # None: the list
        self._texts: dict[int, bytes] = {}
        self._status: dict[str, int] = {}
        self._handles = itertools.count(1)
        self._lock = threading.Lock()

    # ---- directories

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        del fh
        where = _parts(path)
        if not where:
            return _directory(0o755)
        if where == ["list"]:
            return _file(0o444)
        trap = self._model.spring("look", "/".join(where))
        try:
            return self._node(where)
        finally:
            self._model.after(trap)

    def _node(self, where: list[str]) -> dict[str, Any]:
        tid = _number(where[0])
        if len(where) == 1:
            if tid not in self._model.tids():
                raise mfusepy.FuseOSError(errno.ENOENT)
            return _directory(0o755)
        self._model.group(tid, _number(where[1]))
        if len(where) == 2:
            return _directory(0o755)
        if len(where) > 3 or where[2] not in MODES:
            raise mfusepy.FuseOSError(errno.ENOENT)
        return _file(MODES[where[2]])

    def readdir(self, path: str, fh: int) -> Iterator[str]:
        del fh
        names = self._names(path)
        return itertools.chain((".", ".."), names)

    def _names(self, path: str) -> list[str]:
        where = _parts(path)
        trap = self._model.spring("list", "/".join(where))
        try:
            if not where:
                return ["list", *map(str, self._model.tids())]
            if len(where) == 1:
                space = self._model.spaces.get(_number(where[0]))
                if space is None:
                    raise mfusepy.FuseOSError(errno.ENOENT)
                return [str(number) for number in list(space.groups)]
            return list(MODES)
        finally:
            self._model.after(trap)

    # ---- files

    def open(self, path: str, flags: int) -> int:
        del flags
        where = _parts(path)
        handle = next(self._handles)
        if where == ["list"]:
            self._open[handle] = None
            return handle
        if len(where) != 3:
            raise mfusepy.FuseOSError(errno.ENOENT)
        trap = self._model.spring("open", "/".join(where))
        tid, number = _number(where[0]), _number(where[1])
        self._open[handle] = (tid, number, self._model.group(tid, number), where[2])
        self._model.after(trap)
        return handle

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        """O_TRUNC: debugfs lets it pass."""
        del path, length, fh
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        if offset == 0:
            self._texts[fh] = self._text(path, fh)
        return self._texts[fh][offset : offset + size]

    def _text(self, path: str, fh: int) -> bytes:
        of = self._open[fh]
        if of is None:
            return b"PID\n" + "".join(f"{tid}\n" for tid in self._model.tids()).encode()
        trap = self._model.spring("read", path.strip("/"))
        try:
            return self._model.read(*of).encode()
        finally:
            self._model.after(trap)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        del offset  # the driver's handlers do not look at it
        of = self._open[fh]
        if of is None:
            raise mfusepy.FuseOSError(errno.EINVAL)
        try:
            self._model.write(*of, data)
        except Positive as positive:
            with self._lock:
                self._status[path] = positive.status
            raise mfusepy.FuseOSError(errno.EIO) from None
        return len(data)

    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        """The status of the last write, once: for status.c only, the driver has no such thing."""
        del position
        with self._lock:
            status = self._status.pop(path, None) if name == ATTRIBUTE else None
        if status is None:
            raise mfusepy.FuseOSError(errno.ENODATA)
        return str(status).encode()

    def release(self, path: str, fh: int) -> int:
        del path
        self._open.pop(fh, None)
        self._texts.pop(fh, None)
        return 0


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or (text != "0" and text.startswith("0")):
        raise mfusepy.FuseOSError(errno.ENOENT)
    return int(text)


def _directory(mode: int) -> dict[str, Any]:
    return {"st_mode": stat.S_IFDIR | mode, "st_nlink": 2}


def _file(mode: int) -> dict[str, Any]:
    """A file, which has no size in debugfs."""
    return {"st_mode": stat.S_IFREG | mode, "st_nlink": 1, "st_size": 0}
