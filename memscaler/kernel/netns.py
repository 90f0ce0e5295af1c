"""Network namespaces: their cookies, and a socket inside one."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_SO_NETNS_COOKIE = 71  # include/uapi/asm-generic/socket.h, Linux 5.14
_CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace as the kernel's hooks name it. cookie 0: namespaces are not told apart on this machine."""

    cookie: int
    name: str = "host"


def cookie_of(sock: socket.socket) -> int:
    """The cookie of the namespace that this socket lives in, 0 before Linux 5.14."""
    try:
        return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0])
    except OSError:
        return 0


@contextlib.contextmanager
def entered(path: str, inode: int = 0) -> Iterator[None]:
    """Run this thread in the network namespace of `path` (/proc/PID/ns/net, /run/netns/NAME). Needs CAP_SYS_ADMIN.

    inode: which one it must be, if that is known: the path of a process that has ended may belong to another.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if inode and os.fstat(there).st_ino != inode:
                raise FileNotFoundError(errno.ENOENT, "another namespace has this path now", path)
            _setns(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, "setns: " + os.strerror(number))
