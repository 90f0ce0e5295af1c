"""What there is to watch: the operator's watches as they are now, and the servers that nobody has named.

`look` reads /proc and asks the kernel for listening sockets; it changes nothing and remembers nothing.

- A watch with GPUs is to be attached as soon as its network namespace exists, whether anybody listens there or not;
  but not where the port is known to lead into a container past us: what nobody hears must not find its GPU parked.
- A watch without GPUs drives those on which the processes that listen, or their descendants, have contexts; and until
  then those that were shown to them by UUID (CUDA_VISIBLE_DEVICES), as our own servers are started.
- A discovered server drives those on which it has contexts itself, or descendants that are not found as servers. So a
  router or a proxy (llama-swap, Ollama's front end) is left alone and its children are watched; but vLLM's engines,
  which have the contexts and no clients, count for their API server.

Contexts come as pids from NVML, which gives those of the pid namespace that NVML is called in. They match /proc where
memscaler runs on the host, or in a container with the host's pid namespace (`--pid=host`); nowhere else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from memscaler.config.ports import Watch
from memscaler.core.watch import HOST, Scope
from memscaler.daemon.servers import Forwarder, Server, forwarder_of, option, server_of
from memscaler.kernel.containers import HERE, System, publisher_of
from memscaler.kernel.processes import Processes
from memscaler.kernel.scopes import Place, Unresolved, own_netns, path_of, resolve, whereabouts
from memscaler.kernel.sock_diag import Row, SockDiag

NOBODY = "no process listens there yet"
UNSEEN = "which server is behind it cannot be told: systemd or init holds the port, or memscaler is not root"
NO_CONTEXT = "its server uses no GPU so far (no CUDA context)"

# They hold a socket until the service is there, and ever after; everything is a descendant of theirs.
_MANAGERS = frozenset({"systemd", "init"})

_ACCEPTS = 0x10000  # __SO_ACCEPTCON in /proc/net/unix


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A port, and what is known of it now. What it is: (netns_inode, port); the paths may change between two looks.

    attach: count the connections there. Else `problem` says why not; a problem alone (nobody listens yet) is no reason.
    port: 0 for a server that listens on no TCP port. scope: a label; no two have the same with the same port.
    netns_path: opens the namespace (check its inode: it may be /proc/PID/ns/net); None: it is not there now.
    gpus: UUIDs; none where the operator has named them: see `watch`, which is None for what was discovered.
    server: "llama.cpp", "llama-swap", "ollama", "vllm", "sglang", or "" for others. pids: who holds the sockets.
    """

    port: int
    scope: str
    watch: Watch | None = None
    netns_path: str | None = None
    netns_inode: int = 0
    gpus: tuple[str, ...] = ()
    server: str = ""
    pids: tuple[int, ...] = ()
    addresses: tuple[str, ...] = ()
    why: str = ""
    problem: str = ""
    attach: bool = False


def look(
    watches: Sequence[Watch],
    *,
    discover: bool,
    gpu_processes: Mapping[str, frozenset[int]],
    name_gpu: Callable[[str], str] = str,
    processes: Processes | None = None,
    system: System = HERE,
    thorough: bool = False,
) -> tuple[Found, ...]:
    """The operator's watches in their order, one for each namespace of their scope; then what was discovered.

    gpu_processes: UUID -> pids with a context. thorough: find out who listens also where that changes nothing.
    Raise OSError if there is no /proc; what is not permitted is a problem of the watch.
    """
    sight = _Sight(processes or Processes.look(), gpu_processes, name_gpu, system, thorough=thorough)
    named = _each_once(found for watch in watches for found in _named(watch, sight))
    taken = {(each.netns_inode, each.port) for each in named if each.netns_path is not None and _is_answer(each)}
    others = [each for each in _discovered(sight) if (each.netns_inode, each.port) not in taken] if discover else []
    return tuple(_labelled([*named, *others]))


def _is_answer(found: Found) -> bool:
    """A watch of a unit that does not listen says nothing about others that listen in the same namespace."""
    return found.attach or bool(found.pids) or found.scope == str(HOST) or found.scope.startswith("netns:")


