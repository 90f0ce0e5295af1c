"""`memscaler status`: what the running daemon knows, for people."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from memscaler.cli.options import Json, RuntimeDir
from memscaler.cli.output import columns, labelled, plain, print_json, show, span

COOLING, IF_QUIET = "cooling", ", if it stays quiet"
NONE = "-"
SCOPE_WIDTH = 24
MOST_GPUS = 2
RESUME = "`memscaler resume` when the driver is back"
JOULES_PER_WH = 3600.0
WH_PER_KWH = 1000.0

Entry = Mapping[str, Any]


def status(runtime_dir: RuntimeDir = None, as_json: Json = False) -> None:
    """Show what the daemon does now: the GPUs, since when and why, holds, ports, and what needs an operator.

    POWER and MEMORY are those of the last sample, in watts and MHz; SAVED is an estimate since the daemon's start.
    For root and members of group memscaler.
    """
    from memscaler.cli.client import Client

    document = Client(runtime_dir).status()
    if as_json:
        print_json(document)
    else:
        show(_text(document))


def _text(document: Entry) -> str:
    gpus, watches = document["gpus"], document["watches"]
    parts = ["\n".join(_headline(document))]
    if gpus:
        parts.append(columns([("GPU", "STATE", "SINCE", "LEVER", "POWER", "MEMORY", "SAVED"), *map(_gpu_row, gpus)]))
        parts += ["\n".join(lines) for lines in map(_gpu_details, gpus) if len(lines) > 1]
    if watches:
        parts.append(
            columns([("PORT", "SCOPE", "GPUS", "OPEN", "SILENT", "IDLE", "SERVER"), *map(_watch_row, watches)])
        )
    parts.append("\n".join(_remarks(document)))
    return "\n\n".join(filter(None, parts))


def _headline(document: Entry) -> list[str]:
    does = {"released": "has let go of the driver", "paused": "is paused"}.get(document["mode"], "governs")
    dry = ", dry run: no GPU is touched" if document["dry_run"] else ""
    life = f"up {span(document['uptime_s'])}, pid {plain(document['pid'])}"
    driver = f", driver {plain(document['driver_version'])}" if document["driver_version"] else ""
    lines = [f"memscaler {plain(document['version'])} {does}{dry}; {life}{driver}"]
    if document["mode"] == "paused":
        return lines + labelled("by", f"{_hold(document['paused'])}; `memscaler resume` ends it")
    if document["mode"] == "released":
        return lines + labelled("by", _released(document["released"])) + labelled("REMEDY:", RESUME)
    return lines


def _released(released: Entry) -> str:
    reason = f": {plain(released['reason'])}" if released["reason"] else ""
    return f"{plain(released['owner'])}{reason}, {span(time.time() - released['since_unix_s'])} ago"


def _gpu_row(gpu: Entry) -> Sequence[str]:
    power_w, memory_mhz = gpu["power_w"], gpu["memory_clock_mhz"]
    return (
        plain(gpu["gpu"]),
        plain(gpu["state"]),
        span(gpu["since_s"]),
        plain(gpu["lever"] or NONE),
        NONE if power_w is None else f"{power_w:.1f} W",
        NONE if memory_mhz is None else f"{memory_mhz} MHz",
        _energy(gpu["energy_saved_j"]),
    )


def _gpu_details(gpu: Entry) -> list[str]:
    lines = [f"{plain(gpu['gpu'])}  {plain(gpu['name'])}"]
    lines += labelled("why:", plain(gpu["reason"]))
    if gpu["next_in_s"] is not None:
        lines += labelled("next:", f"{gpu['next']} in {span(gpu['next_in_s'])}" + IF_QUIET * (gpu["state"] == COOLING))
    for hold in gpu["holds"]:
        lines += labelled("held by", _hold(hold))
    lines += labelled("conflict:", plain(gpu["conflict"]))
    return lines + labelled("REMEDY:", plain(gpu["remedy"]))


def _hold(hold: Entry) -> str:
    left_s = hold["expires_in_s"]
    parts = [plain(hold["owner"]) + (f": {plain(hold['reason'])}" if hold["reason"] else "")]
    parts.append("until it is ended" if left_s is None else f"{span(left_s)} left")
    return ", ".join([*parts, f"id {plain(hold['id'])}"] if hold["id"] else parts)


def _watch_row(watch: Entry) -> Sequence[str]:
    scope, gpus = plain(watch["scope"] or "host"), watch["gpus"]
    return (
        plain(watch["port"]),
        scope if len(scope) <= SCOPE_WIDTH else scope[: SCOPE_WIDTH - 3] + "...",
        (",".join(map(plain, gpus)) or NONE) if len(gpus) <= MOST_GPUS else f"{len(gpus)} GPUs",
        plain(watch["connections"]),
        plain(watch["silent"]),
        span(watch["idle_s"]),
        plain(watch["server"] or NONE),
    )


def _remarks(document: Entry) -> list[str]:
    lines = [f"left alone: {_named(each)}: {plain(each['reason'])}" for each in document["ungoverned"]]
    lines += [f"waiting: {plain(each['watch'])}: {plain(each['reason'])}" for each in document["waiting"]]
    lines += [
        f"rival: {plain(each['name'])} (pid {plain(each['pid'])}): {plain(each['what'])}" for each in document["rivals"]
    ]
    return lines + [f"notice: {plain(notice)}" for notice in document["notices"]]


def _named(gpu: Entry) -> str:
    return " ".join(map(plain, filter(None, (gpu["gpu"], gpu["name"]))))


def _energy(joules: float) -> str:
    hours = joules / JOULES_PER_WH
    return f"{hours:.1f} Wh" if hours < WH_PER_KWH else f"{hours / WH_PER_KWH:.2f} kWh"
