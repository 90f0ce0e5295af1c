"""Settings from flags, environment, files and defaults, in this order. Changes nothing.

The files are one and those in conf.d beside it, in the order of their names. A later one goes before an earlier one,
key by key; [[watch]] and [[server]] tables add up; what several say of one GPU, or of labels, is put together.
Those in servers.d describe servers. A server whose port no [[watch]] names is a watch. [[stage]] and [[gateway]] tables
add up, and a [[stage]] that parks is another way to write idle_after.

Everything is checked before anything is refused, so that an operator sees all that is wrong at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from memscaler.config import gateway_tables, gpuctl_tables, server_files, server_tables, stage_tables, toml, values
from memscaler.config.gpuctl import GpuctlRule
from memscaler.config.ports import (
    UNKNOWN,
    Watch,
    check_distinct,
    check_gpu,
    check_reads_back,
    parse_gpus,
    parse_port,
    parse_scope,
)
from memscaler.config.schema import BY_KEY, DEFAULT_FILE, OPTIONS, GpuSettings, Option, Settings
from memscaler.config.servers import Server
from memscaler.config.sources import Sources, read_files, remedy
from memscaler.config.stages import Gateway, Suspend
from memscaler.config.tables import Place
from memscaler.config.unknown import TABLES, unknown
from memscaler.core.errors import ConfigError, UsageError
from memscaler.core.watch import HOST, Scope

T = TypeVar("T")
Raw = TypeVar("Raw")
Fields = Mapping[str, object]

_PER_GPU = {each.key: each for each in OPTIONS if each.per_gpu}
_PER_WATCH = {each.key: each for each in OPTIONS if each.per_watch}
_OF_WATCH = ("port", "gpus", "scope")  # what a watch is, as opposed to what it goes by
_FLAG_NAMES = {"watch": "--port"}


@dataclass(slots=True)
class _Found:
    """What has been found so far. gpus, ports: what tables of the file set for themselves, as in Settings.

    problems: (the flags' fault?, sentence).
    """

    servers: list[Server] = field(default_factory=list)
    sleep: stage_tables.Found = field(default_factory=stage_tables.Found)
    gateways: list[Gateway] = field(default_factory=list)
    gpuctl: gpuctl_tables.Found = field(default_factory=gpuctl_tables.Found)
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    gpus: dict[str, dict[str, Any]] = field(default_factory=dict)
    ports: dict[tuple[Scope, int], dict[str, Any]] = field(default_factory=dict)
    problems: list[tuple[bool, str]] = field(default_factory=list)

    def take(self, option: Option, raw: object, origin: str, *, flag: bool = False) -> None:
        """Parse a value; the later taken wins over the earlier."""
        try:
            self.values[option.field] = option.parse(raw)
            self.forget_origins(option.key)
            self.origins[option.key] = origin
        except ValueError as err:
            self.problems.append((flag, f"{origin}: {err}"))

    def refuse(self, sentences: Iterable[str]) -> None:
        """Note what is wrong with the file."""
        self.problems += [(False, sentence) for sentence in sentences]

    def forget_origins(self, key: str) -> None:
        """Of its parts: another source has replaced the whole."""
        self.origins = {each: origin for each, origin in self.origins.items() if not each.startswith(f"{key}.")}

    def read(self, parse: Callable[[Raw], T], raw: Raw, origin: str) -> T | None:
        """What `raw` in the file means; None, and a problem, if nothing."""
        try:
            return parse(raw)
        except ValueError as err:
            self.problems.append((False, f"{origin}: {err}"))
            return None


def load(flags: Mapping[str, object], environ: Mapping[str, str], file: Path | None = None) -> Settings:
    """The settings. flags: key -> value, None where not given; file: the --config argument.

    Raise UsageError for a bad flag, ConfigError for a bad variable or file.
    """
    read = read_files(file, DEFAULT_FILE)
    found = _find(flags, environ, read)
    of_files = [*map(str, read.distrust), *read.problems]
    _refuse([*((False, sentence) for sentence in of_files), *found.problems], remedy(read.distrust))
    return _settled(found)


def without_file(flags: Mapping[str, object], environ: Mapping[str, str]) -> Settings:
    """Like `load`, but no file is read: for what must work when that is broken."""
    found = _find(flags, environ, Sources(()))
    _refuse(found.problems)
    return _settled(found)


@dataclass(frozen=True, slots=True)
class Examined:
    """A configuration that was looked at. files: in the order of reading; settings: None if there are problems.

    distrust: why `load` would not read the files from where they are; refusals: the same in short, one each; problems:
    other reasons. ignored: about files beside these that nothing reads. rules: of [[gpuctl]], also what is amiss.
    opened: False if some file could not be read; then nobody knows whether it is to be trusted.
    """

    files: tuple[Path, ...]
    settings: Settings | None
    problems: tuple[str, ...]
    distrust: str = ""
    remedy: str = ""
    refusals: tuple[str, ...] = ()
    opened: bool = True
    ignored: tuple[str, ...] = ()
    rules: tuple[GpuctlRule, ...] = ()

    @property
    def names(self) -> str:
        """The files, for people; "" if there is none."""
        return ", ".join(map(str, self.files))


def examine(
    flags: Mapping[str, object], environ: Mapping[str, str], file: Path | None = None, *, default: Path | None = None
) -> Examined:
    """Everything that is wrong, also with a file that `load` would not trust. Raise PermissionMissing.

    default: what is read, if it is there, where no file is named; None: that of this machine.
    """
    read = read_files(file, DEFAULT_FILE, default)
    found = _find(flags, environ, read)
    problems = (*read.problems, *(sentence for _, sentence in found.problems))
    settings, rules = None if problems else _settled(found), (*found.gpuctl.rules, *found.gpuctl.amiss)
    refusal = "; ".join(map(str, read.distrust)), remedy(read.distrust), tuple(each.brief for each in read.distrust)
    return Examined(read.files, settings, problems, *refusal, not read.unopened, read.ignored, rules)


def _find(flags: Mapping[str, object], environ: Mapping[str, str], files: Sources) -> _Found:
    """What flags, environment and files say, and what is wrong with it."""
    found = _Found()
    for document in files.documents:
        _from_file(document, found)
    _take_servers(files.described, found)
    found.refuse(server_tables.conflicts(found.servers))
    _take_park(found)
    of_file = found.origins.get("watch")
    _from_environ(environ, found)
    for key, raw in flags.items():
        if raw not in (None, (), []):
            flag_name = _FLAG_NAMES.get(key, "--" + key.replace("_", "-"))
            found.take(BY_KEY[key], raw, flag_name, flag=True)
    if found.origins.get("watch") == of_file:
        _watch_servers(found)
    else:
        _forget_watch_tables(found)
    _check_sleep(found)
    found.refuse(gpuctl_tables.wrong(found.gpuctl, found.sleep, found.servers))
    found.problems.sort(key=lambda problem: files.place(problem[1]))
    return found


def _take_park(found: _Found) -> None:
    """A [[stage]] that parks says what idle_after says, with the place where it is said."""
    rule = stage_tables.parks_after(found.sleep.stages)
    if rule is None:
        return
    idle_after_s = found.values.setdefault("idle_after_s", rule.after_s)
    if idle_after_s != rule.after_s:
        said = BY_KEY["idle_after"].parse.write(idle_after_s)
        where = found.origins["idle_after"]
        found.refuse([f"{rule.origin}: idle_after is {said} ({where}), and this stage says otherwise: leave one out"])
    found.origins.setdefault("idle_after", rule.origin)


def _check_sleep(found: _Found) -> None:
    """What can be known when everything is read: flags and variables may say when GPUs are parked."""
    rules = found.sleep.stages
    found.refuse(found.sleep.problems)
    found.refuse(stage_tables.strangers(rules, found.gateways, found.servers))
    found.refuse(gateway_tables.conflicts(found.gateways))
    found.refuse(stage_tables.conflicts(rules))
    idle_after_s = found.values.get("idle_after_s", BY_KEY["idle_after"].parse(BY_KEY["idle_after"].default))
    found.refuse(stage_tables.early(rules, idle_after_s, found.origins.get("idle_after", "default")))


def _forget_watch_tables(found: _Found) -> None:
    """Other watches have replaced those of the file: what its tables say about these is not about the new ones."""
    found.ports.clear()
    found.forget_origins("watch")


def _watch_servers(found: _Found) -> None:
    """Those that no [[watch]] names."""
    named = found.values.get("watches", ())
    more = server_tables.watches(found.servers, named)
    found.values["watches"] = (*named, *more)
    found.origins |= {f"watch.{replace(watch, gpus=())}": origin for watch, origin in more.items()}


def _from_environ(environ: Mapping[str, str], found: _Found) -> None:
    for option in OPTIONS:
        name = next((name for name in option.env if environ.get(name)), None)
        if name is not None:
            # systemd parts several runtime directories by colons; the first is ours
            raw = environ[name].split(":")[0] if name == "RUNTIME_DIRECTORY" else environ[name]
            found.take(option, raw, name)


def _settled(found: _Found) -> Settings:
    origins = {option.key: found.origins.get(option.key, "default") for option in OPTIONS} | found.origins
    settings = Settings(
        **found.values,
        servers=tuple(found.servers),
        stages=stage_tables.settled(found.sleep.stages),
        suspend=Suspend(**found.sleep.suspend, origin=found.sleep.origins.get(stage_tables.SUSPEND, "")),
        gateways=tuple(found.gateways),
        gpuctl=tuple(found.gpuctl.rules),
        gvm=gpuctl_tables.settled(found.gpuctl),
        origins=origins | found.sleep.origins | found.gpuctl.origins,
    )
    return replace(
        settings,
        gpus={name: replace(settings.general, **own) for name, own in found.gpus.items()},
        ports={place: replace(settings.watch_settings(None), **own) for place, own in found.ports.items()},
    )


def _refuse(problems: list[tuple[bool, str]], hint: str = "") -> None:
    if not problems:
        return
    message = "\n".join(sentence for _, sentence in problems)
    if all(by_flag for by_flag, _ in problems):
        raise UsageError(message)
    raise ConfigError(message, hint=hint)


def _from_file(document: toml.Document, found: _Found) -> None:
    for key, raw in document.data.items():
        if key == "watch":
            _take_watches(raw, document, found)
        elif key == "gpu":
            _take_gpus(raw, document, found)
        elif key == "labels":
            _take_labels(raw, document, found)
        elif key == server_files.TABLE:
            _take_servers(server_tables.read_list(raw, partial(document.origin, server_files.TABLE)), found)
        elif key in BY_KEY:
            found.take(BY_KEY[key], raw, document.origin(key))
        elif not _take_rules(key, raw, partial(document.origin, key), found):
            found.refuse(unknown((key,), raw, [*BY_KEY, *TABLES], document))


def _take_rules(key: str, raw: object, place: Place, found: _Found) -> bool:
    """Tables of a module of their own. False: it is none of these."""
    if key == stage_tables.STAGE:
        stage_tables.read_stages(raw, place, found.sleep)
    elif key == stage_tables.SUSPEND:
        stage_tables.read_suspend(raw, place, found.sleep)
    elif key in gpuctl_tables.TABLES:
        gpuctl_tables.read(key, raw, place, found.gpuctl)
    elif key == gateway_tables.TABLE:
        problems: list[str] = []
        found.gateways += gateway_tables.read_list(raw, place, problems)
        found.refuse(problems)
    else:
        return False
    return True


def _take_servers(described: server_tables.Found, found: _Found) -> None:
    found.servers += described.servers
    found.problems += [(False, sentence) for sentence in described.problems]


def _take_watches(raw: object, document: toml.Document, found: _Found) -> None:
    if not isinstance(raw, list):
        found.refuse([f"{document.origin('watch')}: write each watch as a [[watch]] table"])
        return
    good: list[Watch] = [*found.values.get("watches", ())]
    for nth, entry in enumerate(raw):
        fields = found.read(partial(values.table, "watch"), entry, document.origin("watch", nth))
        if fields is None:
            continue
        watch = _watch(fields, nth, document, found)
        name = f"watch.{watch and replace(watch, gpus=())}"
        first = found.origins.get(name, "")
        own = _own(fields, _PER_WATCH, ("watch", nth), name, document, found)
        if watch is not None:
            found.read(partial(_check_distinct, first), [*good, watch], document.origin("watch", nth, "port"))
            good.append(watch)
            found.ports[watch.scope, watch.port] = own
            found.origins[name] = document.origin("watch", nth, "gpus")
    found.values["watches"] = tuple(good)
    found.origins.setdefault("watch", document.origin("watch", 0))


def _check_distinct(first: str, watches: Iterable[Watch]) -> None:
    """first: the place of the watch that another may repeat. Raise ValueError if one does."""
    try:
        check_distinct(watches)
    except ValueError as err:
        raise ValueError(f"{err} (the first is in {first})") from err


def _watch(fields: Fields, nth: int, document: toml.Document, found: _Found) -> Watch | None:
    """The watch that a table describes. None, and the problems, if none."""
    before = len(found.problems)
    origins = {key: document.origin("watch", nth, key) for key in _OF_WATCH}
    port = found.read(_port, fields.get("port"), origins["port"])
    scope = found.read(partial(_scope, port), fields.get("scope", str(HOST)), origins["scope"])
    behind = UNKNOWN if port is None else str(Watch(port, scope=scope or HOST))
    gpus = found.read(partial(_gpus, behind), fields.get("gpus", []), origins["gpus"])
    if port is None or scope is None or gpus is None:
        return None
    watch = Watch(port, gpus, scope)
    found.read(check_reads_back, watch, origins["scope"])
    return watch if len(found.problems) == before else None


def _port(raw: object) -> int:
    if isinstance(raw, str):
        number = raw.strip() if raw.strip().isdecimal() else "a number such as 8080"
        raise ValueError(f"port is text; write {number} without quotes")
    if not isinstance(raw, int) or isinstance(raw, bool):
        raise ValueError("a watch needs a port, as in port = 8080")
    return parse_port(raw)


def _scope(port: int | None, raw: object) -> Scope:
    if not isinstance(raw, str):
        raise ValueError(f'port {port or UNKNOWN}: scope is a text, as in scope = "container:web"')
    return parse_scope(raw, port)


def _gpus(behind: str, raw: object) -> tuple[str, ...]:
    if not isinstance(raw, list):
        raise ValueError(f'port {behind}: gpus is a list, as in gpus = ["gpu0"]')
    return parse_gpus(map(str, raw), behind)


def _take_gpus(raw: object, document: toml.Document, found: _Found) -> None:
    if not isinstance(raw, dict):
        found.refuse([f"{document.origin('gpu')}: write each GPU as a table with its name, as in [gpu.gpu0]"])
        return
    for name, entry in raw.items():
        origin = document.origin("gpu", name)
        found.read(check_gpu, name, origin)
        fields = found.read(partial(values.table, f"gpu.{name}"), entry, origin) or {}
        found.origins[f"gpu.{name}"] = origin
        own = _own(fields, _PER_GPU, ("gpu", name), f"gpu.{name}", document, found)
        found.gpus[name] = found.gpus.get(name, {}) | own


def _take_labels(raw: object, document: toml.Document, found: _Found) -> None:
    """Each by itself: a label of one file does not replace those of another."""
    fields = found.read(partial(values.table, "labels"), raw, document.origin("labels"))
    found.origins["labels"] = document.origin("labels")
    for name, value in (fields or {}).items():
        origin = document.origin("labels", name)
        together = found.read(values.labels, {**dict(found.values.get("labels", ())), name: value}, origin)
        if together is not None:
            found.values["labels"] = together
            found.origins[f"labels.{name}"] = origin


def _own(
    fields: Fields, known: Mapping[str, Option], where: toml.Where, name: str, document: toml.Document, found: _Found
) -> dict[str, Any]:
    """What a table sets for itself. where: its place in the file; name: its name in the origins."""
    mine = _Found()
    others = _OF_WATCH if known is _PER_WATCH else ()
    for key, raw in fields.items():
        origin = document.origin(*where, key)
        if key in known:
            mine.take(known[key], raw, origin)
        elif key not in others:
            mine.refuse(unknown((*where, key), raw, [*others, *known], document))
    found.problems += mine.problems
    found.origins |= {f"{name}.{key}": origin for key, origin in mine.origins.items()}
    return mine.values


def for_gpu(settings: Settings, names: Iterable[str]) -> GpuSettings:
    """What a GPU goes by that is known under any of `names`."""
    return next((settings.gpus[name] for name in names if name in settings.gpus), settings.general)