def _each_once(named: Iterable[Found]) -> list[Found]:
    """Two watches may turn out to be the same port of the same namespace: the first one has it."""
    first: dict[tuple[int, int], Found] = {}
    kept = []
    for found in named:
        other = first.setdefault((found.netns_inode, found.port), found) if found.attach else found
        if other is not found:
            problem = f"the same port of the same namespace is watched as {other.watch} already"
            kept.append(dataclasses.replace(found, attach=False, problem=problem))
        else:
            kept.append(found)
    return kept


def _labelled(founds: Iterable[Found]) -> Iterator[Found]:
    seen: set[tuple[str, int]] = set()
    for found in founds:
        unique = found
        if (found.scope, found.port) in seen and found.port:
            unique = dataclasses.replace(found, scope=f"{found.scope} net:[{found.netns_inode}]")
        seen.add((found.scope, found.port))
        yield unique


# ---- seeing ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Sight:
    """What this look has seen so far."""

    processes: Processes
    gpu_processes: Mapping[str, frozenset[int]]
    name_gpu: Callable[[str], str]
    system: System
    thorough: bool
    servers: dict[int, Server] = field(init=False, default_factory=dict)
    forwarders: dict[int, Forwarder] = field(init=False, default_factory=dict)
    own: int = field(init=False)
    _listeners: dict[int, list[Row]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.own = own_netns()
        for pid in self.processes.pids:
            argv = self.processes.argv(pid)
            if server := server_of(argv, self.processes.comm(pid)):
                self.servers[pid] = server
            elif forwarder := forwarder_of(argv):
                self.forwarders[pid] = forwarder

    def listeners(self, path: str, inode: int) -> list[Row]:
        """All listening TCP sockets of a namespace. Raise OSError."""
        if inode not in self._listeners:
            diag = SockDiag(None if inode == self.own else path, inode=inode)
            try:
                self._listeners[inode] = diag.listeners()
            finally:
                diag.close()
        return self._listeners[inode]

    def owners(self, rows: Sequence[Row], place: Place, *, all_of_them: bool) -> frozenset[int]:
        """Who holds these sockets: looked for where it is likely first, among everybody only if that matters."""
        inodes = {row.inode for row in rows}
        if place.pids or not inodes:
            return self._owners(inodes, place.pids)
        with_context = frozenset().union(*self.gpu_processes.values()).intersection(self.processes.pids)
        likely = {*self.servers, *self.forwarders, *with_context, *self.processes.ancestors(with_context)}
        found = self._owners(inodes, likely)
        held = frozenset().union(*map(self.processes.sockets, found))
        return found | self._owners(inodes - held, self.processes.pids) if all_of_them else found

    def _owners(self, inodes: set[int], pids: Iterable[int]) -> frozenset[int]:
        if not inodes:
            return frozenset()
        able = [pid for pid in pids if pid != 1 and self.processes.comm(pid) not in _MANAGERS]
        return frozenset().union(*self.processes.owners(inodes, able).values())

    def gpus(self, pids: frozenset[int]) -> tuple[str, ...]:
        return tuple(uuid for uuid, there in self.gpu_processes.items() if there & pids)

    def shown(self, pids: Iterable[int]) -> tuple[str, ...]:
        """The GPUs that these were started to use, told by whole UUIDs."""
        told = {each for pid in pids for each in self.processes.variable(pid, "CUDA_VISIBLE_DEVICES").split(",")}
        return tuple(uuid for uuid in self.gpu_processes if uuid in told)

    def chief(self, pids: Iterable[int]) -> int:
        """The one that the others come from."""
        mine = frozenset(pids)
        return min(mine, key=lambda pid: (self.processes.parent(pid) in mine, pid not in self.servers, pid))

    def called(self, pid: int) -> str:
        """For example "llama-server (pid 812)"."""
        known = self.servers.get(pid) or self.forwarders.get(pid)
        name = known.program if known else self.processes.comm(pid)
        return f"{''.join(each if each.isprintable() else '?' for each in name)} (pid {pid})"


def _addresses(rows: Iterable[Row]) -> tuple[str, ...]:
    found = (ipaddress.IPv6Address(row.local) for row in rows)
    return tuple(sorted({str(address.ipv4_mapped or address) for address in found}))


def _where(scope: Scope) -> str:
    words = {
        "": "",
        "netns": "network namespace ",
        "unit": "unit ",
        "container": "container ",
        "pid": "the network namespace of process ",
    }
    return "on this host" if scope == HOST else f"in {words[scope.kind]}{scope.name}"


# ---- what the operator has named ------------------------------------------------------------------------------------


def _named(watch: Watch, sight: _Sight) -> list[Found]:
    """One per namespace of the scope: those where the scope listens on the port, or all if it listens in none."""
    try:
        places = resolve(watch.scope, sight.processes, sight.system)
    except Unresolved as error:
        return [Found(port=watch.port, scope=str(watch.scope), watch=watch, problem=str(error))]
    founds = [_at(place, watch, sight) for place in places]
    return [found for found in founds if found.addresses] or founds


def _at(place: Place, watch: Watch, sight: _Sight) -> Found:
    found = Found(
        port=watch.port, scope=place.name, watch=watch, netns_path=place.path, netns_inode=place.inode, attach=True
    )
    try:
        rows = [row for row in sight.listeners(place.path, place.inode) if row.local_port == watch.port]
    except OSError as error:
        problem = f"its network namespace cannot be entered: {error.strerror or error}"
        return dataclasses.replace(found, attach=False, problem=problem)
    owners = sight.owners(rows, place, all_of_them=sight.thorough or not watch.gpus)
    if place.pids and not owners:
        rows = []
    contexts = sight.gpus(owners | sight.processes.descendants(owners))
    gpus = watch.gpus or contexts or sight.shown(owners)
    problem = elsewhere = _elsewhere(watch, rows, owners, sight)
    if not elsewhere and not rows:
        problem = NOBODY
    elif not elsewhere and not gpus:
        problem = NO_CONTEXT if owners else UNSEEN
    chief = sight.chief(owners) if owners else 0
    return dataclasses.replace(
        found,
        gpus=() if watch.gpus else gpus,
        server=sight.servers[chief].kind if chief in sight.servers else "",
        pids=tuple(sorted(owners)),
        addresses=_addresses(rows),
        why=_why(chief, owners, watch.scope, contexts, sight) if owners else "",
        problem=problem,
        attach=not elsewhere and bool(gpus),
    )


def _elsewhere(watch: Watch, rows: Sequence[Row], owners: frozenset[int], sight: _Sight) -> str:
    """Where the server's connections are, if they are not on this port but in a container behind it; else "".

    A helper that passes all of them on is as good as the server, but does not tell on which GPU that is.
    """
    helper = next((pid for pid in sorted(owners) if pid in sight.forwarders), None)
    if watch.scope != HOST or (rows and helper is None):
        return ""
    if helper is not None and watch.gpus and not sight.forwarders[helper].bypassed:
        return ""
    name, inner = publisher_of(watch.port, sight.system) or ("", 0)
    if helper is None:
        instead = f"watch {inner}@container:{name} instead"
        return f"Docker publishes this port for container {name}: {instead}" if name else ""
    stated = option(sight.processes.argv(helper), "-container-port")  # docker-proxy says it
    inner = inner or (int(stated) if re.fullmatch("[0-9]{1,5}", stated) else watch.port)
    instead = f"watch {inner}@container:{name or 'NAME'} instead"
    return f"{sight.called(helper)} publishes this port for a container: {instead}"


def _why(pid: int, owners: frozenset[int], scope: Scope, contexts: Sequence[str], sight: _Sight) -> str:
    """For example "llama-server (pid 812) listens in container web; its children have contexts on gpu0"."""
    listens = f"{sight.called(pid)} listens {_where(scope)}"
    if not contexts:
        return listens
    itself = any(sight.gpu_processes[uuid] & owners for uuid in contexts)
    below = any(sight.gpu_processes[uuid] - owners & sight.processes.descendants(owners) for uuid in contexts)
    who = "it and its children have contexts" if itself and below else "it has a context"
    return f"{listens}; {who if itself else 'its children have contexts'} on {', '.join(map(sight.name_gpu, contexts))}"


# ---- what nobody has named ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Port:
    """A port on which known servers listen. owners: those servers."""

    inode: int
    number: int
    rows: list[Row] = field(default_factory=list)
    owners: set[int] = field(default_factory=set)


def _discovered(sight: _Sight) -> Iterator[Found]:
    ports = _ports(sight)
    serving = frozenset().union(*(port.owners for port in ports))
    for port in ports:
        yield _discovery(port, serving, sight)
    yield from _deaf(sight, serving)


def _ports(sight: _Sight) -> list[_Port]:
    """Every TCP port of every server, in whatever namespace, but those that it keeps for its own workers."""
    processes = sight.processes
    found: dict[tuple[int, int], _Port] = {}
    for inode in sorted({inode for pid in sight.servers if (inode := processes.netns(pid))}):
        rows = _rows_of(inode, sight)
        for socket, owners in processes.owners({row.inode for row in rows}, sight.servers).items():
            for row in (row for row in rows if row.inode == socket):
                port = found.setdefault((inode, row.local_port), _Port(inode, row.local_port))
                port.rows.append(row)
                port.owners |= owners
    return [port for _, port in sorted(found.items()) if not _is_internal(port, found.values(), sight)]


def _rows_of(inode: int, sight: _Sight) -> list[Row]:
    """The listeners of a namespace by way of any server in it that is still there."""
    for pid in sight.servers:
        if sight.processes.netns(pid) == inode:
            with contextlib.suppress(OSError):
                return sight.listeners(path_of(pid, inode, sight.processes), inode)
    return []


def _is_internal(port: _Port, ports: Iterable[_Port], sight: _Sight) -> bool:
    """True if the clients' port is another one: vLLM and SGLang listen for their workers too, which stay connected."""
    others = [each for each in ports if each.inode == port.inode and each is not port]
    return all(
        sight.servers[pid].port is not None
        and sight.servers[pid].port != port.number
        and any(sight.servers[pid].port == each.number and pid in each.owners for each in others)
        for pid in port.owners
    )


def _discovery(port: _Port, serving: frozenset[int], sight: _Sight) -> Found:
    owners = frozenset(port.owners)
    everybody = sight.processes.descendants(owners)
    chief = sight.chief(owners)
    contexts = sight.gpus(owners | sight.processes.descendants(owners, without=serving - owners))
    scope = whereabouts(chief, sight.processes, sight.system)
    problem = ""
    if not contexts:
        problem = "it has no CUDA context: its children are watched instead" if everybody & serving else NO_CONTEXT
    return Found(
        port=port.number,
        scope=str(scope),
        netns_path=path_of(chief, port.inode, sight.processes),
        netns_inode=port.inode,
        gpus=contexts,
        server=sight.servers[chief].kind,
        pids=tuple(sorted(owners)),
        addresses=_addresses(port.rows),
        why=_why(chief, owners, scope, contexts, sight),
        problem=problem,
        attach=bool(contexts),
    )


def _deaf(sight: _Sight, serving: frozenset[int]) -> Iterator[Found]:
    """llama-server can listen on a Unix socket instead (--host ending in .sock), which nothing here can watch."""
    for pid, server in sight.servers.items():
        path = _unix_socket(pid, sight.processes) if server.kind == "llama.cpp" and pid not in serving else ""
        if path:
            scope = whereabouts(pid, sight.processes, sight.system)
            why = f"{sight.called(pid)} listens on the Unix socket {path}"
            problem = "a Unix socket cannot be watched: give the server a TCP port"
            yield Found(port=0, scope=str(scope), server=server.kind, pids=(pid,), why=why, problem=problem)


def _unix_socket(pid: int, processes: Processes) -> str:
    """The path of a Unix socket on which this process listens."""
    sockets = processes.sockets(pid)
    with contextlib.suppress(OSError), Path(processes.path(pid, "net", "unix")).open(errors="replace") as file:
        for line in file:
            words = line.split(maxsplit=7)  # Num RefCount Protocol Flags Type St Inode Path
            with contextlib.suppress(ValueError, IndexError):
                if int(words[3], 16) & _ACCEPTS and int(words[6]) in sockets and words[7].startswith("/"):
                    return "".join(each if each.isprintable() else "?" for each in words[7].rstrip("\n"))
    return ""
