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

from memscaler.config import values
from memscaler.config.ports import Watch, check_distinct, parse_watch
from memscaler.config.values import Address, Parse

ENV_PREFIX = "MEMSCALER_"
DEFAULT_FILE = Path("/etc/memscaler/config.toml")
LEVERS = ("auto", "memory-clock", "graphics-clock", "pstate")


@dataclass(frozen=True, slots=True)
class Option:
    """One setting. env: variables that are asked for it, in this order."""

    field: str
    key: str
    default: str
    help: str
    parse: Parse
    per_gpu: bool
    env: tuple[str, ...]


def option(default: str, parse: Parse, *, help: str, per_gpu: bool = False, env: str = "", key: str = "") -> Any:  # noqa: A002
    """A field of Settings. `default` is written as an operator would write it, and parsed like everything else."""
    meta = {"default": default, "parse": parse, "help": help, "per_gpu": per_gpu, "env": env, "key": key}
    return field(default=parse(default) if default else (), metadata=meta)


def watches(raw: object) -> tuple[Watch, ...]:
    """Watches from flags and variables, specifications parted by blanks; the file has [[watch]] tables instead."""
    specs = raw if isinstance(raw, (list, tuple)) else str(raw).split()
    found = tuple(parse_watch(str(spec)) for spec in specs)
    check_distinct(found)
    return found


@dataclass(frozen=True, slots=True)
class GpuSettings:
    """What one GPU goes by, everything decided."""

    lever: str
    idle_after_s: float
    min_dwell_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, checked.

    gpus: what a GPU with overrides goes by (merged with the general settings), by the operator's name of the GPU.
    origins: key -> where its value came from.
    """

    watches: tuple[Watch, ...] = option(
        "",
        watches,
        # Not MEMSCALER_PORT: Kubernetes sets that by itself for a service of our name.
        key="watch",
        help="Ports whose connections count, and the GPUs behind them: 8080:gpu0 or 8080:gpu0,gpu1 or 8080.",
    )
    idle_after_s: float = option(
        "60s", values.duration_s(0.1), per_gpu=True, help="Quiet time after which a GPU is parked."
    )
    min_dwell_s: float = option(
        "1s", values.duration_s(0), per_gpu=True, help="Shortest time between two parks of one GPU."
    )
    lever: str = option("auto", values.choice(*LEVERS), per_gpu=True, help=f"How a GPU is parked: {', '.join(LEVERS)}.")
    metrics: Address | None = option(
        "127.0.0.1:9823", values.address_or_off, help='Where Prometheus metrics are served, or "off".'
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
    dry_run: bool = option("false", values.switch, help="Watch and decide, but only log what would be parked.")
    simulate: tuple[str, ...] = option("", values.words, help="Boards of the simulated driver to use, e.g. a40,p40.")
    log_format: str = option(
        "auto", values.choice("auto", "console", "json"), help="auto: console on a terminal, else json."
    )
    log_level: str = option(
        "info", values.choice("debug", "info", "warning", "error"), help="The least that is logged."
    )
    gpus: Mapping[str, GpuSettings] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def general(self) -> GpuSettings:
        """What a GPU without overrides goes by."""
        return GpuSettings(self.lever, self.idle_after_s, self.min_dwell_s)


def _options() -> tuple[Option, ...]:
    found = []
    for item in dataclasses.fields(Settings):
        if item.metadata:
            key = item.metadata["key"] or item.name.removesuffix("_s")
            names = (ENV_PREFIX + key.upper(), *filter(None, [item.metadata["env"]]))
            meta = item.metadata
            found.append(Option(item.name, key, meta["default"], meta["help"], meta["parse"], meta["per_gpu"], names))
    return tuple(found)


OPTIONS = _options()
BY_KEY = {each.key: each for each in OPTIONS}
