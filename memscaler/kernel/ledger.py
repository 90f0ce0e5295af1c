"""Keeps the kernel's set of connections equal to what sock_diag says, and answers what is live.

The hooks count as things happen; what they cannot know (connections older than the attachment) or missed (the kernel
skips a tracepoint program while another tracing program runs on that CPU) is healed here. Live connections of a
watch = opened + seeded - closed - healed; all four only grow, and an entry of the set is taken out exactly once,
by whoever deletes it.

Where silent connections do not count (quiet = "no-traffic"), those that the last look found silent are subtracted.
While a GPU is parked the data hook rings for the first byte on one of them; while none is, `listen_in` looks again.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from memscaler.core.errors import ConfigError, KernelUnavailable
from memscaler.core.gaps import Span, Worked
from memscaler.core.model import Reading
from memscaler.core.watch import Quiet, WatchSettings
from memscaler.kernel.attachment import Attachment
from memscaler.kernel.bpf import EXIST, NOEXIST, HashMap
from memscaler.kernel.counters import MAX_WATCHES, Counters, MappedCounters, PolledCounters, Slot
from memscaler.kernel.data_hook import DataHook
from memscaler.kernel.netns import Namespace
from memscaler.kernel.own_probes import OwnProbes
from memscaler.kernel.records import (
    ANY_V4,
    ANY_V6,
    CONNECTION,
    IDENTITY,
    IGNORE_KEY,
    JUDGED,
    NOT_HEARD,
    OWED,
    PORT_BITS,
    PORT_WORD,
    SLOT,
    V4_PREFIX,
    WATCH_KEY,
    prefix,
)
from memscaler.kernel.sock_diag import LIVE, Row, SockDiag
from memscaler.kernel.traffic import Traffic
from memscaler.kernel.work import Facts, Hearing, Seen, WorkRings, report

PLAIN = WatchSettings(quiet=Quiet.NO_CONNECTIONS, touch_s=0)
MOST_ONE_BY_ONE = 64
MOST_LISTENED = 1024  # open connections of one watch; with more of them nobody looks for silence
_SECOND_NS = 1_000_000_000
_REUSE_AFTER_NS = _SECOND_NS  # a hook that found the watch just before it ended has long returned by then


@dataclass(slots=True)
class Watch:
    """One watched port in one namespace, and what user space corrected about it.

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


@dataclass(frozen=True, slots=True)
class Corrections:
    """What one reconciliation changed."""

    added: int = 0
    removed: int = 0


