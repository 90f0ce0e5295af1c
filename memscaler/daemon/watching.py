"""Keeps the ledger's watches equal to what was found: servers and namespaces that appear, move and vanish.

A watch that cannot be counted now (its namespace is not there, or is not permitted) keeps the GPUs that the operator
named for it awake: what nobody hears must not find them parked. It has a slot below zero, of which nothing is read.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import structlog

from memscaler.config.ports import Watch as Spec
from memscaler.config.schema import Settings
from memscaler.core.errors import ConfigError, UsageError
from memscaler.core.model import SECOND_NS, GpuPolicy, Policy
from memscaler.core.watch import HOST, WatchSettings
from memscaler.daemon.adaptive import Adaptive
from memscaler.daemon.discovery import NO_CONTEXT, Found
from memscaler.daemon.server_word import TELLING, Server
from memscaler.daemon.targets import Governed
from memscaler.gpu.inventory import resolve
from memscaler.kernel.ledger import Ledger
from memscaler.kernel.scopes import own_netns
from memscaler.kernel.sock_diag import SockDiag
from memscaler.kernel.watch import Watch

log = structlog.get_logger()

PARKED_LOOK_NS = 60 * SECOND_NS
PARKED_LOOK_LOSSY_NS = SECOND_NS  # where only the tracepoint sees opens

NEW_FOR_S = 60.0

Place = tuple[int, int]  # inode of the network namespace, port


@dataclass(slots=True)
class Watched:
    """A watch that is counted, and the GPUs behind it."""

    watch: Watch
    found: Found
    gpus: tuple[str, ...]

    @property
    def key(self) -> str:
        """How it is named towards the sleeper: "8080" or "8080@container:web"."""
        return self.key_of(self.found)

    @staticmethod
    def key_of(found: Found) -> str:
        """The same of what was found."""
        return f"{found.port}" + f"@{found.scope}" * (found.scope != str(HOST))


class Watching:
    """What is watched now. Used by the loop's thread."""

    def __init__(
        self,
        ledger: Ledger,
        settings: Settings,
        governed: Mapping[str, Governed],
        named: Mapping[Spec, tuple[str, ...]],
        adaptive: Adaptive,
    ) -> None:
        """named: the operator's watches with GPUs -> UUIDs. adaptive: knows the idle times that are "auto"."""
        self._ledger = ledger
        self._adaptive = adaptive
        self._settings = settings
        self._governed = governed
        self._named = named
        adaptive.govern({uuid: each.settings for uuid, each in governed.items()})
        self._watched: dict[Place, Watched] = {}
        self._waiting: dict[Spec, str] = {}  # the operator's watches that are not counted -> why
        self._refused: dict[Place, str] = {}
        self._refused_gpus: dict[Place, tuple[str, ...]] = {}
        self._new_until_s = 0.0
        self._to_ask: Mapping[str, tuple[Server, ...]] = {}
        self._own = own_netns()
        self._guarded: frozenset[str] = frozenset()
        self.restarted: set[str] = set()
        """The GPUs whose servers began to listen anew, until somebody has taken notice."""
        self.expects_more = False
        """True if a server's GPUs are not known yet, or a watch is to end as soon as its connections have."""

    def reconfigure(
        self, settings: Settings, governed: Mapping[str, Governed], named: Mapping[Spec, tuple[str, ...]]
    ) -> None:
        """Others from now on; follow with `apply`."""
        self._settings, self._governed, self._named = settings, governed, named
        self._adaptive.govern({uuid: each.settings for uuid, each in governed.items()})

    # ---- what there is --------------------------------------------------------------------------------------------

    @property
    def governed(self) -> Collection[str]:
        """The UUIDs of the GPUs that watches may drive."""
        return self._governed.keys()

    def of_slot(self, slot: int) -> Watched | None:
        """The watch that counts there."""
        return next((each for each in self._watched.values() if each.watch.slot == slot), None)

    def gpus_of_slot(self, slot: int) -> tuple[str, ...]:
        """UUIDs."""
        watched = self.of_slot(slot)
        return () if watched is None else watched.gpus

    def server_of_slot(self, slot: int) -> str:
        """What was recognised there; "" if nothing."""
        watched = self.of_slot(slot)
        return "" if watched is None else watched.found.server

    @property
    def all(self) -> Collection[Watched]:
        """Every watch that is counted."""
        return self._watched.values()

    def guard(self, keys: frozenset[str]) -> None:
        """These servers sleep, or are about to: they may leave their GPUs, and even be stopped, and are watched on.

        Nor are they asked whether they work: nobody is there, and what hangs must not keep a GPU awake.
        """
        self._guarded = keys
        self._ask_anew()

    def gpu_names(self, words: Iterable[str]) -> dict[str, str]:
        """The UUIDs of the governed GPUs that are meant by these words, of those that mean one."""
        devices = [each.device for each in self._governed.values()]
        found = {f"gpu{device.identity.index}": device.identity.uuid for device in devices}
        for word in words:
            with contextlib.suppress(UsageError):
                found[word] = resolve(word, devices).identity.uuid
        return found

    def watches_of(self, gpu: str) -> tuple[Watched, ...]:
        """The watches that drive a GPU."""
        return tuple(each for each in self._watched.values() if gpu in each.gpus)

    def servers_to_ask(self, gpu: str) -> tuple[Server, ...]:
        """Those behind a GPU that are known to tell whether they work. May be called by any thread."""
        return self._to_ask.get(gpu, ())

    @property
    def discovers(self) -> bool:
        """Whether servers are watched that nobody has named."""
        return self._settings.discover

    @property
    def waiting(self) -> Mapping[Spec, str]:
        """The operator's watches that are not counted, and why."""
        return self._waiting

    def policy(self, quiet_hours: Collection[str] = ()) -> Policy:
        """Which counters matter to which GPU, and for how long. quiet_hours: the GPUs for which they are on."""
        slots: dict[str, set[int]] = {uuid: set() for uuid in self._governed}
        for each in self._watched.values():
            for uuid in each.gpus:
                slots[uuid].add(each.watch.slot)
        unheard = [self._named.get(spec, ()) for spec in self._waiting] + list(self._refused_gpus.values())
        for number, gpus in enumerate(unheard):
            for uuid in gpus:
                slots[uuid].add(-1 - number)
        look_ns = PARKED_LOOK_NS if self._ledger.attachment.sees_every_open else PARKED_LOOK_LOSSY_NS
        mine = {uuid: self._policy_of(uuid, frozenset(slots[uuid]), quiet=uuid in quiet_hours) for uuid in slots}
        return Policy(mine, parked_look_ns=look_ns)

    def _policy_of(self, uuid: str, slots: frozenset[int], *, quiet: bool) -> GpuPolicy:
        mine = self._governed[uuid].settings
        idle_after_s, min_dwell_s = mine.idle_after_s, mine.min_dwell_s
        if not idle_after_s:
            idle_after_s, min_dwell_s = self._adaptive.idle_after_s(uuid), self._adaptive.min_dwell_s(uuid)
        if quiet:
            idle_after_s = min(idle_after_s, mine.quiet_idle_after_s)
        settings = [self._ledger.watches[slot].settings for slot in slots if slot >= 0]
        cooldowns_s = [each.touch_cooldown_s for each in settings if each.touch_s]
        return GpuPolicy(
            slots,
            round(idle_after_s * SECOND_NS),
            round(min_dwell_s * SECOND_NS),
            round(max(cooldowns_s, default=0) * SECOND_NS),
            round(mine.retry_after_s * SECOND_NS),
        )

    # ---- what was found -------------------------------------------------------------------------------------------

    def apply(self, founds: Iterable[Found]) -> bool:
        """Watch what was found and nothing else. True if a GPU's watches are others than before."""
        founds = tuple(founds)
        before = self._drives(), dict(self._waiting), self._refused_gpus
        self._refused_gpus = {}
        wanted = {(found.netns_inode, found.port): found for found in founds if found.attach}
        self._waiting = {found.watch: found.problem for found in founds if found.watch and not found.attach}
        # A server that has closed its listener may still answer; a namespace that has lost its name still has sockets.
        lingering = {place for place in self._watched.keys() - wanted.keys() if self._is_busy(place)}
        asleep = self._asleep(wanted) - lingering
        for place in asleep:
            self._follow_sleeping(self._watched[place], founds)
        for place in self._watched.keys() - wanted.keys() - lingering - asleep:
            self._end(place)
        for place, found in wanted.items():
            watched = self._watched.get(place)
            settings = self._settings.watch_settings(found.watch)
            if watched is not None and watched.watch.settings == settings:
                self._update(watched, found)
                continue
            if watched is not None:
                self._end(place)  # the operator has something else to say about it than was known when it was found
            self._begin(place, found, settings)
        self._say_waiting(before[1])
        unknown = any(found.pids and found.problem == NO_CONTEXT for found in founds)
        missing = wanted.keys() - self._watched.keys()  # refused; perhaps for want of a free slot
        # A server may take another GPU a moment after its first.
        self.expects_more = unknown or bool(lingering) or bool(missing) or time.monotonic() < self._new_until_s
        self._ask_anew()
        return before != (self._drives(), dict(self._waiting), self._refused_gpus)

    def _drives(self) -> dict[Place, tuple[int, tuple[str, ...]]]:
        return {place: (each.watch.slot, each.gpus) for place, each in self._watched.items()}

    def _asleep(self, wanted: Mapping[Place, Found]) -> set[Place]:
        """Those that the sleeper has taken down, unless they have come back in another namespace."""
        back = {Watched.key_of(found) for found in wanted.values()}
        gone = self._watched.keys() - wanted.keys()
        return {place for place in gone if (key := self._watched[place].key) in self._guarded and key not in back}

    def _ask_anew(self) -> None:
        self._to_ask = {uuid: tuple(self._tellers(uuid)) for uuid in self._governed}

    def _is_busy(self, place: Place) -> bool:
        return self._ledger.open_connections(self._watched[place].watch) > 0

    def _begin(self, place: Place, found: Found, settings: WatchSettings) -> None:
        try:
            diag = SockDiag(None if place[0] == self._own else found.netns_path, found.scope, place[0])
        except OSError as error:
            self._refuse(place, found, f"its network namespace cannot be entered: {error.strerror or error}")
            return
        try:
            watch = self._ledger.watch(found.port, diag, settings)
        except (ConfigError, OSError) as error:
            diag.close()
            self._refuse(place, found, str(error))
            return
        self._refused.pop(place, None)
        self._watched[place] = Watched(watch, found, self._gpus(found))
        if found.watch not in self._named:
            self._new_until_s = time.monotonic() + NEW_FOR_S
        self._say("watch.started", self._watched[place])
        if watch.deaf:
            log.warning("watch.without_silence", port=found.port, scope=found.scope, reason=watch.deaf)

    def _end(self, place: Place) -> None:
        self._say("watch.ended", self._watched[place])
        self._ledger.unwatch(self._watched.pop(place).watch.slot)

    def _update(self, watched: Watched, found: Found) -> None:
        old, before = watched.found, watched.gpus
        watched.gpus, watched.found = self._gpus(found), found
        if not watched.gpus and watched.key in self._guarded:
            watched.gpus = before  # checkpointed, or stopped: it comes back to where it was
        if watched.gpus != before:
            self._say("watch.changed", watched)
        if found.addresses and (not old.addresses or (old.pids and found.pids and not {*old.pids} & {*found.pids})):
            self._say("server.started", watched)  # it is about to load its model
            watched.watch.began_ns = time.monotonic_ns()
            self.restarted |= set(watched.gpus)

    def _follow_sleeping(self, sleeping: Watched, founds: Iterable[Found]) -> None:
        """Nobody may be there until it is brought back; and then its GPUs are not known until it has contexts again."""
        now = next((found for found in founds if Watched.key_of(found) == sleeping.key), None)
        pids, addresses = (now.pids, now.addresses) if now else ((), ())
        self._update(sleeping, replace(sleeping.found, pids=pids, addresses=addresses))
        if sleeping.found.watch is not None:
            self._waiting.pop(sleeping.found.watch, None)

    def _refuse(self, place: Place, found: Found, reason: str) -> None:
        self._refused_gpus[place] = self._gpus(found)
        if found.watch is not None:
            self._waiting[found.watch] = reason
        elif self._refused.get(place) != reason:
            self._refused[place] = reason
            log.warning("watch.refused", port=found.port, scope=found.scope, server=found.server, reason=reason)

    def _gpus(self, found: Found) -> tuple[str, ...]:
        wanted = found.gpus if found.watch is None else self._named.get(found.watch, found.gpus)
        return tuple(uuid for uuid in wanted if uuid in self._governed)

    # ---- telling --------------------------------------------------------------------------------------------------

    def _say(self, event: str, watched: Watched) -> None:
        found = watched.found
        told = {"why": found.why} if found.why else {}
        if found.server:
            told["server"] = found.server
        log.info(event, port=found.port, scope=found.scope, gpus=self._names(watched.gpus), **told)

    def _say_waiting(self, before: Mapping[Spec, str]) -> None:
        for spec, reason in self._waiting.items():
            if before.get(spec) != reason:
                gpus = self._names(self._named.get(spec, ()))
                until = "uses one, or its gpus are named" if reason == NO_CONTEXT else "is there"
                hint = f"{'its GPUs stay awake' if gpus else 'nothing is parked for it'} until it {until}"
                log.warning("watch.waiting", watch=str(spec), reason=reason, gpus=gpus, hint=hint)

    def _tellers(self, uuid: str) -> Iterator[Server]:
        for (inode, port), each in self._watched.items():
            found = each.found
            if uuid in each.gpus and found.server in TELLING and found.addresses and each.key not in self._guarded:
                path = None if inode == self._own else found.netns_path
                address = found.addresses[0]
                yield Server(each.watch.slot, port, found.server, address, path, inode, each.watch.netns)

    def _names(self, uuids: Iterable[str]) -> list[str]:
        return [f"gpu{self._governed[uuid].device.identity.index}" for uuid in uuids if uuid in self._governed]
