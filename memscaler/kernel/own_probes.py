"""Our own connections to watched servers: announced before they are made, they are nobody's work and ring nobody.

An entry under their identity that belongs to no watch is put into the set of connections beforehand. The hooks find it,
count nothing, and take it out when the connection ends. What they miss is forgotten a second later: the next connection
of that identity is somebody's.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from memscaler.kernel.bpf import NOEXIST, HashMap
from memscaler.kernel.counters import NO_WATCH
from memscaler.kernel.records import CONNECTION, IDENTITY

_AFTERLIFE_S = 1.0  # the server closes its end a little later
_FOR_EVER_S = float("inf")


class OwnProbes:
    """Used by the threads of several GPUs."""

    def __init__(self, connections_fd: int) -> None:
        self._lock = threading.Lock()
        self._connections = HashMap(connections_fd, IDENTITY.size, CONNECTION.size)
        self._until_s: dict[bytes, float] = {}

    def __contains__(self, identity: bytes) -> bool:
        return self._until_s.get(identity, 0) > time.monotonic()

    @contextlib.contextmanager
    def announced(self, identity: bytes) -> Iterator[None]:
        """A connection of this identity (as of the server's socket) is ours. Begin before connecting.

        Raise FileExistsError if a client's connection of that identity is in the set, even a stale one: it is the
        ledger's to heal. Another port will do.
        """
        self.forget_old()
        with self._lock:
            self._connections.put(identity, CONNECTION.pack(0, NO_WATCH, 0, 0, 0), NOEXIST)
            self._until_s[identity] = _FOR_EVER_S
        afterlife_s = _AFTERLIFE_S
        try:
            yield
        except ConnectionRefusedError:  # there never was one
            afterlife_s = 0.0
            raise
        finally:
            self._until_s[identity] = time.monotonic() + afterlife_s
            self.forget_old()

    def forget_old(self) -> None:
        """Take out what no hook took out."""
        with self._lock:
            now_s = time.monotonic()
            for identity in [known for known, until_s in self._until_s.items() if until_s <= now_s]:
                value = self._connections.get(identity)
                if value is not None and CONNECTION.unpack(value)[1] == NO_WATCH:  # else it is a client's by now
                    self._connections.delete(identity)
                del self._until_s[identity]
