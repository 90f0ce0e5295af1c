"""gppm's descriptions of llama.cpp instances (github.com/crashr/gppm, llamacpp_configs/*.yaml), read as they are.

A list; of each: name, enabled, env, command (one text), post_launch_hooks, which may have hooks of their own. Older
files have cuda_visible_devices and a list of options instead, which are understood, too. What gppm does not read, it
does not mind; here a key that is nearly one of its own is a mistake.

gppm has no word for GPUs but CUDA_VISIBLE_DEVICES. Where that is a list of indexes or UUIDs it becomes `gpus`, by which
the server is started and its port is watched alike: index 0 is then gpu0 of nvidia-smi. (CUDA by itself counts the
fastest first, gppm took the same number in the order of NVAPI.) Anything else stays a variable.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import yaml

from memscaler.config import server_keys
from memscaler.config.near import nearest, strange
from memscaler.config.render import literal
from memscaler.config.server_keys import AUTO, HOOK_KEYS, KEYS
from memscaler.config.server_tables import DEEPEST, Wrong, conflicts, settled
from memscaler.config.servers import Hook, Server
from memscaler.config.tables import Key, Place
from memscaler.core.errors import ConfigError

MOST_CHARS = 256 << 10  # of a file: the parser takes its time
MOST_NODES = 20_000  # with all that aliases stand for
_SERVER = ("name", "enabled", "env", "command", "type", "post_launch_hooks", "options", "cuda_visible_devices")
_HOOK = ("name", "enabled", "env", "command", "post_launch_hooks")
_CUDA, _ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
_GPUS = re.compile(r"(?:[0-9]{1,3}|GPU-[0-9a-fA-F-]{4,36})(?:,(?:[0-9]{1,3}|GPU-[0-9a-fA-F-]{4,36}))*")
_LIKELY = 0.85  # "comand" is, "comment" is not
_LONGEST = 63
_TEMPLATE = re.compile(r"\{\{|\{%|\$\{")  # of a name only: a command may have a chat template in it

Node: TypeAlias = yaml.nodes.Node
Entry: TypeAlias = Mapping[str, Node]


def read(text: str, origin: str) -> tuple[Server, ...]:
    """The servers of a file. origin: what it is called. Raise ConfigError with all that is wrong, a line each."""
    return _Reader(origin).read(text)


class _Reader:
    """One file. Values are taken as they are written: what YAML makes of 0, 1:30 or no is no text for a program."""

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._problems: list[str] = []
        self._names: set[str] = set()

    def read(self, text: str) -> tuple[Server, ...]:
        root = self._parse(text)
        found = [self._server(node) for node in self._items(root, "instances")] if root is not None else []
        servers = [each for each in found if each]
        if problems := self._problems + conflicts(servers):
            raise ConfigError("\n".join(problems))
        return tuple(servers)

    def _parse(self, text: str) -> Node | None:
        if len(text) > MOST_CHARS:
            raise ConfigError(f"{self._origin} is larger than {MOST_CHARS >> 10} KiB")
        try:
            loader = yaml.SafeLoader(text)
            root: Node | None = loader.get_single_node()
            size = 0 if root is None else _size(root, {})
        except yaml.YAMLError as err:
            mark = getattr(err, "problem_mark", None)
            line = f":{mark.line + 1}" if mark else ""
            said = getattr(err, "problem", None) or str(err).partition("\n")[0]
            raise ConfigError(f"{self._origin}{line}: not YAML: {said}") from err
        except (RecursionError, ValueError) as err:
            raise ConfigError(f"{self._origin} is nested too deeply, or no YAML") from err
        if size > MOST_NODES:
            raise ConfigError(f"{self._origin} stands for more than {MOST_NODES} values")
        return root

    def _server(self, node: Node) -> Server | None:
        entry = self._entry(node, _SERVER)
        before = len(self._problems)
        kind = self._text(entry, "type") or "llamacpp"
        if kind == "ollama":
            self._wrong(
                entry.get("type"),
                "type ollama: one Ollama serves many models from one port, and starts and stops them itself "
                "(watch its port: [[watch]] port = 11434, or discover = true)",
            )
        hooks = self._hooks(entry, DEEPEST)
        told = self._told(entry, KEYS)
        told |= self._gpus(entry, dict(told.pop("environment", ())))
        if len(self._problems) > before:
            return None
        origin = self._at(node)
        try:
            return settled(told | {"hooks": hooks, "origin": origin}, self._place(entry, origin))
        except Wrong as wrong:
            self._problems += wrong.sentences
            return None

    def _told(self, entry: Entry, keys: Iterable[Key]) -> dict[str, Any]:
        """What server and hook have in common."""
        known = {each.key: each for each in keys}
        raw: dict[str, object] = {
            "name": self._name(entry),
            "command": (self._text(entry, "command") or "") + self._options(entry),
        }
        if "enabled" in entry:
            raw["enabled"] = self._truth(entry["enabled"])
        if "env" in entry:
            raw["environment"] = self._environment(entry["env"])
        told = {}
        for key, value in raw.items():
            try:
                # no check for what only a shell would understand: gppm does not mind either
                parse = known[key].parse if key != "command" else server_keys.arguments
                told[known[key].field] = parse(value)
            except ValueError as err:
                near = {"environment": "env"}.get(key, key)
                self._wrong(entry.get(near) or next(iter(entry.values()), None), str(err))
        return told

    def _name(self, entry: Entry) -> str:
        """Letters and digits of the name, which may be any text; two with one name are told apart by a number."""
        text = self._text(entry, "name")
        if not text:
            self._wrong(next(iter(entry.values()), None), "an instance needs a name")
            return "unnamed"
        if _TEMPLATE.search(text):
            self._wrong(entry["name"], f"name: {text!r} is a template, which nothing here fills in: write the name")
            return "unnamed"
        return distinct(plain_name(text), self._names)

    def _options(self, entry: Entry) -> str:
        """Those of an older file: texts that are put together, as gppm did."""
        if "options" not in entry:
            return ""
        words = [self._scalar(node) for node in self._items(entry["options"], "options")]
        return "".join(f" {word}" for word in words if word)

    def _environment(self, node: Node) -> dict[str, str]:
        return {key: text for key, each in self._pairs(node) if (text := self._scalar(each)) is not None}

    def _gpus(self, entry: Entry, variables: dict[str, str]) -> dict[str, Any]:
        """What names the GPUs, and the other variables."""
        older = self._text(entry, "cuda_visible_devices")
        if older is not None:
            variables.setdefault(_CUDA, older)
        text = variables.get(_CUDA, "").replace(" ", "")
        words = text.split(",")
        if not _GPUS.fullmatch(text) or len(set(words)) < len(words):
            return {"environment": tuple(sorted(variables.items()))}
        for name in (_CUDA, _ORDER):
            variables.pop(name, None)
        gpus = tuple(f"gpu{int(each)}" if each.isdigit() else each for each in words)
        return {"gpus": gpus, "environment": tuple(sorted(variables.items()))}

    def _hooks(self, entry: Entry, deepest: int) -> tuple[Hook, ...]:
        if "post_launch_hooks" not in entry or not deepest:
            if not deepest and "post_launch_hooks" in entry:
                self._wrong(entry["post_launch_hooks"], f"hooks of hooks are nested more than {DEEPEST} deep")
            return ()
        taken: set[str] = set()
        found = []
        for node in self._items(entry["post_launch_hooks"], "post_launch_hooks"):
            inner = self._entry(node, _HOOK)
            before = len(self._problems)
            servers, self._names = self._names, taken
            told = self._told(inner, HOOK_KEYS)
            self._names = servers
            hooks = self._hooks(inner, deepest - 1)
            if len(self._problems) == before:
                found.append(Hook(**told, hooks=hooks))
        return tuple(found)

    # ---- nodes ------------------------------------------------------------------------------------------------------

    def _items(self, node: Node, what: str) -> list[Node]:
        if isinstance(node, yaml.SequenceNode):
            return list(node.value)
        if not _is_null(node):
            self._wrong(node, f"{what}: this is not a list")
        return []

    def _pairs(self, node: Node) -> Iterator[tuple[str, Node]]:
        """Keys and values, those first that are merged in (<<)."""
        if not isinstance(node, yaml.MappingNode):
            if not _is_null(node):
                self._wrong(node, "this is not a table (write key: value)")
            return
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                # of several the first wins
                for each in reversed(value.value) if isinstance(value, yaml.SequenceNode) else [value]:
                    yield from self._pairs(each)
        for key, value in node.value:
            if key.tag != "tag:yaml.org,2002:merge":
                yield str(key.value) if isinstance(key, yaml.ScalarNode) else "", value

    def _entry(self, node: Node, known: tuple[str, ...]) -> dict[str, Node]:
        entry = dict(self._pairs(node))
        for key in entry.keys() - set(known):
            near = nearest(key, known, _LIKELY)
            if near:
                self._wrong(entry[key], strange(key, near))
        return entry

    def _text(self, entry: Entry, key: str) -> str | None:
        return self._scalar(entry[key]) if key in entry else None

    def _scalar(self, node: Node) -> str | None:
        """As it is written."""
        if not isinstance(node, yaml.ScalarNode):
            self._wrong(node, "this is not a text")
            return None
        return None if _is_null(node) else str(node.value)

    def _truth(self, node: Node) -> object:
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:bool":
            return str(node.value).lower() in {"yes", "true", "on"}
        return self._scalar(node)

    def _place(self, entry: Entry, origin: str) -> Place:
        keys = {"environment": "env", "port": "command", "gpus": "env"}

        def place(*where: str | int) -> str:
            key = keys.get(str(where[0]), str(where[0])) if where else ""
            return self._at(entry[key]) if key in entry else origin

        return place

    def _at(self, node: Node | None) -> str:
        return f"{self._origin}:{node.start_mark.line + 1}" if node is not None else self._origin

    def _wrong(self, node: Node | None, sentence: str) -> None:
        self._problems.append(f"{self._at(node)}: {sentence}")


def _is_null(node: Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _size(node: Node, known: dict[int, int]) -> int:
    """Nodes below it, those behind aliases as often as they are named. One within itself is endless."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = MOST_NODES + 1  # until it is known: whoever comes here again came from within
    inner = node.value if isinstance(node, yaml.CollectionNode) else ()
    flat = [each for pair in inner for each in (pair if isinstance(pair, tuple) else (pair,))]
    known[id(node)] = 1 + sum(_size(each, known) for each in flat)
    return known[id(node)]


