"""The ledger: which ports are watched, and what is live on each of them, by the kernel's counters and our corrections.

The hooks count as things happen, into one slot a watch and one set of connections (connections.py). What they cannot
know or missed is healed by comparing the set with sock_diag (healing.py), and where silence counts as quiet, the silent
connections are subtracted (silence.py). What each watch adds up to is in watch.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from memscaler.core.errors import ConfigError, KernelUnavailable
from memscaler.core.gaps import Span, Worked
from memscaler.core.model import Reading
from memscaler.core.watch import Quiet, WatchSettings
from memscaler.kernel.attachment import Attachment
from memscaler.kernel.bpf import HashMap
from memscaler.kernel.connections import Connections
from memscaler.kernel.counters import MAX_WATCHES, Counters, MappedCounters, PolledCounters
from memscaler.kernel.data_hook import DataHook
from memscaler.kernel.healing import Corrections, Healing
from memscaler.kernel.own_probes import OwnProbes
from memscaler.kernel.records import IGNORE_KEY, PORT_BITS, PORT_WORD, SLOT, WATCH_KEY, prefix
from memscaler.kernel.silence import Silence
from memscaler.kernel.sock_diag import SockDiag
from memscaler.kernel.traffic import Traffic
from memscaler.kernel.watch import PLAIN, Watch, open_now
from memscaler.kernel.work import Facts, Seen, WorkRings, report

_SECOND_NS = 1_000_000_000
_REUSE_AFTER_NS = _SECOND_NS  # a hook that found the watch just before it ended has long returned by then


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
        self._connections = Connections(fds["connections"])
        self._healing = Healing(self._connections, self.counters, self.own, self._ignore)
        self.silence = Silence(self.watches, self.counters, self._connections, self.data_hook, rings=attachment.rings)

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
        for key in self._connections.by_slot().get(slot, ()):
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
        return Reading(max(0, open_now(watch, slot) - silent), work_ns, slot.armed == 1, activity_ns, unsure_ns)

    def open_connections(self, watch: Watch) -> int:
        """Whether at work or silent."""
        return open_now(watch, self.counters.read(watch.slot))

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
        idle = open_now(watch, slot) == 0
        told: tuple[Span, ...] = ()
        if traffic is not None:
            self.silence.trust(watch, now_ns)
            hearing.check(now_ns, idle=idle)
            told = tuple(traffic.spans)
            traffic.spans.clear()
        doubts = (watch.added, slot.overflow, watch.uncounted and now_ns)
        doubt_ns = max(watch.healed_ns, hearing.missed_ns)
        return Facts(watch.began_ns, idle, hearing.heard_ns, tuple(hearing.floors), told, doubt_ns, doubts)

    def overflowed(self, watch: Watch) -> bool:
        """True if opens found the set full since the last reconciliation: the counters are not the truth then."""
        return watch.uncounted > 0 or self.counters.read(watch.slot).overflow != watch.overflow_seen

    def live_in_set(self) -> Mapping[int, int]:
        """Entries of the set per slot (for tests and doubt; the counters say the same)."""
        return dict.fromkeys(self.watches, 0) | {
            slot: len(known) for slot, known in self._connections.by_slot().items()
        }

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
            dumped[watch.slot] = watch.dump()
        known = self._connections.by_slot()  # after the dumps: what it lacks then, no hook has seen
        corrected = {}
        for watch in wanted:
            entries = known.get(watch.slot, {})
            corrected[watch.slot] = self._healing.heal(watch, dumped[watch.slot], entries, started_ns)
            self.reconciles += 1
        return corrected


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
