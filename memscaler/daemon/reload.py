"""Reading the configuration anew while GPUs are governed: checked as a whole, in a thread of its own, then applied.

Nothing is changed here. What cannot be changed while running refuses the whole, with what to do instead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

import structlog

from memscaler.config.schema import OPTIONS, GpuSettings, Option, Settings
from memscaler.config.servers import Server
from memscaler.core.adaptive import Learned
from memscaler.core.calibration import Calibration
from memscaler.core.errors import ConfigError, MemscalerError
from memscaler.daemon import rights, targets
from memscaler.daemon.adaptive import learned
from memscaler.daemon.discovery import Found
from memscaler.daemon.recall import recall
from memscaler.daemon.requests import Document
from memscaler.daemon.targets import Governed, Named
from memscaler.gpu.inventory import Driver
from memscaler.history import calibration

# Whatever is decided once, when the parts are put together.
FIXED = frozenset(
    {
        "metrics",
        "labels",
        "settle_timeout",
        "probe_servers",
        "loader_python",
        "runtime_dir",
        "state_dir",
        "dry_run",
        "simulate",
        "log_format",
        "log_level",
    }
)

log = structlog.get_logger()

Look = Callable[[], tuple[Found, ...]]
Unknown = Callable[[Mapping[str, GpuSettings]], Mapping[str, GpuSettings]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be governed from now on, everything checked. look: finds its servers; founds: its first answer.

    changes: a line for each setting that is another one. calibrations: what was measured, by GPU. learned: what
    the history says of GPUs that are new.
    """

    settings: Settings
    named: Named
    governed: Mapping[str, Governed]
    look: Look
    founds: tuple[Found, ...]
    changes: tuple[str, ...]
    calibrations: Mapping[str, Calibration]
    learned: Mapping[str, Learned]

    def other_levers(self, before: Mapping[str, Governed]) -> list[str]:
        """The GPUs that stay and are to be parked in another way."""
        return [
            uuid
            for uuid, each in self.governed.items()
            if uuid in before and each.settings.lever != before[uuid].settings.lever
        ]


@dataclass(frozen=True, slots=True)
class Reloaded:
    """How it went: a plan, or why there is none."""

    answer: Future[Document]
    plan: Plan | None = None
    error: MemscalerError | None = None


class Reloader:
    """Plans, one at a time. Used by the loop's thread, `plan` by any; reports from its own."""

    def __init__(
        self,
        load: Callable[[], Settings],
        settings: Settings,
        driver: Driver,
        look_for: Callable[[Settings], Look],
        unknown: Unknown,
        report: Callable[[object], None],
    ) -> None:
        """load: reads the configuration; may raise MemscalerError. settings: those in force.

        unknown: tells of which GPUs nothing has been learned yet.
        """
        self._load = load
        self._settings = settings
        self._driver = driver
        self._look_for = look_for
        self._unknown = unknown
        self._report = report
        self._busy = threading.Lock()

    def plan(self, answer: Future[Document]) -> None:
        """Begin; the report comes later. While one is under way, another is refused."""
        if not self._busy.acquire(blocking=False):
            self._report(Reloaded(answer, error=MemscalerError("a reload is under way", hint="try again in a moment")))
            return
        threading.Thread(target=self._run, args=(answer,), name="reload", daemon=True).start()

    def _run(self, answer: Future[Document]) -> None:
        try:
            self._report(Reloaded(answer, self._plan()))
        except MemscalerError as error:
            self._report(Reloaded(answer, error=error))
        except Exception as error:  # noqa: BLE001  # a mistake here must not end a governor that works
            self._report(Reloaded(answer, error=MemscalerError(f"{type(error).__name__}: {error}")))
        finally:
            self._busy.release()

    @property
    def in_force(self) -> Settings:
        """The settings. May be called by any thread."""
        return self._settings

    def read(self) -> Settings:
        """The configuration as it is now, which changes nothing. Raise MemscalerError. May be called by any thread."""
        return self._load()

    def applied(self, settings: Settings) -> None:
        """These are in force now."""
        self._settings = settings

    def _plan(self) -> Plan:
        settings = self._load()
        fixed = [line for key, line in _changes(self._settings, settings) if key in FIXED]
        if fixed:
            raise ConfigError(f"cannot be changed while running: {'; '.join(fixed)}", hint="restart memscaler instead")
        if not settings.watches and not settings.discover:
            raise ConfigError("no port to watch is left", hint="stop memscaler instead, or `memscaler pause`")
        named = targets.find_named(settings, self._driver)
        governed = targets.find_governed(settings, self._driver, named)
        look = self._look_for(settings)
        changes = tuple(line for _, line in _changes(self._settings, settings))
        changes += tuple(_out_of_reach(self._settings, settings))
        calibrations = calibration.load(settings.kept_in, log.warning)
        new = self._unknown({uuid: each.settings for uuid, each in governed.items()})
        known = learned(recall(settings.kept_in, new).gaps, new, calibrations) if new else {}
        return Plan(settings, named, governed, look, look(), changes, calibrations, known)


