"""The schema, written out: as a file to begin with, as the settings in force, and as JSON Schema for editors."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from memscaler.config import gpuctl_words, sleep_words
from memscaler.config.ports import GPU_PATTERN, MAX_PORT
from memscaler.config.schema import BY_KEY, DEFAULT_FILE, OPTIONS, GpuSettings, Option, Settings
from memscaler.config.server_keys import AUTO, HOOK, HOOK_HELP, HOOK_KEYS, KEYS
from memscaler.config.servers import Hook, Server
from memscaler.config.tables import Key
from memscaler.core.watch import SCOPE_KINDS, WatchSettings

WIDTH = 80
DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TITLES = {
    "discover": "which servers",
    "idle_after": "when a GPU is parked",
    "lever": "how",
    "quiet": "what counts as work",
    "metrics": "what is told",
    "loader_python": "where things are",
    "dry_run": "to try it",
    "log_format": "the log",
}
_HEAD = f"""\
# The configuration of memscaler: {DEFAULT_FILE}, or any file
# named with --config. Every setting with its default, switched off by a "#"
# right before its key. A flag of `memscaler run` goes before its variable (in
# brackets), that before this file; files in conf.d beside it before this one.
# `memscaler config check` tells whether it is good; `memscaler reload` takes it
# up without touching what did not change.
"""
_WATCHES = """
# ---- ports -------------------------------------------------------------------
# One table for each server port. Without gpus: those that the server uses.
# Without scope: on this host. These may stand here, too, for this port alone:
# {per_watch}.

#[[watch]]
#port = 8080
#gpus = ["gpu0", "gpu1"]

#[[watch]]
#port = 8080
#scope = "container:web"
#quiet = "no-connections"

# ---- single GPUs -------------------------------------------------------------
# By index (gpu0), by the beginning of a UUID (GPU-8f3a), or by PCI address
# (0000:3b:00.0). These may stand here, for this GPU alone:
{per_gpu}.

#[gpu.gpu1]
#idle_after = "5m"

# ---- servers -----------------------------------------------------------------
# What `memscaler servers` starts and keeps running; each is watched by itself.
# Here, or in files of servers.d beside this one: memscaler.toml(5).

