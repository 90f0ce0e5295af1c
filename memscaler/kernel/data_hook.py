"""The third hook: rings for the first byte on a connection that was open and silent when its GPU parked.

It filters incoming packets at the root of cgroup v2, which the kernel never skips, unlike a tracepoint; lets everything
pass; and is attached only while it is needed, because every socket of the machine pays for it (bench/bpf_cost.py).
Attaching and detaching take 0.1 ms each; detaching a tracepoint such as tcp:tcp_probe takes 70-90 ms.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping

from memscaler.kernel.bpf import HashMap, link_create

_CGROUP_INET_INGRESS = 0
_COOKIE, _SLOT = struct.Struct("=Q"), struct.Struct("=I")


class DataHook:
    """Whether it is attached, and whom it listens to."""

    def __init__(self, fds: Mapping[str, int]) -> None:
        """fds: as handed over by the loader."""
        self._program, self._cgroup = fds.get("data_program", -1), fds.get("cgroup", -1)
        self._silent = HashMap(fds["silent"], _COOKIE.size, _SLOT.size)
        self._known: dict[int, set[int]] = {}  # slot -> cookies
        self._link = -1

    @property
    def attached(self) -> bool:
        """True while packets are looked at."""
        return self._link >= 0

    def attach(self) -> None:
        """Begin to look at packets. Idempotent. Raise OSError where the kernel has no such hook."""
        if not self.attached:
            self._link = link_create(self._program, self._cgroup, _CGROUP_INET_INGRESS)

    def detach(self) -> None:
        """Packets are no concern of ours any more. Idempotent."""
        if self.attached:
            os.close(self._link)
            self._link = -1

    def listen_to(self, slot: int, cookies: Iterable[int]) -> None:
        """Data on these sockets, and on no others, rings for this slot if it is armed.

        Raise OSError if they are more than the map holds: then nothing may rely on the ring.
        """
        wanted, known = set(cookies), self._known.setdefault(slot, set())
        for cookie in known - wanted:
            self._silent.delete(_COOKIE.pack(cookie))
        known &= wanted
        for cookie in wanted - known:
            self._silent.put(_COOKIE.pack(cookie), _SLOT.pack(slot))
            known.add(cookie)

    def close(self) -> None:
        """Detach; the maps are the attachment's."""
        self.detach()
