"""A [[server]] table becomes a description, or sentences about everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from memscaler.config import tables
from memscaler.config.ports import Watch
from memscaler.config.server_keys import AUTO, HOOK, HOOK_KEYS, KEYS, ports_in
from memscaler.config.servers import Hook, Server
from memscaler.config.tables import Key, Place
from memscaler.core.watch import HOST

DEEPEST = 8  # hooks of hooks of hooks
_OF_CUDA = "CUDA_VISIBLE_DEVICES"
_OTHER_WORDS = {  # what others call it
    "env": "environment",
    "cwd": "directory",
    "working_directory": "directory",
    "args": "options",
    "cmd": "command",
    "hooks": HOOK,
    "post_launch_hooks": HOOK,
}


@dataclass(slots=True)
class Found:
    """Descriptions, and sentences about what is none."""

    servers: list[Server] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, other: Found) -> None:
        """Of another file."""
        self.servers += other.servers
        self.problems += other.problems


def read_list(raw: object, place: Place) -> Found:
    """All [[server]] tables of a file. place: of the list."""
    if not isinstance(raw, list):
        return Found(problems=[f"{place()}: write each server as a [[server]] table"])
    found = Found()
    for nth, entry in enumerate(raw):
        read(entry, partial(place, nth), found)
    return found


def read(raw: object, place: Place, found: Found, name: str = "") -> None:
    """One table. name: what it is called if it does not say."""
    if not isinstance(raw, dict):
        found.problems.append(f"{place()}: server: {raw!r} is not a table")
        return
    before = len(found.problems)
    told = _values({"name": name, **raw} if name else raw, KEYS, place, found.problems)
    hooks = _hooks(raw.get(HOOK, []), partial(place, HOOK), found.problems, DEEPEST)
    if len(found.problems) > before:
        return
    try:
        found.servers.append(settled(told | {"hooks": hooks, "origin": place()}, place))
    except Wrong as wrong:
        found.problems.extend(wrong.sentences)


def _values(raw: Mapping[str, object], keys: Iterable[Key], place: Place, problems: list[str]) -> dict[str, Any]:
    return tables.read(raw, keys, place, problems, others=(HOOK,), other_words=_OTHER_WORDS)


def _hooks(raw: object, place: Place, problems: list[str], deepest: int) -> tuple[Hook, ...]:
    if not isinstance(raw, list) or not all(isinstance(each, dict) for each in raw):
        problems.append(f"{place()}: write each hook as a [[server.hook]] table")
        return ()
    if raw and not deepest:
        problems.append(f"{place()}: hooks of hooks are nested more than {DEEPEST} deep")
        return ()
    found: list[Hook] = []
    for nth, entry in enumerate(raw):
        at = partial(place, nth)
        before = len(problems)
        told = _values(entry, HOOK_KEYS, at, problems)
        inner = _hooks(entry.get(HOOK, []), partial(at, HOOK), problems, deepest - 1)
        problems += [f"{at()}: a hook needs a {key}" for key in ("name", "command") if key not in entry]
        if told.get("name") in {each.name for each in found}:
            problems.append(f"{at('name')}: two hooks are called {told['name']}")
        if len(problems) == before:
            found.append(Hook(**told, hooks=inner))
    return tuple(found)


class Wrong(ValueError):
    """What is wrong with a table as a whole."""

    def __init__(self, sentences: list[str]) -> None:
        super().__init__("; ".join(sentences))
        self.sentences = sentences


def settled(told: dict[str, Any], place: Place) -> Server:
    """The server that good values describe together. Raise Wrong if they do not go together."""
    wrong = []
    for key, needs, why in (
        ("options", "model", "options belong to a model"),
        ("placed", "model", 'gpus = "auto" places a model: write model and options instead of a command'),
    ):
        placed = told.get("gpus") == (AUTO,)
        if (placed if key == "placed" else key in told) and needs not in told:
            wrong.append(f"{place('gpus' if key == 'placed' else key)}: {why}")
    if "name" not in told:
        wrong.append(f'{place()}: a server needs a name, as in name = "chat"')
    if ("command" in told) == ("model" in told):
        either = "either a command or a model" if "command" in told else "a command or a model"
        wrong.append(f"{place('command')}: a server has {either}")
    if told.get("gpus") and any(name == _OF_CUDA for name, _ in told.get("environment", ())):
        wrong.append(f"{place('environment')}: gpus and {_OF_CUDA} name GPUs; leave one of them out")
    known = ports_in((*told.get("command", ())[1:], *told.get("options", ())), told.get("environment", ()))
    stated = {told["port"]: "port"} | known if "port" in told else known
    if len(stated) > 1:
        both = ", ".join(f"{number} ({where})" for number, where in stated.items())
        wrong.append(f"{place('port')}: which port is it: {both}?")
    if not stated and "model" in told and "command" not in told:
        wrong.append(f"{place()}: a server with a model needs a port, as in port = 8080")
    if wrong:
        raise Wrong(wrong)
    if told.get("gpus") == (AUTO,):
        told = told | {"gpus": (), "placed": True}
    told = told | {"port": next(iter(stated), None)}
    return Server(**told)


def conflicts(servers: Iterable[Server]) -> list[str]:
    """Sentences: names and ports that two have; both places are named."""
    problems = []
    names: dict[str, Server] = {}
    ports: dict[int, Server] = {}
    for server in servers:
        first = names.setdefault(server.name, server)
        if first is not server:
            problems.append(
                f"{server.origin}: server {server.name} is described twice (the first is in {first.origin})"
            )
        if server.enabled and server.port is not None:
            first = ports.setdefault(server.port, server)
            if first is not server and first.name != server.name:
                problems.append(
                    f"{server.origin}: port {server.port} of server {server.name} is that of server {first.name} "
                    f"(in {first.origin})"
                )
    return problems


def watches(servers: Iterable[Server], named: Iterable[Watch]) -> dict[Watch, str]:
    """A watch for each enabled server whose port nobody has named, and where it comes from."""
    taken = {each.port for each in named if each.scope == HOST}
    return {
        Watch(server.port, server.gpus): server.origin
        for server in servers
        if server.enabled and server.port is not None and server.port not in taken
    }
