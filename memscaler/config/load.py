"""Settings from flags, environment, file and defaults, in this order. Reads one file and changes nothing.

Everything is checked before anything is refused, so that an operator sees all that is wrong at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from memscaler.config import toml, values
from memscaler.config.ports import Watch, check_distinct, check_gpu, parse_gpus, parse_port
from memscaler.config.schema import BY_KEY, DEFAULT_FILE, OPTIONS, GpuSettings, Option, Settings
from memscaler.core.errors import ConfigError, MemscalerError, UsageError

_PER_GPU = {each.key: each for each in OPTIONS if each.per_gpu}
_FLAG_NAMES = {"watch": "--port"}


@dataclass(slots=True)
class _Found:
    """What has been found so far. problems: (the flags' fault?, sentence)."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[tuple[bool, str]] = field(default_factory=list)

    def take(self, option: Option, raw: object, origin: str, *, flag: bool = False) -> None:
        """Parse a value; the later taken wins over the earlier."""
        try:
            self.values[option.field] = option.parse(raw)
            self.origins[option.key] = origin
        except ValueError as err:
            self.problems.append((flag, f"{origin}: {err}"))


def load(flags: Mapping[str, object], environ: Mapping[str, str], file: Path | None = None) -> Settings:
    """The settings. flags: key -> value, None where not given; file: the --config argument.

    Raise UsageError for a bad flag, ConfigError for a bad variable or file.
    """
    source = file or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    return _load(flags, environ, None if source is None else toml.read(source))


def without_file(flags: Mapping[str, object], environ: Mapping[str, str]) -> Settings:
    """Like `load`, but no file is read: for what must work when that is broken."""
    return _load(flags, environ, None)


def _load(flags: Mapping[str, object], environ: Mapping[str, str], document: toml.Document | None) -> Settings:
    found = _Found()
    gpus = {} if document is None else _from_file(document, found)
    _from_environ(environ, found)
    for key, raw in flags.items():
        if raw not in (None, (), []):
            flag_name = _FLAG_NAMES.get(key, "--" + key.replace("_", "-"))
            found.take(BY_KEY[key], raw, flag_name, flag=True)
    _refuse(found.problems)
    return _settled(found, gpus)


def _from_environ(environ: Mapping[str, str], found: _Found) -> None:
    for option in OPTIONS:
        name = next((name for name in option.env if environ.get(name)), None)
        if name is not None:
            # systemd parts several runtime directories by colons; the first is ours
            raw = environ[name].split(":")[0] if name == "RUNTIME_DIRECTORY" else environ[name]
            found.take(option, raw, name)


def _settled(found: _Found, gpus: Mapping[str, Mapping[str, Any]]) -> Settings:
    origins = {option.key: found.origins.get(option.key, "default") for option in OPTIONS} | found.origins
    settings = Settings(**found.values, origins=origins)
    return replace(settings, gpus={name: replace(settings.general, **changes) for name, changes in gpus.items()})


def _refuse(problems: list[tuple[bool, str]]) -> None:
    if not problems:
        return
    message = "\n".join(sentence for _, sentence in problems)
    if all(by_flag for by_flag, _ in problems):
        raise UsageError(message)
    raise ConfigError(message)


def _from_file(document: toml.Document, found: _Found) -> dict[str, dict[str, Any]]:
    """Take what the file says; answer with its per-GPU overrides."""
    gpus: dict[str, dict[str, Any]] = {}
    for key, raw in document.data.items():
        origin = document.origin(key)
        if key == "watch":
            _take_watches(raw, document, found)
        elif key == "gpu":
            gpus = _overrides(raw, document, found)
        elif key in BY_KEY:
            found.take(BY_KEY[key], raw, origin)
        else:
            found.problems.append((False, _unknown(key, [*BY_KEY, "gpu"], origin)))
    return gpus


def _take_watches(raw: object, document: toml.Document, found: _Found) -> None:
    if not isinstance(raw, list):
        found.problems.append((False, f"{document.origin('watch')}: write each watch as a [[watch]] table"))
        return
    good: list[Watch] = []
    for nth, entry in enumerate(raw):
        try:
            good.append(_watch(entry, nth, document))
            check_distinct(good)
        except ValueError as err:
            found.problems.append((False, f"{document.origin('watch', nth, 'port')}: {err}"))
        except MemscalerError as err:
            found.problems.append((False, str(err)))
    found.values["watches"] = tuple(good)
    found.origins["watch"] = document.origin("watch", 0)


def _watch(entry: object, nth: int, document: toml.Document) -> Watch:
    fields = values.table(entry)
    for key in fields:
        if key not in ("port", "gpus"):
            raise ConfigError(_unknown(key, ["port", "gpus"], document.origin("watch", nth, key)))
    if not isinstance(fields.get("port"), int) or isinstance(fields["port"], bool):
        raise ValueError("a watch needs a port, as in port = 8080")
    port = parse_port(str(fields["port"]))
    gpus = fields.get("gpus", [])
    if not isinstance(gpus, list):
        raise ValueError(f'port {port}: gpus is a list, as in gpus = ["gpu0"]')
    return Watch(port, parse_gpus((str(gpu) for gpu in gpus), port))


def _overrides(raw: object, document: toml.Document, found: _Found) -> dict[str, dict[str, Any]]:
    gpus: dict[str, dict[str, Any]] = {}
    for name, entry in raw.items() if isinstance(raw, dict) else [("gpu", raw)]:
        try:
            check_gpu(name)
            fields = values.table(entry)
        except ValueError as err:
            found.problems.append((False, f"{document.origin('gpu', name)}: {err}"))
            continue
        gpus[name] = _override(name, fields, document, found)
    return gpus


def _override(name: str, fields: Mapping[str, object], document: toml.Document, found: _Found) -> dict[str, Any]:
    mine = _Found()
    for key, raw in fields.items():
        origin = document.origin("gpu", name, key)
        if key in _PER_GPU:
            mine.take(_PER_GPU[key], raw, origin)
        else:
            mine.problems.append((False, _unknown(key, _PER_GPU, origin)))
    found.problems += mine.problems
    found.origins |= {f"gpu.{name}.{key}": origin for key, origin in mine.origins.items()}
    return mine.values


def _unknown(key: str, known: Iterable[str], origin: str) -> str:
    near = difflib.get_close_matches(key, list(known), n=1)
    return f"{origin}: unknown key {key!r}" + (f" (did you mean {near[0]!r}?)" if near else "")


def for_gpu(settings: Settings, names: Iterable[str]) -> GpuSettings:
    """What a GPU goes by that is known under any of `names`."""
    return next((settings.gpus[name] for name in names if name in settings.gpus), settings.general)
