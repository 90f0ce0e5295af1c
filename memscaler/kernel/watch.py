"""One watched port in one namespace: its words in the kernel, and what user space corrected about them.

Live connections of a watch = opened + seeded - closed - healed; all four only grow. The hooks count `opened` and
`closed` in the watch's slot; `seeded` and `healed` are ours (healing.py), and so is who of them is silent (silence.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from memscaler.core.watch import Quiet, WatchSettings
from memscaler.kernel.counters import Slot
from memscaler.kernel.records import IDENTITY
from memscaler.kernel.sock_diag import Row, SockDiag
from memscaler.kernel.traffic import Traffic
from memscaler.kernel.work import Hearing

PLAIN = WatchSettings(quiet=Quiet.NO_CONNECTIONS, touch_s=0)


@dataclass(slots=True)
class Watch:
    """What is known of it.

    traffic: None where open connections count even if they are silent. deaf: why that is so against the settings.
    """

    slot: int
    port: int
    diag: SockDiag
    netns: int  # as in the set: 0 where namespaces are not told apart
    settings: WatchSettings = PLAIN
    traffic: Traffic | None = None
    deaf: str = ""
    began_ns: int = 0  # the watch, or the server that listens there now
    seeded: int = 0
    healed: int = 0
    healed_ns: int = 0
    added: int = 0  # of `seeded`, those that were missed rather than older than the attachment
    uncounted: int = 0  # live at the last reconciliation but without room in the set
    indistinct: int = 0  # sockets whose identity another one has: two links with the same link-local addresses
    overflow_seen: int = 0
    silent: int = 0  # open connections that were found silent when `gone` had ended
    gone: int = 0
    rows: Mapping[bytes, Row] = field(default_factory=dict)  # the live connections at the last dump,
    opened: Mapping[int, int] = field(default_factory=dict)  # when each began, by cookie,
    moved: tuple[int, ...] = ()  # and what the counters said then
    reconciled: bool = False
    hearing: Hearing = field(default_factory=Hearing)

    @property
    def scope(self) -> str:
        """The name of its namespace."""
        return self.diag.namespace.name

    def dump(self, *, said: bool = False) -> dict[bytes, Row]:
        """Its sockets as the kernel lists them now, by their identity in the set. said: with what was said on them."""
        rows = self.diag.connections(self.port, said=said)
        self.indistinct = len(rows) - len({(row.local_port, row.peer_port, row.local, row.peer) for row in rows})
        return {IDENTITY.pack(self.netns, row.local_port, row.peer_port, 0, row.local, row.peer): row for row in rows}


def open_now(watch: Watch, slot: Slot) -> int:
    """The open connections, whether at work or silent. slot: what the counters say."""
    return slot.opened + watch.seeded - slot.closed - watch.healed + watch.uncounted
