"""Keeps the kernel's set of connections equal to what sock_diag says, and answers what is live.

The hooks count as things happen; what they cannot know (connections older than the attachment) or missed (the kernel
skips a tracepoint program while another tracing program runs on that CPU) is healed here. Live connections of a
watch = opened + seeded - closed - healed; all four only grow, and an entry of the set is taken out exactly once,
by whoever deletes it.
"""

from __future__ import annotations

import errno
import ipaddress
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from memscaler.core.errors import ConfigError
from memscaler.core.model import Reading
from memscaler.kernel.attachment import Attachment
from memscaler.kernel.bpf import NOEXIST, HashMap
from memscaler.kernel.counters import MAX_WATCHES, Counters
from memscaler.kernel.netns import Namespace
from memscaler.kernel.sock_diag import LIVE, Row, SockDiag

_WATCH_KEY = struct.Struct("=QII")
_IGNORE_KEY = struct.Struct("=II16s")
_IDENTITY = struct.Struct("=QHHI16s16s")
_CONNECTION = struct.Struct("=QII")
_SLOT = struct.Struct("=I")
_PORT_WORD, _PORT_BITS = struct.Struct("=I"), struct.Struct("=Q")
_ANY_V4, _ANY_V6 = bytes(10) + b"\xff\xff" + bytes(4), bytes(16)


@dataclass(slots=True)
class Watch:
    """One watched port in one namespace, and what user space corrected about it."""

    slot: int
    port: int
    diag: SockDiag
    netns: int  # as in the set: 0 where namespaces are not told apart
    seeded: int = 0
    healed: int = 0
    added: int = 0  # of `seeded`, those that were missed rather than older than the attachment
    uncounted: int = 0  # live at the last reconciliation but without room in the set
    overflow_seen: int = 0
    reconciled: bool = False
    ignores: bool = False

    @property
    def scope(self) -> str:
        """The name of its namespace."""
        return self.diag.namespace.name


@dataclass(frozen=True, slots=True)
class Corrections:
    """What one reconciliation changed."""

    added: int = 0
    removed: int = 0


