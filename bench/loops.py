"""The client's loops, in C (loops.c): compiled once with gcc, called without the interpreter's lock."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

SOURCE = Path(__file__).with_name("loops.c")


@functools.cache
def _library() -> ctypes.CDLL:
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"memscaler-bench-{os.geteuid()}" / f"loops-{digest}.so"
    library.parent.mkdir(mode=0o700, exist_ok=True)
    if library.parent.stat().st_uid != os.geteuid():
        raise PermissionError(f"{library.parent} is somebody else's")
    if not library.exists():
        half = library.with_suffix(f".{os.getpid()}")
        subprocess.run(["gcc", "-O2", "-Wall", "-shared", "-fPIC", "-pthread", "-o", half, SOURCE], check=True)
        half.rename(library)
    loaded = ctypes.CDLL(str(library))
    for function in (loaded.open_and_close, loaded.exchange, loaded.ask):
        function.restype = ctypes.c_long
    return loaded


def _checked(answer: int) -> int:
    if answer < 0:
        raise OSError(-answer, os.strerror(-answer))
    return answer


def open_and_close(server: socket.socket, count: int, threads: int = 1) -> float:
    """Connect, accept, close, close by reset (no TIME_WAIT). Microseconds per connection, of all threads together."""
    took_ns: list[int] = []
    each = count // threads

    def loop() -> None:
        took_ns.append(_checked(_library().open_and_close(server.fileno(), each)))

    running = [threading.Thread(target=loop) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert len(took_ns) == threads, "a connection failed"
    return max(took_ns) / 1000 / (each * threads)


def exchange(client: socket.socket, server: socket.socket, count: int) -> float:
    """One byte there and one back, both ends ours. Microseconds per exchange."""
    return _checked(_library().exchange(client.fileno(), server.fileno(), count)) / 1000 / count


def requests_per_s(port: int, request: bytes, *, clients: int, keep: bool, seconds: float) -> tuple[float, int]:
    """(requests per second, requests): so many clients ask, each on one connection or on a new one each time.

    Raise OSError if a request is not answered with 200 and a Content-Length.
    """
    took_ns = ctypes.c_long()
    for_ns = ctypes.c_long(round(seconds * 1e9))
    done = _checked(_library().ask(port, request, clients, int(keep), for_ns, ctypes.byref(took_ns)))
    return done / took_ns.value * 1e9, done
