"""The one schema. Flags, variables, the file, the defaults, their checks and their help all come from here.

A field's key is its name without the unit: `idle_after_s` is `idle_after` in the file, `--idle-after` as a flag and
MEMSCALER_IDLE_AFTER in the environment.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memscaler.config import hours, values
from memscaler.config.gpuctl import GpuctlRule, Gvm
from memscaler.config.hours import Window
from memscaler.config.ports import Watch, check_distinct, parse_watch
from memscaler.config.servers import Server
from memscaler.config.stages import Gateway, StageRule, Suspend
from memscaler.config.values import Address, Kind
from memscaler.core.watch import Quiet, Scope, WatchSettings

ENV_PREFIX = "MEMSCALER_"
DEFAULT_FILE = Path("/etc/memscaler/config.toml")
CONTROL_SOCKET = "control.sock"  # in the runtime directory; here, so that who only asks need not load the server
MAX_TOUCH_BYTES = 1 << 30
LEVERS = ("auto", "memory-clock", "graphics-clock", "pstate")


@dataclass(frozen=True, slots=True)
class Option:
    """One setting. env: variables that are asked for it, in this order.

    per_gpu, per_watch: a [gpu.NAME] or a [[watch]] table may set it for itself.
    """

    field: str
    key: str
    default: str
    help: str
    parse: Kind[Any]
    per_gpu: bool
    per_watch: bool
    env: tuple[str, ...]


def option(
    default: str,
    parse: Kind[Any],
    *,
    help: str,  # noqa: A002
    per_gpu: bool = False,
    per_watch: bool = False,
    env: str = "",
    key: str = "",
) -> Any:
    """A field of Settings. `default` is written as an operator would write it, and parsed like everything else."""
    meta = {"default": default, "parse": parse, "help": help, "env": env, "key": key}
    meta |= {"per_gpu": per_gpu, "per_watch": per_watch}
    return field(default=parse(default) if default else (), metadata=meta)


def _watches(raw: object) -> tuple[Watch, ...]:
    """Watches from flags and variables, specifications parted by blanks; the file has [[watch]] tables instead."""
    specs = raw if isinstance(raw, (list, tuple)) else str(raw).split()
    found = tuple(parse_watch(str(spec)) for spec in specs)
    check_distinct(found)
    return found


WATCHES = Kind(_watches, values.LIST, lambda found: list(map(str, found)))
WINDOWS = Kind(hours.parse_windows, values.LIST, lambda found: list(map(str, found)))


@dataclass(frozen=True, slots=True)
class GpuSettings:
    """What one GPU goes by, everything decided. idle_after_s: 0 is "auto"; wait_price: joules for a second."""

    lever: str
    idle_after_s: float
    wakes_per_hour: int
    wait_price: int
    min_dwell_s: float
    retry_after_s: float
    never_park: tuple[Window, ...]
    quiet_hours: tuple[Window, ...]
    quiet_idle_after_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, checked.

    gpus: what a GPU with overrides goes by (merged with the general settings), by the operator's name of the GPU.
    ports: the same for watches with overrides, by scope and port.
    servers: all that are described, with those that are not enabled.
    stages: what is below parking, in the order of the ladder. idle_after is when GPUs are parked, whoever said so.
    gpuctl: what is set on applications, in the order of the files.
    origins: key -> where its value came from; "gpu.gpu1.lever" and "watch.8080@container:web.quiet" for overrides.
    """

    watches: tuple[Watch, ...] = option(
        "",
        WATCHES,
        # Not MEMSCALER_PORT: Kubernetes sets that by itself for a service of our name.
        key="watch",
        help="Ports whose connections count, and the GPUs behind them: 8080:gpu0, 8080:gpu0,gpu1 or 8080; "
        "in a container or unit 8080@container:web:gpu0, 8080@unit:llama.service.",
    )
    discover: bool = option(
        "false",
        values.switch,
        help="Watch llama.cpp, llama-swap, Ollama, vLLM and SGLang servers as they come and go, also in containers.",
    )
    idle_after_s: float = option(
        "60s",
        values.duration_or_auto_s(0.1),
        per_gpu=True,
        help='Quiet time after which a GPU is parked. "auto": learned from the gaps between the work of that GPU.',
    )
    wakes_per_hour: int = option(
        "120",
        values.whole(4, 3600),
        per_gpu=True,
        help='The most wakes of one GPU in an hour with idle_after = "auto", 4 to 3600.',
    )
    wait_price: int = option(
        "1200",
        values.whole(0, 1_000_000),
        per_gpu=True,
        help='What a second of waiting for the clocks is worth, in joules, with idle_after = "auto": '
        "more means fewer wakes; 0 to 1000000.",
    )
    min_dwell_s: float = option(
        "250ms", values.duration_s(0), per_gpu=True, help="Shortest time between two parks of one GPU."
    )
    retry_after_s: float = option(
        "60s",
        values.duration_s(0.1),
        per_gpu=True,
        help="Time that a GPU is left alone after its driver has failed; doubles up to an hour.",
    )
    never_park: tuple[Window, ...] = option(
        "",
        WINDOWS,
        per_gpu=True,
        help='Times of the week at which nothing is parked, e.g. "Mon-Fri 09:00-18:00".',
    )
    quiet_hours: tuple[Window, ...] = option(
        "",
        WINDOWS,
        per_gpu=True,
        help='Times of the week at which quiet_idle_after is the idle time, e.g. "22:00-06:00".',
    )
    quiet_idle_after_s: float = option(
        "5s", values.duration_s(0.1), per_gpu=True, help="Quiet time after which a GPU is parked in quiet_hours."
    )
    conflict_pause_s: float = option(
        "10m",
        values.duration_s(1),
        help="Time that a GPU is left alone after another program has changed its clocks; doubles up to a day.",
    )
    lever: str = option("auto", values.choice(*LEVERS), per_gpu=True, help=f"How a GPU is parked: {', '.join(LEVERS)}.")
    quiet: Quiet = option(
        "no-traffic",
        values.member(Quiet),
        per_watch=True,
        help="When a server counts as quiet: no-traffic (open connections on which nothing is said do not count) "
        "or no-connections.",
    )
    ignore: tuple[str, ...] = option(
        "",
        values.prefixes,
        per_watch=True,
        help="Clients whose connections do not count, e.g. 127.0.0.1 or 10.0.0.0/8.",
    )
    touch_s: float = option(
        "250ms",
        values.duration_or_off_s,
        per_watch=True,
        help="A connection or request that is over sooner is a touch (a health check, a scrape): the GPU wakes for it, "
        'but need not stay awake for the whole idle time. "off": nothing is a touch.',
    )
    touch_bytes: int = option(
        "1024",
        values.whole(1, MAX_TOUCH_BYTES),
        per_watch=True,
        help="A touch has fewer bytes from the client than this.",
    )
    touch_cooldown_s: float = option(
        "50ms",
        values.duration_s(0.01),
        per_watch=True,
        help="Quiet time after a touch, instead of the whole idle time.",
    )
    probe: bool = option(
        "true",
        values.switch,
        key="probe_servers",
        help="Before parking, ask llama.cpp, vLLM and SGLang whether they still work on a request.",
    )
    metrics: Address | None = option(
        "127.0.0.1:9823", values.address_or_off, help='Where Prometheus metrics are served, or "off".'
    )
    labels: tuple[tuple[str, str], ...] = option(
        "",
        values.labels,
        help='What tells this machine from others of a fleet, e.g. {site = "berlin"}: the labels of '
        "memscaler_host_info.",
    )
    sample_every_s: float = option(
        "15s", values.duration_s(1), help="Time between two samples of power and clocks when nothing happens."
    )
    settle_timeout_s: float = option(
        "2s", values.duration_s(0.05), help="Time the clocks get to follow before a park counts as without effect."
    )
    loader_python: Path | None = option(
        "auto", values.path_or_auto, help='The python that has bcc; "auto": ours if it has, else /usr/bin/python3.'
    )
    runtime_dir: Path = option(
        "/run/memscaler",
        values.path,
        env="RUNTIME_DIRECTORY",  # set by systemd
        help="Where the journal of parked GPUs and the lock file are.",
    )
    state_dir: Path = option(
        "/var/lib/memscaler",
        values.path,
        env="STATE_DIRECTORY",  # set by systemd
        help="Where the history and calibrations are kept. With simulate the default is the runtime directory.",
    )
    dry_run: bool = option("false", values.switch, help="Watch and decide, but only log what would be parked.")
    simulate: tuple[str, ...] = option("", values.words, help="Boards of the simulated driver to use, e.g. a40,p40.")
    log_format: str = option(
        "auto", values.choice("auto", "console", "json"), help="auto: console on a terminal, else json."
    )
    log_level: str = option(
        "info", values.choice("debug", "info", "warning", "error"), help="The least that is logged."
    )
    gpus: Mapping[str, GpuSettings] = field(default_factory=dict)
    ports: Mapping[tuple[Scope, int], WatchSettings] = field(default_factory=dict)
    servers: tuple[Server, ...] = ()
    stages: tuple[StageRule, ...] = ()
    suspend: Suspend = Suspend()
    gateways: tuple[Gateway, ...] = ()
    gpuctl: tuple[GpuctlRule, ...] = ()
    gvm: Gvm = Gvm()
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def general(self) -> GpuSettings:
        """What a GPU without overrides goes by."""
        return GpuSettings(**{item.name: getattr(self, item.name) for item in dataclasses.fields(GpuSettings)})

    @property
    def kept_in(self) -> Path:
        """Where history and calibration are: what simulated boards do is not to be mistaken for the machine's own."""
        pretended = self.simulate and self.origins.get("state_dir", "default") == "default"
        return self.runtime_dir if pretended else self.state_dir

    def watch_settings(self, watch: Watch | None) -> WatchSettings:
        """What counts as work on a watched port. None: one that nobody named (discovered)."""
        general = WatchSettings(self.quiet, self.ignore, self.touch_s, self.touch_bytes, self.touch_cooldown_s)
        return general if watch is None else self.ports.get((watch.scope, watch.port), general)


def _options() -> tuple[Option, ...]:
    found = []
    for item in dataclasses.fields(Settings):
        if item.metadata:
            key = item.metadata["key"] or item.name.removesuffix("_s")
            names = (ENV_PREFIX + key.upper(), *filter(None, [item.metadata["env"]]))
            meta = item.metadata
            per = (meta["per_gpu"], meta["per_watch"])
            found.append(Option(item.name, key, meta["default"], meta["help"], meta["parse"], *per, names))
    return tuple(found)


OPTIONS = _options()
BY_KEY = {each.key: each for each in OPTIONS}