class Ledger:
    """The watches and their set. Not thread-safe: only the daemon's loop uses it; `own` may be used by any thread."""

    def __init__(self, attachment: Attachment) -> None:
        fds = attachment.fds
        self.attachment = attachment
        self.counters: Counters = MappedCounters(fds["slots"]) if attachment.rings else PolledCounters(fds["slots"])
        self.watches: dict[int, Watch] = {}
        self._work = WorkRings(fds["work"], mapped=attachment.rings)
        self._reported: dict[int, Seen] = {}
        self.own = OwnProbes(fds["connections"])
        self.data_hook = DataHook(fds)
        self.reconciles = 0
        self._freed_ns: dict[int, int] = {}  # slot -> when its watch ended
        self._ports = HashMap(fds["ports"], PORT_WORD.size, PORT_BITS.size)
        self._watches = HashMap(fds["watches"], WATCH_KEY.size, SLOT.size)
        self._ignore = HashMap(fds["ignore"], IGNORE_KEY.size, SLOT.size)
        self._connections = HashMap(fds["connections"], IDENTITY.size, CONNECTION.size)

    def close(self) -> None:
        """Let go of the counters and of the namespaces; the attachment stays."""
        self.data_hook.close()
        self.counters.close()
        self._work.close()
        for diag in {id(watch.diag): watch.diag for watch in self.watches.values()}.values():
            diag.close()

    # ---- watches --------------------------------------------------------------------------------------------------

    def watch(self, port: int, diag: SockDiag, settings: WatchSettings = PLAIN) -> Watch:
        """Count from now on, then add what is open already. The watch owns `diag`, unless others share it.

        Raise ConfigError for a port that is watched already, where namespaces are not told apart even in another one.
        """
        netns = diag.namespace.cookie if self.attachment.tells_netns else 0
        if any((watch.netns, watch.port) == (netns, port) for watch in self.watches.values()):
            raise ConfigError(f"port {port} is watched twice in one network namespace")
        slot = self._free_slot()
        watch = Watch(slot, port, diag, netns, settings, began_ns=time.monotonic_ns())
        if settings.quiet is Quiet.NO_TRAFFIC:
            if self.attachment.hears_data:
                watch.traffic = Traffic(settings)
            else:
                watch.deaf = "the kernel cannot ring for data on open connections"
        self.counters.clear(slot)
        self.counters.set_touch(slot, round(settings.touch_s * _SECOND_NS), settings.touch_bytes)
        self.watches[slot] = watch
        try:
            for key in self._ignore_keys(watch):
                self._ignore.put(key, SLOT.pack(1))
            self._watches.put(WATCH_KEY.pack(netns, port, 0), SLOT.pack(slot))
            self._let_through(port, passes=True)
            self.reconcile(watch)
        except BaseException:
            self._forget(watch)
            raise
        return watch

    def unwatch(self, slot: int) -> None:
        """Count no more. Its `diag` is closed unless another watch uses it."""
        watch = self.watches[slot]
        self._forget(watch)
        if all(other.diag is not watch.diag for other in self.watches.values()):
            watch.diag.close()

    def _forget(self, watch: Watch) -> None:
        slot = watch.slot
        del self.watches[slot]
        self._watches.delete(WATCH_KEY.pack(watch.netns, watch.port, 0))
        if all(other.port != watch.port for other in self.watches.values()):
            self._let_through(watch.port, passes=False)
        for key in self._ignore_keys(watch):
            self._ignore.delete(key)
        self.data_hook.listen_to(slot, ())
        self._purge(slot)
        self._freed_ns[slot] = time.monotonic_ns()

    def _free_slot(self) -> int:
        """One that was never used, else the one that has been free for longest."""
        used = self.watches.keys() | self._freed_ns.keys()
        slot = next((slot for slot in range(MAX_WATCHES) if slot not in used), None)
        if slot is not None:
            return slot
        slot = next(iter(self._freed_ns), None)
        if slot is None or time.monotonic_ns() - self._freed_ns[slot] < _REUSE_AFTER_NS:
            raise ConfigError(f"more than {MAX_WATCHES} watched ports")
        del self._freed_ns[slot]
        self._purge(slot)
        return slot

    def _purge(self, slot: int) -> None:
        """Take out of the set what belongs to a watch that is no more."""
        for key in self._entries().get(slot, ()):
            self._connections.delete(key)

    def _let_through(self, port: int, *, passes: bool) -> None:
        word, bit = PORT_WORD.pack(port // 64), 1 << port % 64
        bits = PORT_BITS.unpack(self._ports.get(word) or bytes(PORT_BITS.size))[0]
        self._ports.put(word, PORT_BITS.pack(bits | bit if passes else bits & ~bit))

    def _ignore_keys(self, watch: Watch) -> list[bytes]:
        prefixes = [prefix(text) for text in watch.settings.ignore]
        return [IGNORE_KEY.pack(32 + bits, watch.slot, address) for bits, address in prefixes]

    # ---- what is live ---------------------------------------------------------------------------------------------

    def reading(self, watch: Watch) -> Reading:
        """Now, by the counters and by what the last look found silent; a few words of shared memory."""
        slot = self.counters.read(watch.slot)
        # Whatever ended since that look is taken for one of the silent ones: the error is always "live".
        silent = max(0, watch.silent - (slot.closed + watch.healed - watch.gone))
        activity_ns = max(slot.last_activity_ns, slot.rang_ns)
        work_ns = max(slot.last_work_ns, watch.healed_ns, watch.began_ns)
        if watch.traffic is not None:
            activity_ns = max(activity_ns, watch.traffic.last_activity_ns)
            work_ns = max(work_ns, watch.traffic.last_work_ns)
        if not watch.settings.touch_s:
            work_ns = max(work_ns, activity_ns)
        unsure_ns = 0 if watch.traffic is None else watch.traffic.last_unsure_ns
        return Reading(max(0, _open(watch, slot) - silent), work_ns, slot.armed == 1, activity_ns, unsure_ns)

    def open_connections(self, watch: Watch) -> int:
        """Whether at work or silent."""
        return _open(watch, self.counters.read(watch.slot))

    def readings(self) -> dict[int, Reading]:
        """Of every watch."""
        return {slot: self.reading(watch) for slot, watch in self.watches.items()}

    def worked(self) -> dict[int, Worked]:
        """Of every watch: what has come to light of its work since this was asked last."""
        before, self._reported = self._reported, {}
        reports = {}
        for slot, watch in self.watches.items():
            now_ns = time.monotonic_ns()
            seen, reports[slot] = report(before.get(slot), self._facts(watch, now_ns), self._work, slot, now_ns)
            self._reported[slot] = seen
        return reports

    def _facts(self, watch: Watch, now_ns: int) -> Facts:
        slot, traffic, hearing = self.counters.read(watch.slot), watch.traffic, watch.hearing
        idle = _open(watch, slot) == 0
        told: tuple[Span, ...] = ()
        if traffic is not None:
            self._trust_silence(watch, now_ns)
            hearing.check(now_ns, idle=idle)
            told = tuple(traffic.spans)
            traffic.spans.clear()
        doubts = (watch.added, slot.overflow, watch.uncounted and now_ns)
        doubt_ns = max(watch.healed_ns, hearing.missed_ns)
        return Facts(watch.began_ns, idle, hearing.heard_ns, tuple(hearing.floors), told, doubt_ns, doubts)

    def overflowed(self, watch: Watch) -> bool:
        """True if opens found the set full since the last reconciliation: the counters are not the truth then."""
        return watch.uncounted > 0 or self.counters.read(watch.slot).overflow != watch.overflow_seen

    # ---- silence --------------------------------------------------------------------------------------------------

    def needs_listening(self) -> list[int]:
        """The watches on whose open connections something may be said without anybody's hearing of it."""
        able = [watch for watch in self.watches.values() if watch.traffic]
        return [watch.slot for watch in able if 0 < self.open_connections(watch) <= MOST_LISTENED]

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
                self.data_hook.attach()
                self.data_hook.listen_to(watch.slot, cookies)
            except OSError as error:  # they are live then; the next park tries again
                watch.deaf, watch.silent = f"the data hook: {error}", 0
                continue
            watch.hearing.hook_since_ns = watch.hearing.heard_ns if self.attachment.rings else 0
            self.check_silence([watch.slot])

    def check_silence(self, slots: Iterable[int]) -> None:
        """Of watches whose GPU is parked: whoever spoke without ringing is live."""
        for watch in self._listened(slots):
            if watch.traffic and watch.traffic.has_spoken(self._rows(watch).values()):
                watch.silent = watch.hearing.hook_since_ns = 0

    def server_tells(self, slot: int, *, tells: bool) -> None:
        """Whether the server is asked before each park if it has answered; else that has to be guessed by waiting."""
        watch = self.watches.get(slot)
        if watch is not None and watch.traffic is not None:
            watch.traffic.server_tells = tells

    def stop_listening(self) -> None:
        """No GPU is parked beside an open connection: packets need not be looked at."""
        for watch in self.watches.values():
            self._trust_silence(watch, time.monotonic_ns())
            watch.hearing.hook_since_ns = 0
        self.data_hook.detach()

    def _trust_silence(self, watch: Watch, now_ns: int) -> None:
        """While the data hook listens, nothing is said unheard. now_ns: read before this is asked."""
        hearing = watch.hearing
        if hearing.hook_since_ns and watch.traffic is not None:
            slot = self.counters.read(watch.slot)
            hearing.hook_heard(now_ns, slot.rang_ns if slot.armed != 1 else 0, slot.data_rings)
            watch.traffic.heard_ns = hearing.heard_ns

    def _listened(self, slots: Iterable[int]) -> list[Watch]:
        """Those of the watches whose silence matters now and can be looked at."""
        wanted = [self.watches[slot] for slot in slots if self.watches[slot].traffic is not None]
        for watch in wanted:
            if self.open_connections(watch) > MOST_LISTENED:
                watch.silent = 0
        return [watch for watch in wanted if 0 < self.open_connections(watch) <= MOST_LISTENED]

    def _look(self, watch: Watch) -> int:
        """Judge what was said; how many connections are at work."""
        if watch.traffic is None:
            return self.open_connections(watch)
        now_ns, hearing = time.monotonic_ns(), watch.hearing
        self._trust_silence(watch, now_ns)
        hearing.check(now_ns, idle=False)
        slot = self.counters.read(watch.slot)
        gone = slot.closed + watch.healed  # read before the sockets: what ends in between errs towards live
        rows = self._rows(watch)
        verdict = watch.traffic.look(rows.values(), time.monotonic_ns(), watch.opened, hearing.rang_ns)
        watch.traffic.heard_ns = now_ns
        hearing.looked(now_ns, verdict.open_ns, slot.data_rings)
        watch.silent, watch.gone = len(verdict.silent), gone
        for key, row in rows.items():
            if row.cookie in verdict.marks:
                self._mark(key, verdict.marks[row.cookie], now_ns)
        return verdict.live

    def _mark(self, key: bytes, judged: tuple[int, int] | None, now_ns: int) -> None:
        """Tell the hook that sees the connection end how much of what was said is judged already."""
        value = self._connections.get(key)
        if value is not None:
            since_ns, slot, *_ = CONNECTION.unpack(value)
            heard = (OWED, now_ns, 0) if judged is None else (JUDGED, *judged)
            try:
                self._connections.put(key, CONNECTION.pack(since_ns, slot, *heard), EXIST)
            except OSError as error:
                if error.errno != errno.ENOENT:  # ended just now
                    raise

    def _rows(self, watch: Watch) -> Mapping[bytes, Row]:
        """The live connections that are in the set for this watch, with what was said on them.

        As long as none came or went they are asked for one by one: a dump walks the kernel's whole table.
        """
        slot = self.counters.read(watch.slot)
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
        for key, row in self._dump(watch, said=True).items():
            value = self._connections.get(key) if row.state in LIVE else None
            if value is not None and CONNECTION.unpack(value)[1] == watch.slot:
                rows[key], opened[row.cookie] = row, CONNECTION.unpack(value)[0]
        watch.opened = opened
        return rows

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
        self.own.forget_old()
        started_ns = time.monotonic_ns()
        dumped = {}
        for watch in wanted:
            watch.overflow_seen = self.counters.read(watch.slot).overflow
            dumped[watch.slot] = self._dump(watch)
        known = self._entries()  # after the dumps: what it lacks then, no hook has seen
        return {
            watch.slot: self._reconcile(watch, dumped[watch.slot], known.get(watch.slot, {}), started_ns)
            for watch in wanted
        }

    def _reconcile(
        self, watch: Watch, rows: dict[bytes, Row], known: Mapping[bytes, int], started_ns: int
    ) -> Corrections:
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
            still = self._dump(watch).keys()
            undone = self._remove(watch, [key for key in added if key not in still], started_ns)
            removed = self._remove(watch, [key for key in stale if key not in still], started_ns)
        missed = 0 if first else len(added) - undone
        watch.added += missed
        self.reconciles += 1
        return Corrections(missed, removed)

    def _dump(self, watch: Watch, *, said: bool = False) -> dict[bytes, Row]:
        rows = watch.diag.connections(watch.port, said=said)
        watch.indistinct = len(rows) - len({(row.local_port, row.peer_port, row.local, row.peer) for row in rows})
        return {IDENTITY.pack(watch.netns, row.local_port, row.peer_port, 0, row.local, row.peer): row for row in rows}

    def _entries(self) -> dict[int, dict[bytes, int]]:
        """Slot -> identity -> since."""
        entries: dict[int, dict[bytes, int]] = {}
        for key, value in self._connections.entries():
            since_ns, slot, *_ = CONNECTION.unpack(value)
            entries.setdefault(slot, {})[key] = since_ns
        return entries

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
        believed = not listening and (not watch.reconciled or self.counters.read(watch.slot).opened > 0)
        servers = {key for key, row in live.items() if key in known or believed or _covered(row.local, listening)}
        for key in unknown & servers:
            other = _other_end(watch, live[key])
            if other != key and other in servers:
                servers.discard(key)
        return servers

    def _is_nobody(self, watch: Watch, key: bytes, row: Row) -> bool:
        """True for a client that is to be ignored, and for ourselves."""
        if key in self.own:
            return True
        ignored = IGNORE_KEY.pack(32 + 128, watch.slot, row.peer)
        return bool(watch.settings.ignore) and self._ignore.get(ignored) is not None

    def _add(self, watch: Watch, missing: Iterable[bytes]) -> tuple[list[bytes], int]:
        """(those added, how many did not fit)."""
        added, full = [], 0
        for key in missing:
            try:
                self._connections.put(key, CONNECTION.pack(0, watch.slot, NOT_HEARD, 0, 0), NOEXIST)
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
            if self._is_older(key, before_ns) and self._connections.delete(key):
                watch.healed += 1  # one by one: an error must not leave the counters apart from the set
                removed.append(key)
        if not removed:
            return 0
        watch.healed_ns = time.monotonic_ns()  # nobody knows what they were, and when they ended
        rows = self._dump(watch)
        back, _ = self._add(watch, [key for key in removed if key in rows and rows[key].state in LIVE])
        return len(removed) - len(back)

    def _is_older(self, key: bytes, than_ns: int) -> bool:
        value = self._connections.get(key)
        return value is not None and CONNECTION.unpack(value)[0] < than_ns


def own_namespace() -> SockDiag:
    """The namespace that this process runs in."""
    return SockDiag()


def require_sock_diag() -> None:
    """Raise KernelUnavailable if the kernel cannot be asked for sockets at all."""
    try:
        diag = own_namespace()
        try:
            diag.listeners()
        finally:
            diag.close()
    except OSError as error:
        raise KernelUnavailable(f"sock_diag does not answer: {error}", hint="modprobe tcp_diag") from error


def _open(watch: Watch, slot: Slot) -> int:
    return slot.opened + watch.seeded - slot.closed - watch.healed + watch.uncounted


def _covered(local: bytes, listening: set[bytes]) -> bool:
    return bool(listening & {local, ANY_V6} or (local[:12] == V4_PREFIX and ANY_V4 in listening))


def _other_end(watch: Watch, row: Row) -> bytes:
    return IDENTITY.pack(watch.netns, row.peer_port, row.local_port, 0, row.peer, row.local)


__all__ = ["Corrections", "Ledger", "Namespace", "Watch", "own_namespace"]