def _changes(before: Settings, after: Settings) -> Iterator[tuple[str, str]]:
    """(key, "key: old -> new") of every setting that is another one now, those of a GPU or a watch too."""
    for option in OPTIONS:
        if (change := _change(option, before, after)) is not None:
            yield option.key, change
    for what, table in (("gpus", "gpu"), ("ports", "watch")):
        old, new = getattr(before, what), getattr(after, what)
        for name in {**old, **new}:
            label = name if isinstance(name, str) else f"{name[1]}" + f"@{name[0]}" * bool(name[0])
            pair = old.get(name, before), new.get(name, after)
            changes = [
                _change(option, *pair) for option in OPTIONS if all(hasattr(each, option.field) for each in pair)
            ]
            for change in filter(None, changes):
                yield table, f"[{table}.{label}] {change}"
    for line in _server_changes(before.servers, after.servers):
        yield "server", line
    yield from (("stage", line) for line in _stage_changes(before, after))
    yield from (("gpuctl", line) for line in _gpuctl_changes(before, after))


def _server_changes(before: Iterable[Server], after: Iterable[Server]) -> Iterator[str]:
    """What the governor follows: servers that come and go, their ports and GPUs."""
    old, new = ({each.name: each for each in servers} for servers in (before, after))
    for name in {**old, **new}:
        if name not in new:
            yield f"server {name}: removed"
        elif name not in old:
            yield f"server {name}: added, {_followed(new[name])}"
        elif _followed(old[name]) != _followed(new[name]):
            yield f"server {name}: {_followed(old[name])} -> {_followed(new[name])}"


def _stage_changes(before: Settings, after: Settings) -> Iterator[str]:
    """What the sleeper follows; gateways are a process of their own."""
    old, new = ({(each.stage, each.servers): each for each in settings.stages} for settings in (before, after))
    for place in {**old, **new}:
        label = f"stage {place[0]}" + f" ({', '.join(place[1])})" * bool(place[1])
        if place not in new:
            yield f"{label}: removed"
        elif place not in old:
            yield f"{label}: added, after {new[place].after_s:g}s"
        elif old[place].after_s != new[place].after_s:
            yield f"{label}: after {old[place].after_s:g}s -> {new[place].after_s:g}s"
        elif old[place] != new[place]:
            yield f"{label}: changed"
    if before.suspend != after.suspend:
        yield "[suspend]: changed"


def _gpuctl_changes(before: Settings, after: Settings) -> Iterator[str]:
    """What the arbiter follows."""
    old, new = ({rule.name: rule for rule in settings.gpuctl} for settings in (before, after))
    for name in {**old, **new}:
        if name not in new:
            yield f"gpuctl {name}: removed"
        elif name not in old:
            yield f"gpuctl {name}: added, while {new[name].when}"
        elif old[name] != new[name]:
            yield f"gpuctl {name}: changed"
    if before.gvm != after.gvm:
        yield "[gvm]: changed"


def _out_of_reach(before: Settings, after: Settings) -> Iterator[str]:
    """Rules that come when the rights for them are gone already."""
    if before.gpuctl != after.gpuctl and (sentence := rights.sentence(rights.lacking(after.gpuctl))):
        yield f"{rights.ABOUT}: {sentence}: {rights.REMEDY}"


def _followed(server: Server) -> str:
    if not server.enabled:
        return "disabled"
    gpus = "the planner's choice" if server.placed else ", ".join(server.gpus) or "the GPUs that it uses"
    return f"port {server.port}: {gpus}" if server.port else "no port that is known"


def _change(option: Option, before: object, after: object) -> str | None:
    old, new = getattr(before, option.field), getattr(after, option.field)
    return None if old == new else f"{option.key}: {_plain(option, old)} -> {_plain(option, new)}"


def _plain(option: Option, value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join("=".join(each) if option.key == "labels" else str(each) for each in value) or "none"
    if isinstance(value, float) and option.field.endswith("_s"):
        return f"{value:g}s" if value else str(option.parse.write(value))
    return {"True": "true", "False": "false", "None": "off"}.get(str(value), str(value))