#[[server]]
#name = "chat"
#command = "llama-server -m /models/chat.gguf --port 8080"
#gpus = ["gpu0"]
"""

_SECRET = re.compile("--?[a-z-]*(?:key|token|password|secret)", re.IGNORECASE)
_SECRET_WORD = re.compile("^(--?[a-z-]*(?:key|token|password|secret))=.*", re.IGNORECASE | re.DOTALL)

Document = dict[str, object]


def sample() -> str:
    """A complete file that changes nothing: every setting with its default, commented out."""
    parts = [_HEAD]
    for option in _settings():
        if option.key in _TITLES:
            parts.append(f"\n# ---- {_TITLES[option.key]} ".ljust(WIDTH + 1, "-") + "\n")
        parts.append(f"\n{_about(option)}\n#{option.key} = {literal(default(option))}\n")
    words = {
        "per_watch": _listed(option.key for option in OPTIONS if option.per_watch),
        "per_gpu": _comment(_listed(option.key for option in OPTIONS if option.per_gpu)),
    }
    return "".join(parts) + _WATCHES.format(**words) + sleep_words.SAMPLE + gpuctl_words.SAMPLE


def _about(option: Option) -> str:
    return _comment(f"{option.help} [{option.env[0]}]")


def _comment(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _listed(words: Iterator[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}"


def _settings() -> Iterator[Option]:
    """Those that stand at the top of a file."""
    return (option for option in OPTIONS if option.key != "watch")


def default(option: Option) -> object:
    """The default as the file has it."""
    return option.parse.write(option.parse(option.default) if option.default else ())


def literal(value: object) -> str:
    """A value as TOML."""
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, dict):
        pairs = ", ".join(f"{name} = {literal(each)}" for name, each in value.items())
        return f"{{{pairs}}}"
    # JSON escapes what TOML does, but for one character
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


# ---- what is in force -----------------------------------------------------------------------------------------------


def effective(settings: Settings) -> tuple[tuple[str, object, str], ...]:
    """(key, value as the file has it, where it comes from) of everything, tables last."""
    origins = settings.origins
    rows = [(each.key, _value(each, settings), origins[each.key]) for each in _settings()]
    if settings.kept_in != settings.state_dir:
        kept = ("state_dir", str(settings.kept_in), "default with simulate")
        rows = [kept if row[0] == "state_dir" else row for row in rows]
    if settings.labels:
        rows = [row for row in rows if row[0] != "labels"]
    rows += [
        (f"labels.{name}", text, origins.get(f"labels.{name}", origins["labels"])) for name, text in settings.labels
    ]
    for watch in settings.watches:
        place = str(replace(watch, gpus=()))
        origin = origins.get(f"watch.{place}", origins["watch"])
        rows.append((f"watch.{place}", list(watch.gpus) or "the GPUs that the listener uses", origin))
        own = settings.watch_settings(watch)
        rows += _own(f"watch.{place}", own, origins)
    for name, gpu in settings.gpus.items():
        rows += _own(f"gpu.{name}", gpu, origins)
    for server in settings.servers:
        rows += [(f"server.{server.name}.{key}", value, server.origin) for key, value in _described(server, KEYS)]
    return (*rows, *sleep_words.effective(settings), *gpuctl_words.effective(settings))


def _described(described: Server | Hook, keys: Iterable[Key], prefix: str = "") -> Iterator[tuple[str, object]]:
    """What is not the default, without secrets: of variables only the names, and no keys of a command line."""
    plain = Server(name="") if isinstance(described, Server) else Hook(name="", command=())
    for key in keys:
        value = getattr(described, key.field)
        if key.key == "name" or value == getattr(plain, key.field):
            continue
        if key.key == "environment":
            yield f"{prefix}{key.key}", [name for name, _ in value]
        else:
            shown = _without_keys(value) if key.key in ("command", "options") else value
            yield f"{prefix}{key.key}", key.parse.write(shown)
    if isinstance(described, Server) and described.placed:
        yield "gpus", AUTO
    for hook in described.hooks:
        yield from _described(hook, HOOK_KEYS, f"{prefix}{HOOK}.{hook.name}.")


def _without_keys(words: Iterable[str]) -> tuple[str, ...]:
    """Without what follows --api-key and its like."""
    shown: list[str] = []
    for each in words:
        is_secret = bool(shown) and _SECRET.fullmatch(shown[-1])
        shown.append("..." if is_secret else _SECRET_WORD.sub(r"\1=...", each))
    return tuple(shown)


def _own(
    prefix: str, settings: WatchSettings | GpuSettings, origins: Mapping[str, str]
) -> list[tuple[str, object, str]]:
    """What a table sets for itself."""
    keys = (option.key for option in OPTIONS if f"{prefix}.{option.key}" in origins)
    return [(f"{prefix}.{key}", _value(BY_KEY[key], settings), origins[f"{prefix}.{key}"]) for key in keys]


def _value(option: Option, settings: object) -> object:
    return option.parse.write(getattr(settings, option.field))


# ---- JSON Schema ----------------------------------------------------------------------------------------------------


def json_schema() -> Document:
    """Of the file, in the forms that its documentation recommends. It cannot say everything that `load` checks."""
    top = {option.key: _property(option) for option in _settings()}
    gpu = _table({option.key: _property(option) for option in OPTIONS if option.per_gpu})
    watch = _table({**_of_watch(), **{option.key: _property(option) for option in OPTIONS if option.per_watch}})
    return {
        "$schema": DIALECT,
        "$defs": {"hook": {**_table(_of_hook()), "required": ["name", "command"]}},
        "title": "memscaler configuration",
        "description": f"The settings of `memscaler run`, in {DEFAULT_FILE}.",
        **_table(
            {
                **top,
                "watch": {
                    "description": BY_KEY["watch"].help,
                    "type": "array",
                    "items": {**watch, "required": ["port"]},
                },
                "gpu": {
                    "description": "Settings for single GPUs.",
                    "type": "object",
                    "propertyNames": {"pattern": GPU_PATTERN},
                    "additionalProperties": gpu,
                },
                "server": {
                    "description": "Servers that `memscaler servers` starts and keeps running.",
                    "type": "array",
                    "items": _of_server(),
                },
                **sleep_words.schemas(),
                **gpuctl_words.schemas(),
            }
        ),
    }


def _of_server() -> Document:
    either = [
        {"required": ["command"], "not": {"anyOf": [{"required": ["model"]}, {"required": ["options"]}]}},
        {"required": ["model"], "not": {"required": ["command"]}},
    ]
    return {**_table(_of_keys(KEYS, Server(name=""))), "required": ["name"], "anyOf": either}


def _of_hook() -> Document:
    return _of_keys(HOOK_KEYS, Hook(name="", command=()))


def _of_keys(keys: Iterable[Key], plain: Server | Hook) -> Document:
    found: Document = {}
    for key in keys:
        shown = {"default": key.parse.write(getattr(plain, key.field))} if key.default else {}
        found[key.key] = {"description": key.help, **key.parse.schema, **shown}
    found[HOOK] = {"description": HOOK_HELP, "type": "array", "items": {"$ref": "#/$defs/hook"}}
    return found


def _table(properties: Mapping[str, object]) -> Document:
    return {"type": "object", "properties": dict(properties), "additionalProperties": False}


def _property(option: Option) -> Document:
    return {"description": option.help, **option.parse.schema, "default": default(option)}


def _of_watch() -> Document:
    gpu = {"anyOf": [{"type": "string", "pattern": GPU_PATTERN}, {"type": "integer", "minimum": 0}]}
    return {
        "port": {
            "description": "The port on which the server listens.",
            "type": "integer",
            "minimum": 1,
            "maximum": MAX_PORT,
        },
        "gpus": {"description": "The GPUs behind it.", "type": "array", "items": gpu},
        "scope": {
            "description": "Where the server is, if it has a network of its own.",
            "type": "string",
            "pattern": f"^(host|({'|'.join(SCOPE_KINDS)}):.+)$",
            "default": "host",
        },
    }