def plain_name(text: str) -> str:
    """A name that a server may have, from any text."""
    plain = re.sub("[-_]*[^A-Za-z0-9_.]+[-_]*", "-", text).lstrip("-.")[:_LONGEST]
    return plain.rstrip("-") or "server"


def distinct(name: str, taken: set[str]) -> str:
    """The name, with a number if it is taken; it is from now on."""
    nth, found = 1, name
    while found in taken:
        nth += 1
        found = f"{name[: _LONGEST - len(str(nth)) - 1]}-{nth}"
    taken.add(found)
    return found


# ---- as TOML --------------------------------------------------------------------------------------------------------


def write(servers: Iterable[Server]) -> str:
    """[[server]] tables that describe the same servers."""
    return "\n".join("".join(f"{line}\n" for line in _table(each)) for each in servers)


def _table(server: Server) -> Iterator[str]:
    yield "[[server]]"
    yield from _lines(server, KEYS, Server(name=""))
    yield from _hook_tables(server.hooks, "server.hook")


def _hook_tables(hooks: Iterable[Hook], header: str) -> Iterator[str]:
    for hook in hooks:
        yield ""
        yield f"[[{header}]]"
        yield from _lines(hook, HOOK_KEYS, Hook(name="", command=()))
        yield from _hook_tables(hook.hooks, f"{header}.hook")


def _lines(described: Server | Hook, keys: Iterable[Key], plain: Server | Hook) -> Iterator[str]:
    """What is not the default."""
    for key in keys:
        value = getattr(described, key.field)
        if key.field == "gpus" and isinstance(described, Server) and described.placed:
            yield f"gpus = {literal(AUTO)}"
        elif value != getattr(plain, key.field):
            yield f"{key.key} = {literal(key.parse.write(value))}"
