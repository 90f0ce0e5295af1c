"""The third hook: rings for the first byte on a connection that was open and silent when its GPU parked.

It filters packets at the root of cgroup v2, which the kernel never skips, unlike a tracepoint. It lets everything pass,
and is attached only while it is needed, because every socket of the machine pays for it (bench/bpf_cost.py). Attaching
and detaching take 0.1 ms each; detaching a tracepoint such as tcp:tcp_probe takes 70-90 ms.

Both directions: what the client says, and what the server sends. An answer that pauses may look like one that is over;
its next token wakes the GPU.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping

from memscaler.kernel.bpf import HashMap, is_attached, link_create

_CGROUP_INET_INGRESS, _CGROUP_INET_EGRESS = 0, 1
_COOKIE, _SLOT = struct.Struct("=Q"), struct.Struct("=I")


class DataHook:
    """Whether it is attached, and whom it listens to."""

    def __init__(self, fds: Mapping[str, int]) -> None:
        """fds: as handed over by the loader."""
        self._programs = {
            _CGROUP_INET_INGRESS: fds.get("data_program", -1),
            _CGROUP_INET_EGRESS: fds.get("sent_program", -1),
        }
        self._cgroup = fds.get("cgroup", -1)
        self._silent = HashMap(fds["silent"], _COOKIE.size, _SLOT.size)
        self._known: dict[int, set[int]] = {}  # slot -> cookies
        self._links: list[int] = []

    @property
    def attached(self) -> bool:
        """True while packets are looked at."""
        return bool(self._links)

    def mend(self) -> str | None:
        """Attach it again if somebody has detached it. None: nobody has.

        The answer is why that failed, "" if it did not.
        """
        if all(map(is_attached, self._links)):
            return None
        self.detach()
        try:
            self.attach()
        except OSError as error:
            return str(error)
        return ""

    def attach(self) -> None:
        """Begin to look at packets. Idempotent. Raise OSError where the kernel has no such hook."""
        if not self.attached:
            try:
                for attach_type, program in self._programs.items():
                    self._links.append(link_create(program, self._cgroup, attach_type))
            except OSError:
                self.detach()
                raise

    def detach(self) -> None:
        """Packets are no concern of ours any more. Idempotent."""
        while self._links:
            os.close(self._links.pop())

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
