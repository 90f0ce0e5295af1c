"""What our children are shown: the GPUs' states, and of each watched server who was there when."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from memscaler.config.schema import Settings
from memscaler.core.public import public_state
from memscaler.core.watch import HOST
from memscaler.daemon.governing import Governing
from memscaler.daemon.watching import Watched, Watching

Key = str
Told = dict[str, object]


@dataclass(frozen=True, slots=True)
class Asking:
    """What the picture is made for. doubtful: servers whose sockets could not be asked: somebody may be there."""

    reason: str
    id: int = 0
    rang: Collection[Key] = ()
    guarded: Collection[Key] = ()
    doubtful: Collection[Key] = ()


def names_of(settings: Settings) -> dict[int, str]:
    """Of the described servers, by port of this host."""
    return {server.port: server.name for server in settings.servers if server.enabled and server.port is not None}


def gist(governing: Governing, watching: Watching, now_ns: int) -> object:
    """What is told when it changes: equal to another one if nothing did."""
    gpus = {uuid: (public_state(gpu), _holds(gpu.holds, now_ns)) for uuid, gpu in governing.state.gpus.items()}
    servers = {each.key: (each.watch.slot, each.gpus, each.found.pids) for each in watching.all}
    return gpus, servers


def picture(governing: Governing, watching: Watching, names: Mapping[int, str], now_ns: int, asking: Asking) -> Told:
    """Everything, as memscaler/child/link.py has it."""
    gpus = {
        uuid: {
            "state": str(public_state(gpu)),
            "since_ns": gpu.since_ns,
            "held": bool(_holds(gpu.holds, now_ns)),
            "holds": _holds(gpu.holds, now_ns),
        }
        for uuid, gpu in governing.state.gpus.items()
    }
    servers = list(_servers(governing, watching, names, asking))
    return {"at_ns": now_ns, "reason": asking.reason, "gpus": gpus, "servers": servers, "id": asking.id}


def _holds(holds: Mapping[str, int], now_ns: int) -> tuple[str, ...]:
    """Those that are in force."""
    return tuple(sorted(owner for owner, until_ns in holds.items() if until_ns > now_ns))


def _servers(governing: Governing, watching: Watching, names: Mapping[int, str], asking: Asking) -> Iterator[Told]:
    for each in watching.all:
        reading = governing.ledger.reading(each.watch)
        here = each.found.scope == str(HOST)
        yield {
            "key": each.key,
            "port": each.found.port,
            "scope": "" if here else each.found.scope,
            "name": names.get(each.found.port, "") if here else "",
            "gpus": each.gpus,
            "live": max(reading.live, int(each.key in asking.doubtful)),
            "last_activity_ns": reading.last_activity_ns,
            "last_touch_ns": max(reading.last_touch_ns, reading.last_unsure_ns),
            "rang": each.key in asking.rang,
            "guarded": each.key in asking.guarded,
            "pids": each.found.pids,
        }


def slots_of(watching: Watching, keys: Collection[Key]) -> dict[Key, int]:
    """The slots of these watches, of those that there are."""
    return {each.key: each.watch.slot for each in watching.all if each.key in keys}


def watched(watching: Watching, key: Key) -> Watched | None:
    """The watch that is called so."""
    return next((each for each in watching.all if each.key == key), None)
