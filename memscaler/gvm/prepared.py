"""Who is meant, and where his knobs are: found while it is quiet, so that nobody is looked for when a client comes.

Slow: it looks at every process, and asks the driver who is on which GPU. For a thread of its own, one at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from memscaler.child.link import ServerSeen
from memscaler.config.gpuctl import GpuctlRule, Gvm
from memscaler.core.errors import MemscalerError
from memscaler.core.gpuctl import GvmReading
from memscaler.core.knobs import GVM_ONLY
from memscaler.gvm import boards
from memscaler.gvm.clients import Clients
from memscaler.gvm.processes import about, matching, untouchable
from memscaler.gvm.turning import Here, placed
from memscaler.gvm.wanted import Aim, RuleAt
from memscaler.kernel.processes import Processes

PATIENCE_S = 10.0  # with the driver
KNOWN_S = 60.0  # so long what the driver said of a process that is on a GPU is believed


@dataclass(frozen=True, slots=True)
class Picture:
    """What is to be looked for. ours: processes of memscaler's that are known."""

    rules: tuple[GpuctlRule, ...] = ()
    servers: tuple[ServerSeen, ...] = ()
    gvm: Gvm = field(default_factory=Gvm)
    gpu_names: Mapping[str, str] = field(default_factory=dict)
    ours: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was found. why_not: of a rule at a watch, why there is not more, a sentence. problem: nobody could be found.

    gvm_why_not: "" if GVM is there.
    """

    aims: tuple[Aim, ...] = ()
    why_not: Mapping[RuleAt, str] = field(default_factory=dict)
    problem: str = ""
    gvm_why_not: str = ""
    readings: tuple[GvmReading, ...] = ()
    read_unix_s: float = 0.0


def applies(rule: GpuctlRule, server: ServerSeen, gpu_names: Mapping[str, str]) -> bool:
    """Whether the rule means this watch: by its name, its port, its key, or a GPU of its. No words mean all."""
    known = {server.name, server.key, str(server.port), *server.gpus} - {""}
    return not rule.watches or any(word in known or gpu_names.get(word) in server.gpus for word in rule.watches)


class Looking:
    """Remembers what the driver said last: it is asked in a session of its own each time."""

    def __init__(self) -> None:
        self._on: Mapping[str, frozenset[int]] = {}
        self._asked_s = 0.0
        self._clients = Clients()

    def look(self, picture: Picture) -> Prepared:
        """Everything. `problem` is set if nobody can be told apart now: then what was found before is to be kept."""
        here = Here.look(picture.gvm)
        why_not = here.tree.why_not()
        if not picture.rules:
            readings = () if why_not else here.tree.readings()
            return Prepared(gvm_why_not=why_not, readings=readings, read_unix_s=time.time())
        processes = Processes.look(picture.gvm.proc)
        try:
            found = _Search(picture, here, processes, self._who, self._clients).run()
        except MemscalerError as error:
            return Prepared(problem=f"nobody tells who is on the GPUs: {error}", gvm_why_not=why_not)
        readings = () if why_not else here.tree.readings()
        return Prepared(found.aims, found.why_not, "", why_not, readings, time.time())

    def _who(self, meant: Collection[int]) -> Mapping[str, frozenset[int]]:
        """GPU -> who is on it, by the driver. Not asked again if all who are meant were there. Raise GpuError."""
        known = frozenset().union(*self._on.values())
        if not meant:
            return {}
        if not known.issuperset(meant) or time.monotonic() > self._asked_s + KNOWN_S:
            told = boards.look(PATIENCE_S)
            self._on = {uuid: told.on([uuid]) for uuid in told.boards}
            self._asked_s = time.monotonic()
        return self._on


_Who = Callable[[Collection[int]], Mapping[str, frozenset[int]]]


class _Search:
    """One look."""

    def __init__(self, picture: Picture, here: Here, processes: Processes, who: _Who, clients: Clients) -> None:
        self._picture, self._here, self._processes, self._who = picture, here, processes, who
        self._clients = clients
        self.aims: tuple[Aim, ...] = ()
        self.why_not: dict[RuleAt, str] = {}

    def run(self) -> _Search:
        picture = self._picture
        pairs = [
            (rule, server)
            for rule in picture.rules
            for server in picture.servers
            if applies(rule, server, picture.gpu_names)
        ]
        meant = {(rule.name, server.key): self._meant(rule, server) for rule, server in pairs}
        everybody = frozenset().union(*meant.values()) if meant else frozenset[int]()
        entries = self._here.tree.entries(everybody) if everybody else ()
        by_driver = self._who(everybody - {entry.pid for entry in entries if entry.uuid})
        aims: list[Aim] = []
        for rule, server in pairs:
            on = frozenset().union(*(by_driver.get(uuid, frozenset()) for uuid in server.gpus))
            on |= {entry.pid for entry in entries if entry.uuid in server.gpus}
            aims += self._aims(rule, server, meant[rule.name, server.key], on)
        self.aims = tuple(aims)
        return self

    def _meant(self, rule: GpuctlRule, server: ServerSeen) -> frozenset[int]:
        """All that the rule names and may touch, on whatever GPU."""
        processes, ours = self._processes, self._picture.ours
        listening = frozenset(pid for each in self._picture.servers for pid in each.pids)
        others = [match for match in rule.processes if match.kind != "server"]
        found: frozenset[int] = frozenset()
        if others:
            left_alone = untouchable(processes, listeners=listening, ours=ours)
            found = frozenset(matching(others, processes)) - left_alone.keys()
        if len(others) < len(rule.processes):
            mine = frozenset(server.pids)
            left_alone = untouchable(processes, listeners=listening - mine, ours=ours)
            theirs = [match for match in rule.processes if match.kind == "server"]
            found |= frozenset(matching(theirs, processes, servers=mine)) - left_alone.keys()
        return found

    def _along(
        self, rule: GpuctlRule, server: ServerSeen, meant: frozenset[int], pids: frozenset[int]
    ) -> frozenset[int]:
        """Who may be frozen with them by their cgroup: what they have started, and all if the rule names the place.

        Else a user's shell, tmux and sshd would stand still with his job: they are his, and in the same session.
        """
        places = [match for match in rule.processes if match.kind in ("unit", "cgroup", "container", "server")]
        named = (
            frozenset(matching(places, self._processes, among=meant, servers=server.pids)) if places else frozenset()
        )
        return meant & (named | pids | self._processes.descendants(pids))

    def _aims(self, rule: GpuctlRule, server: ServerSeen, meant: frozenset[int], on: frozenset[int]) -> list[Aim]:
        at, pids = (rule.name, server.key), meant & on
        if not pids:
            gpus = "its GPUs are not known" if not server.gpus else "none of the processes that it names is on its GPUs"
            gone = self._here.tree.why_not() if rule.how == "gvm" or rule.values().keys() & GVM_ONLY else ""
            self.why_not[at] = f"{server.name or server.key}: {gpus}" + (f"; it needs GVM, and {gone}" if gone else "")
            return []
        along = self._along(rule, server, meant, pids)
        aims, whys = list[Aim](), list[str]()
        if rule.when == "busy":
            clients = self._clients.of(server, along, self._processes)
            pids, along = pids - clients, along - clients
            whys += [
                f"process {pid} ({self._processes.comm(pid)}) is a client of port {server.port} itself, and goes on"
                for pid in sorted(clients)
            ]
        for knob, value in rule.values().items():
            found = placed(knob, pids, self._here, how=rule.how, uuids=server.gpus, may=along.__contains__)
            for place in found.places:
                subject = about(place.pid, self._processes)
                if subject is not None and subject.started == place.started:
                    aims.append(Aim(rule.name, server.key, subject, place, value))
            needs = " needs GVM" if knob in GVM_ONLY else ""
            whys += [f"{knob} of process {pid}{needs}: {why}" for pid, why in sorted(found.refused.items())]
        if whys:
            more = f" (and {len(whys) - 1} more)" if len(whys) > 1 else ""
            self.why_not[at] = whys[0] + more
        return aims


def pending(gvm: Gvm, uuid: str) -> str:
    """Why a GPU must not be parked: kernels that wait for it, of a process that is not frozen; "" if there are none."""
    tree = Here.look(gvm).tree
    for reading in tree.readings():
        if reading.uuid in (uuid, "") and reading.kernels_pending and not reading.compute_freeze:
            where = (
                "" if reading.uuid else f" on GVM's GPU {reading.number}, which may be this one: set gpu_map in [gvm]"
            )
            return f"{reading.kernels_pending} kernels of process {reading.pid} are pending{where}"
    return ""
