"""Makes the set of connections equal to what sock_diag says: what the hooks cannot know, or missed.

They cannot know connections older than the attachment; and the kernel skips a tracepoint program while another tracing
program runs on that CPU. What was missed is added (`seeded`), what is stale is taken out (`healed`). The world goes on
between the two looks: what the kernel's hook and we touch at once errs towards live.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from memscaler.kernel.bpf import HashMap
from memscaler.kernel.connections import Connections
from memscaler.kernel.counters import Counters
from memscaler.kernel.own_probes import OwnProbes
from memscaler.kernel.records import ANY_V4, ANY_V6, IDENTITY, IGNORE_KEY, V4_PREFIX
from memscaler.kernel.sock_diag import LIVE, Row
from memscaler.kernel.watch import Watch


@dataclass(frozen=True, slots=True)
class Corrections:
    """What one reconciliation changed."""

    added: int = 0
    removed: int = 0


class Healing:
    """Used by the loop's thread. ignore: the clients that are not to be counted, by watch."""

    def __init__(self, connections: Connections, counters: Counters, own: OwnProbes, ignore: HashMap) -> None:
        self._connections, self._counters = connections, counters
        self._own, self._ignore = own, ignore

    def heal(self, watch: Watch, rows: Mapping[bytes, Row], known: Mapping[bytes, int], started_ns: int) -> Corrections:
        """Compare sockets dumped after `started_ns` with what the set held later.

        An entry without a socket is stale or has just closed; it goes only if the second dump lacks it too and nothing
        renewed it. A socket without an entry is added, and taken out again if the second dump lacks it: its close may
        have come before it was added. What both the kernel's hook and we touch at once errs towards live.
        """
        missing, stale = self._counted(watch, rows, known) - known.keys(), known.keys() - rows.keys()
        first, watch.reconciled = not watch.reconciled, True
        added, watch.uncounted = self._add(watch, missing)
        watch.uncounted += watch.indistinct
        undone = removed = 0
        if added or stale:
            still = watch.dump().keys()
            undone = self._remove(watch, [key for key in added if key not in still], started_ns)
            removed = self._remove(watch, [key for key in stale if key not in still], started_ns)
        missed = 0 if first else len(added) - undone
        watch.added += missed
        return Corrections(missed, removed)

    def _counted(self, watch: Watch, rows: Mapping[bytes, Row], known: Mapping[bytes, int]) -> set[bytes]:
        """The rows that are connections of the server, not of a client whose own port happens to be the watched one.

        sock_diag does not say who opened a connection. A hook that saw it knows. Otherwise a server's socket has a
        listener behind it; if nothing listens, a connection older than the attachment is taken for that of a server
        which has closed its listener. Of a connection whose two ends both have the watched port, one is the server's.
        """
        live = {key: row for key, row in rows.items() if row.state in LIVE and not self._is_nobody(watch, key, row)}
        unknown = live.keys() - known.keys()
        if not unknown:
            return set(live)
        listening = {row.local for row in watch.diag.listeners(watch.port)}
        believed = not listening and (not watch.reconciled or self._counters.read(watch.slot).opened > 0)
        servers = {key for key, row in live.items() if key in known or believed or _covered(row.local, listening)}
        for key in unknown & servers:
            other = _other_end(watch, live[key])
            if other != key and other in servers:
                servers.discard(key)
        return servers

    def _is_nobody(self, watch: Watch, key: bytes, row: Row) -> bool:
        """True for a client that is to be ignored, and for ourselves."""
        if key in self._own:
            return True
        ignored = IGNORE_KEY.pack(32 + 128, watch.slot, row.peer)
        return bool(watch.settings.ignore) and self._ignore.get(ignored) is not None

    def _add(self, watch: Watch, missing: Iterable[bytes]) -> tuple[list[bytes], int]:
        """(those added, how many did not fit)."""
        added, full = [], 0
        for key in missing:
            try:
                self._connections.add(key, watch.slot)
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
        removed = []
        for key in keys:
            if self._connections.is_older(key, before_ns) and self._connections.delete(key):
                watch.healed += 1  # one by one: an error must not leave the counters apart from the set
                removed.append(key)
        if not removed:
            return 0
        watch.healed_ns = time.monotonic_ns()  # nobody knows what they were, and when they ended
        rows = watch.dump()
        back, _ = self._add(watch, [key for key in removed if key in rows and rows[key].state in LIVE])
        return len(removed) - len(back)


def _covered(local: bytes, listening: set[bytes]) -> bool:
    return bool(listening & {local, ANY_V6} or (local[:12] == V4_PREFIX and ANY_V4 in listening))


def _other_end(watch: Watch, row: Row) -> bytes:
    return IDENTITY.pack(watch.netns, row.peer_port, row.local_port, 0, row.peer, row.local)
