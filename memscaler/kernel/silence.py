"""Which of the open connections of a watch are silent, where silence counts as quiet (quiet = "no-traffic").

A look asks the sockets what was said since the last one, and traffic.py judges it; those found silent are subtracted
from the live ones. While a GPU is parked the data hook rings for the first byte on one of them; while none is,
`listen_in` looks again. What nobody could have heard is live.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from memscaler.kernel.connections import Connections
from memscaler.kernel.counters import Counters
from memscaler.kernel.data_hook import DataHook
from memscaler.kernel.sock_diag import LIVE, Row
from memscaler.kernel.watch import Watch, open_now

MOST_ONE_BY_ONE = 64
MOST_LISTENED = 1024  # open connections of one watch; with more of them nobody looks for silence


class Silence:
    """Used by the loop's thread. watches: the ledger's; rings: whether the kernel can ring."""

    def __init__(
        self,
        watches: Mapping[int, Watch],
        counters: Counters,
        connections: Connections,
        data_hook: DataHook,
        *,
        rings: bool,
    ) -> None:
        self._watches, self._counters = watches, counters
        self._connections, self._data_hook = connections, data_hook
        self._rings = rings

    def needs_listening(self) -> list[int]:
        """The watches on whose open connections something may be said without anybody's hearing of it."""
        able = [watch for watch in self._watches.values() if watch.traffic]
        return [watch.slot for watch in able if 0 < self._open_now(watch) <= MOST_LISTENED]

    def listen_in(self, slots: Iterable[int]) -> None:
        """Look what was said on the open connections of these watches since the last look."""
        for watch in self._listened(slots):
            self._look(watch)

    def listen_for_data(self, slots: Iterable[int]) -> None:
        """To be called between the arming of these watches and the answer whether they are quiet.

        Afterwards each byte on a connection that counts as silent has rung or will. Whoever spoke in between is live.
        """
        for watch in self._listened(slots):
            if self._look(watch):
                continue
            cookies = [row.cookie for row in self._rows(watch).values()]
            try:
                self._data_hook.attach()
                self._data_hook.listen_to(watch.slot, cookies)
            except OSError as error:  # they are live then; the next park tries again
                watch.deaf, watch.silent = f"the data hook: {error}", 0
                continue
            watch.hearing.hook_since_ns = watch.hearing.heard_ns if self._rings else 0
            self.check_silence([watch.slot])

    def check_silence(self, slots: Iterable[int]) -> None:
        """Of watches whose GPU is parked: whoever spoke without ringing is live."""
        for watch in self._listened(slots):
            if watch.traffic and watch.traffic.has_spoken(self._rows(watch).values()):
                watch.silent = watch.hearing.hook_since_ns = 0

    def server_tells(self, slot: int, *, tells: bool) -> None:
        """Whether the server is asked before each park if it has answered; else that has to be guessed by waiting."""
        watch = self._watches.get(slot)
        if watch is not None and watch.traffic is not None:
            watch.traffic.server_tells = tells

    def stop_listening(self) -> None:
        """No GPU is parked beside an open connection: packets need not be looked at."""
        for watch in self._watches.values():
            self.trust(watch, time.monotonic_ns())
            watch.hearing.hook_since_ns = 0
        self._data_hook.detach()

    def trust(self, watch: Watch, now_ns: int) -> None:
        """While the data hook listens, nothing is said unheard. now_ns: read before this is asked."""
        hearing = watch.hearing
        if hearing.hook_since_ns and watch.traffic is not None:
            slot = self._counters.read(watch.slot)
            hearing.hook_heard(now_ns, slot.rang_ns if slot.armed != 1 else 0, slot.data_rings)
            watch.traffic.heard_ns = hearing.heard_ns

    def _listened(self, slots: Iterable[int]) -> list[Watch]:
        """Those of the watches whose silence matters now and can be looked at."""
        wanted = [self._watches[slot] for slot in slots if self._watches[slot].traffic is not None]
        for watch in wanted:
            if self._open_now(watch) > MOST_LISTENED:
                watch.silent = 0
        return [watch for watch in wanted if 0 < self._open_now(watch) <= MOST_LISTENED]

    def _look(self, watch: Watch) -> int:
        """Judge what was said; how many connections are at work."""
        if watch.traffic is None:
            return self._open_now(watch)
        now_ns, hearing = time.monotonic_ns(), watch.hearing
        self.trust(watch, now_ns)
        hearing.check(now_ns, idle=False)
        slot = self._counters.read(watch.slot)
        gone = slot.closed + watch.healed  # read before the sockets: what ends in between errs towards live
        rows = self._rows(watch)
        verdict = watch.traffic.look(rows.values(), time.monotonic_ns(), watch.opened, hearing.rang_ns)
        watch.traffic.heard_ns = now_ns
        hearing.looked(now_ns, verdict.open_ns, slot.data_rings)
        watch.silent, watch.gone = len(verdict.silent), gone
        for key, row in rows.items():
            if row.cookie in verdict.marks:
                self._connections.mark(key, verdict.marks[row.cookie], now_ns)
        return verdict.live

    def _rows(self, watch: Watch) -> Mapping[bytes, Row]:
        """The live connections that are in the set for this watch, with what was said on them.

        As long as none came or went they are asked for one by one: a dump walks the kernel's whole table.
        """
        slot = self._counters.read(watch.slot)
        moved = (slot.opened, slot.closed, watch.seeded, watch.healed)
        if watch.moved == moved and len(watch.rows) <= MOST_ONE_BY_ONE:
            again = {key: watch.diag.again(row) for key, row in watch.rows.items()}
            rows = {key: row for key, row in again.items() if row is not None and row.state in LIVE}
            if len(rows) == len(again):
                return rows
        watch.rows, watch.moved = self._dumped_rows(watch), moved
        return watch.rows

    def _dumped_rows(self, watch: Watch) -> dict[bytes, Row]:
        rows, opened = {}, {}
        for key, row in watch.dump(said=True).items():
            since_ns = self._connections.since_ns(key, watch.slot) if row.state in LIVE else None
            if since_ns is not None:
                rows[key], opened[row.cookie] = row, since_ns
        watch.opened = opened
        return rows

    def _open_now(self, watch: Watch) -> int:
        return open_now(watch, self._counters.read(watch.slot))