class Ledger:
    """The watches and their set. Not thread-safe: only the daemon's loop uses it."""

    def __init__(self, attachment: Attachment) -> None:
        fds = attachment.fds
        self.attachment = attachment
        self.counters = Counters(fds["slots"])
        self.watches: dict[int, Watch] = {}
        self.reconciles = 0
        self._ports = HashMap(fds["ports"], _PORT_WORD.size, _PORT_BITS.size)
        self._watches = HashMap(fds["watches"], _WATCH_KEY.size, _SLOT.size)
        self._ignore = HashMap(fds["ignore"], _IGNORE_KEY.size, _SLOT.size)
        self._connections = HashMap(fds["connections"], _IDENTITY.size, _CONNECTION.size)

    def close(self) -> None:
        """Let go of the counters and of the namespaces; the attachment stays."""
        self.counters.close()
        for diag in {id(watch.diag): watch.diag for watch in self.watches.values()}.values():
            diag.close()

    # ---- watches --------------------------------------------------------------------------------------------------

    def watch(self, port: int, diag: SockDiag, ignore: Iterable[str] = ()) -> Watch:
        """Count from now on, then add what is open already. ignore: client prefixes ("10.0.0.0/8", "fd00::/8").

        Raise ConfigError for a port that is watched already, where namespaces are not told apart even in another one.
        """
        netns = diag.namespace.cookie if self.attachment.tells_netns else 0
        slot = len(self.watches)
        if slot == MAX_WATCHES:
            raise ConfigError(f"more than {MAX_WATCHES} watched ports")
        if any((watch.netns, watch.port) == (netns, port) for watch in self.watches.values()):
            raise ConfigError(f"port {port} is watched twice in one network namespace")
        watch = Watch(slot, port, diag, netns)
        for prefix in ignore:
            watch.ignores = True
            bits, address = _prefix(prefix)
            self._ignore.put(_IGNORE_KEY.pack(32 + bits, slot, address), _SLOT.pack(1))
        self.watches[slot] = watch
        self._watches.put(_WATCH_KEY.pack(netns, port, 0), _SLOT.pack(slot))
        self._let_through(port)
        self.reconcile(watch)
        return watch

    def _let_through(self, port: int) -> None:
        word, bit = _PORT_WORD.pack(port // 64), 1 << port % 64
        bits = _PORT_BITS.unpack(self._ports.get(word) or bytes(_PORT_BITS.size))[0]
        self._ports.put(word, _PORT_BITS.pack(bits | bit))

    def has_listener(self, watch: Watch) -> bool:
        """True if a server listens on the port now."""
        return bool(watch.diag.listeners(watch.port))

    # ---- what is live ---------------------------------------------------------------------------------------------

    def reading(self, watch: Watch) -> Reading:
        """Now, by the counters alone; four words of shared memory."""
        opened, closed, last_activity_ns, armed = self.counters.glance(watch.slot)
        live = opened + watch.seeded - closed - watch.healed + watch.uncounted
        return Reading(live, last_activity_ns, armed == 1)

    def readings(self) -> dict[int, Reading]:
        """Of every watch."""
        return {slot: self.reading(watch) for slot, watch in self.watches.items()}

    def overflowed(self, watch: Watch) -> bool:
        """True if opens found the set full since the last reconciliation: the counters are not the truth then."""
        return self.counters.read(watch.slot).overflow != watch.overflow_seen

    def live_in_set(self) -> Mapping[int, int]:
        """Entries of the set per slot (for tests and doubt; the counters say the same)."""
        return dict.fromkeys(self.watches, 0) | {slot: len(known) for slot, known in self._entries().items()}

    # ---- healing --------------------------------------------------------------------------------------------------

    def reconcile(self, watch: Watch) -> Corrections:
        """Make the set equal to sock_diag. Twice where they differ, because the world goes on meanwhile."""
        return self.reconcile_all([watch.slot])[watch.slot]

    def reconcile_all(self, slots: Iterable[int] | None = None) -> dict[int, Corrections]:
        """These watches (None: every one), reading the set once."""
        wanted = [self.watches[slot] for slot in (self.watches if slots is None else slots)]
        if not wanted:
            return {}
        started_ns = time.monotonic_ns()
        known = self._entries()
        return {watch.slot: self._reconcile(watch, known.get(watch.slot, {}), started_ns) for watch in wanted}

    def _reconcile(self, watch: Watch, known: Mapping[bytes, int], started_ns: int) -> Corrections:
        """Compare what the set held (read after `started_ns`) with sockets dumped later.

        An entry without a socket is stale or has just closed; it goes only if the second dump lacks it too and nothing
        renewed it. A socket without an entry is added, and taken out again if the second dump lacks it: its close may
        have come before it was added. What both the kernel's hook and we touch at once errs towards live.
        """
        watch.overflow_seen = self.counters.read(watch.slot).overflow
        rows = self._dump(watch)
        missing, stale = self._counted(watch, rows, known) - known.keys(), known.keys() - rows.keys()
        first, watch.reconciled = not watch.reconciled, True
        added, watch.uncounted = self._add(watch, missing)
        undone = removed = 0
        if added or stale:
            still = self._dump(watch).keys()
            undone = self._remove(watch, [key for key in added if key not in still], started_ns)
            removed = self._remove(watch, [key for key in stale if key not in still], started_ns)
        missed = 0 if first else len(added) - undone
        watch.added += missed
        self.reconciles += 1
        return Corrections(missed, removed)

    def _dump(self, watch: Watch) -> dict[bytes, Row]:
        rows = watch.diag.connections(watch.port)
        return {_IDENTITY.pack(watch.netns, row.local_port, row.peer_port, 0, row.local, row.peer): row for row in rows}

    def _entries(self) -> dict[int, dict[bytes, int]]:
        """Slot -> identity -> since."""
        entries: dict[int, dict[bytes, int]] = {}
        for key, value in self._connections.entries():
            since_ns, slot, _ = _CONNECTION.unpack(value)
            entries.setdefault(slot, {})[key] = since_ns
        return entries

    def _counted(self, watch: Watch, rows: Mapping[bytes, Row], known: Mapping[bytes, int]) -> set[bytes]:
        """The rows that are connections of the server, not of a client whose own port happens to be the watched one.

        sock_diag does not say who opened a connection. A hook that saw it knows. Otherwise a server's socket has a
        listener behind it; if nothing listens, a connection older than the attachment is taken for that of a server
        which has closed its listener. Of a connection whose two ends both have the watched port, one is the server's.
        """
        live = {key: row for key, row in rows.items() if row.state in LIVE and not self._is_ignored(watch, row)}
        unknown = live.keys() - known.keys()
        if not unknown:
            return set(live)
        listening = {row.local for row in watch.diag.listeners(watch.port)}
        believed = not listening and not watch.reconciled
        servers = {key for key, row in live.items() if key in known or believed or _covered(row.local, listening)}
        for key in unknown & servers:
            other = _other_end(watch, live[key])
            if other != key and other in servers:
                servers.discard(key)
        return servers

    def _is_ignored(self, watch: Watch, row: Row) -> bool:
        return watch.ignores and self._ignore.get(_IGNORE_KEY.pack(32 + 128, watch.slot, row.peer)) is not None

    def _add(self, watch: Watch, missing: Iterable[bytes]) -> tuple[list[bytes], int]:
        """(those added, how many did not fit)."""
        added, full = [], 0
        for key in missing:
            try:
                self._connections.put(key, _CONNECTION.pack(0, watch.slot, 0), NOEXIST)
            except OSError as error:
                if error.errno == errno.E2BIG:
                    full += 1
                elif error.errno != errno.EEXIST:  # EEXIST: a hook was faster
                    raise
                continue
            added.append(key)
            watch.seeded += 1
        return added, full

    def _remove(self, watch: Watch, keys: Iterable[bytes], before_ns: int) -> int:
        """Take stale entries out, unless a new connection of the same identity has renewed them. Returns how many.

        A renewal between the look and the deletion would be lost: so look once more at what was deleted.
        """
        removed = [key for key in keys if self._is_older(key, before_ns) and self._connections.delete(key)]
        watch.healed += len(removed)
        if not removed:
            return 0
        rows = self._dump(watch)
        back, _ = self._add(watch, [key for key in removed if key in rows and rows[key].state in LIVE])
        return len(removed) - len(back)

    def _is_older(self, key: bytes, than_ns: int) -> bool:
        value = self._connections.get(key)
        return value is not None and _CONNECTION.unpack(value)[0] < than_ns


def own_namespace() -> SockDiag:
    """The namespace that this process runs in."""
    return SockDiag()


def _covered(local: bytes, listening: set[bytes]) -> bool:
    return bool(listening & {local, _ANY_V6} or (local[:12] == _ANY_V4[:12] and _ANY_V4 in listening))


def _other_end(watch: Watch, row: Row) -> bytes:
    return _IDENTITY.pack(watch.netns, row.peer_port, row.local_port, 0, row.peer, row.local)


def _prefix(text: str) -> tuple[int, bytes]:
    """(bits, 16 bytes) of a v4 or v6 prefix."""
    network = ipaddress.ip_network(text, strict=False)
    if isinstance(network, ipaddress.IPv4Network):
        return 96 + network.prefixlen, _ANY_V4[:12] + network.network_address.packed
    return network.prefixlen, network.network_address.packed


__all__ = ["Corrections", "Ledger", "Namespace", "Watch", "own_namespace"]
