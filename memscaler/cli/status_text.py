"""The status document as text for people: tables of 80 columns, then what there is to say about each GPU."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap
from typing import Any

from memscaler.cli.gpuctl_text import gpuctl_parts
from memscaler.cli.output import WIDTH, columns, labelled, plain, span
from memscaler.cli.paint import Paint
from memscaler.cli.sleep_text import sleep_parts
from memscaler.core.text import energy, idle_time
from memscaler.servers.beside import nobody_watches, unwatched, whose

NONE = "-"
SCOPE_WIDTH = 19
MOST_GPUS = 2
RESUME = "`memscaler resume` when the driver is back"
NO_WATCH = "no server is watched: name one with `--port 8080:gpu0` or let it `--discover`; see `memscaler ports`"
# What follows on a state that lasts until something happens.
NEXT = {
    "awake": "cooling, when its connections are quiet",
    "parked": "awake, when a client connects or speaks",
    "held": "governed again, when the last hold ends",
    "unmanaged": "none by itself",
}

Entry = Mapping[str, Any]


def status_text(document: Entry, colour: Paint, width: int = WIDTH) -> str:
    """Everything. width: of the terminal, 80 or more."""
    gpus, watches = document["gpus"], document["watches"]
    parts = ["\n".join(_headline(document, colour))]
    if gpus:
        table = columns([GPU_HEADINGS, *map(_gpu_row, gpus)])
        parts.append(colour.column(table, "STATE", [plain(gpu["state"]) for gpu in gpus]))
        parts += ["\n".join(_gpu_details(gpu, watches, colour)) for gpu in gpus]
    if watches:
        rows = [(*_watch_row(watch, SCOPE_WIDTH + width - WIDTH),) for watch in watches]
        table = columns([WATCH_HEADINGS, *rows])
        parts.append(colour.column(table, "OPEN", ["awake" if watch["connections"] else "" for watch in watches]))
    parts += _servers(document.get("servers", ()), colour)
    parts += sleep_parts(document.get("sleep"), colour)
    parts += gpuctl_parts(document.get("gpuctl"), colour)
    parts.append("\n".join(_remarks(document, colour)))
    return "\n\n".join(filter(None, parts))


def _headline(document: Entry, colour: Paint) -> list[str]:
    does = {"released": "has let go of the driver", "paused": "is paused"}.get(document["mode"], "governs")
    dry = ", dry run: no GPU is touched" if document["dry_run"] else ""
    life = f"up {span(document['uptime_s'])}, pid {plain(document['pid'])}"
    driver = f", driver {plain(document['driver_version'])}" if document["driver_version"] else ""
    lines = [colour("strong", f"memscaler {plain(document['version'])} {does}{dry}") + f"; {life}{driver}"]
    if document["mode"] == "paused":
        return lines + labelled("by", f"{hold_text(document['paused'])}; `memscaler resume` ends it")
    if document["mode"] == "released":
        return lines + labelled("by", _released(document["released"])) + _bad(colour, labelled("REMEDY:", RESUME))
    if document["gpus"]:
        lines.append(_saved_by_all(document["gpus"], document.get("saved_since_unix_s")))
    return lines


def _saved_by_all(gpus: Sequence[Entry], since_unix_s: float | None) -> str:
    today_j, total_j = (sum(gpu.get(key) or 0.0 for gpu in gpus) for key in ("energy_saved_today_j", "energy_saved_j"))
    since = f" since {time.strftime('%Y-%m-%d', time.localtime(since_unix_s))}" if since_unix_s else ""
    return f"saved: {energy(today_j)} today, {energy(total_j)}{since}"


def _released(released: Entry) -> str:
    reason = f": {plain(released['reason'])}" if released["reason"] else ""
    return f"{plain(released['owner'])}{reason}, {span(time.time() - released['since_unix_s'])} ago"


# ---- GPUs ----------------------------------------------------------------------------------------------------------

GPU_HEADINGS = ("GPU", "STATE", "SINCE", "POWER", "MEMORY", "GRAPHICS", "SAVED TODAY", "IN ALL")


def _gpu_row(gpu: Entry) -> Sequence[str]:
    today_j = gpu.get("energy_saved_today_j")
    return (
        plain(gpu["gpu"]),
        plain(gpu["state"]),
        span(gpu["since_s"]),
        NONE if gpu["power_w"] is None else f"{gpu['power_w']:.1f} W",
        mhz(gpu["memory_clock_mhz"]),
        mhz(gpu["graphics_clock_mhz"]),
        NONE if today_j is None else energy(today_j),
        energy(gpu["energy_saved_j"]),
    )


def _gpu_details(gpu: Entry, watches: Iterable[Entry], colour: Paint) -> list[str]:
    lines = [f"{plain(gpu['gpu'])}  {plain(gpu['name'])}, " + lever_text(gpu)]
    lines += labelled("why:", plain(gpu["reason"]))
    lines += labelled("next:", next_text(gpu))
    lines += labelled("auto:", idle_text(gpu))
    lines += labelled("open:", open_text(gpu, watches))
    lines += labelled("saving:", baseline_text(gpu))
    for hold in gpu["holds"]:
        lines += labelled("held by", hold_text(hold))
    lines += _bad(colour, labelled("conflict:", plain(gpu["conflict"])))
    return lines + _bad(colour, labelled("REMEDY:", plain(gpu["remedy"])))


def idle_text(gpu: Entry) -> str:
    """An idle time that was learned, and why; "" for one that was set."""
    why = plain(gpu.get("idle_why", ""))
    return f"parks after {idle_time(gpu['idle_after_s'])}: {why}" if why else ""


def baseline_text(gpu: Entry) -> str:
    """What its saving is counted from, "" before its first park."""
    baseline_w, source = gpu.get("baseline_w"), plain(gpu.get("baseline_source", ""))
    if baseline_w is None:
        return ""
    whence = {"earlier": "measured before an earlier park", "calibrated": "as calibrated"}
    return f"counted from {baseline_w:.1f} W, {whence.get(source, 'measured ' + source)}"


def lever_text(gpu: Entry) -> str:
    """What would lower its clocks, or has: "memory-clock at 405 MHz"."""
    intent = gpu.get("intent")
    if intent is None:
        return f"lever {plain(gpu['lever'])}" if gpu["lever"] not in ("", "none") else "no lever"
    target = f"P{plain(intent['target'])}" if intent["lever"] == "pstate" else f"{plain(intent['target'])} MHz"
    return f"{plain(intent['lever'])} at {target}"


def next_text(gpu: Entry) -> str:
    """What comes next, and when."""
    if gpu["next_in_s"] is None:
        return NEXT.get(str(gpu["state"]), "")
    condition = ", if it stays quiet" if gpu["state"] == "cooling" else ""
    return f"{plain(gpu['next'])} in {span(gpu['next_in_s'])}{condition}"


def open_text(gpu: Entry, watches: Iterable[Entry]) -> str:
    """Live connections on each port that drives it."""
    parts = []
    for watch in watches:
        if gpu["gpu"] in watch["gpus"]:
            scope = f"@{plain(watch['scope'])}" if watch["scope"] not in ("", "host") else ""
            silent = f" ({plain(watch['silent'])} silent)" if watch["silent"] else ""
            parts.append(f"{plain(watch['connections'])}{silent} on port {plain(watch['port'])}{scope}")
    return ", ".join(parts) or "no port that drives it is watched"


def hold_text(hold: Entry) -> str:
    """By whom, why, how long, which one."""
    left_s = hold["expires_in_s"]
    parts = [plain(hold["owner"]) + (f": {plain(hold['reason'])}" if hold["reason"] else "")]
    parts.append("until it is ended" if left_s is None else f"{span(left_s)} left")
    return ", ".join([*parts, f"id {plain(hold['id'])}"] if hold["id"] else parts)


# ---- ports and the rest --------------------------------------------------------------------------------------------

WATCH_HEADINGS = ("PORT", "SCOPE", "SERVER", "GPUS", "OPEN", "SILENT", "LAST ACTIVE")


def _watch_row(watch: Entry, scope_width: int) -> Sequence[str]:
    scope, gpus = plain(watch["scope"] or "host"), watch["gpus"]
    return (
        plain(watch["port"]),
        shortened(scope, scope_width),
        plain(watch["server"] or NONE),
        (",".join(map(plain, gpus)) or NONE) if len(gpus) <= MOST_GPUS else f"{len(gpus)} GPUs",
        plain(watch["connections"]),
        plain(watch["silent"]),
        "now" if watch["connections"] > watch["silent"] else f"{span(watch['idle_s'])} ago",
    )


SERVER_HEADINGS = ("SERVER", "STATE", "SINCE", "PORT", "GPUS", "RESTARTS")
SERVER_WIDTH, SERVER_GPUS_WIDTH = 26, 14
# As what a GPU in that state is painted.
SERVER_STYLES = {"ready": "parked", "failed": "unmanaged", "starting": "cooling", "waiting": "cooling"}


def _servers(servers: Sequence[Entry], colour: Paint) -> list[str]:
    """The table of those that supervisors keep running, and what there is to say about each."""
    if not servers:
        return []
    table = columns([SERVER_HEADINGS, *map(_server_row, servers)])
    styles = [SERVER_STYLES.get(server_state(each), "") for each in servers]
    said = [line for each in servers for line in labelled(f"{plain(each['name'])}:", server_text(each))]
    return [colour.column(table, "STATE", styles), "\n".join(said)]


def _server_row(server: Entry) -> Sequence[str]:
    gpus = ",".join(map(plain, server["gpus"])) or NONE
    return (
        shortened(plain(server["name"]), SERVER_WIDTH),
        plain(server_state(server)),
        span(server["since_s"]),
        plain(server["port"] or NONE),
        gpus if len(gpus) <= SERVER_GPUS_WIDTH else f"{len(server['gpus'])} GPU{'s' * (len(server['gpus']) != 1)}",
        plain(server["restarts"]),
    )


def server_state(server: Entry) -> str:
    """In a word."""
    return str(server["state"]) if server["supervised"] else "unknown"


def server_text(server: Entry) -> str:
    """Why it is in its state, and what comes next."""
    last = "" if server["supervised"] else f"its supervisor has ended; it was {plain(server['state'])}"
    again = "" if server["starts_in_s"] is None else f"is started again in {span(server['starts_in_s'])}"
    return "; ".join(filter(None, (last, plain(server["reason"]).rstrip("."), again)))


def shortened(text: str, width: int) -> str:
    """At most so wide."""
    return text if len(text) <= width else text[: width - 3] + "..."


def _missing(waiting: Entry) -> str:
    """What a watch lacks: a server without a GPU is there, and may never have one."""
    return "nothing to park" if "uses no GPU" in waiting["reason"] else "waiting"


def _remarks(document: Entry, colour: Paint) -> list[str]:
    remarks = [("", f"left alone: {_named(each)}: {plain(each['reason'])}") for each in document["ungoverned"]]
    remarks += [
        ("", f"{_missing(each)}: {plain(each['watch'])}: {plain(each['reason'])}") for each in document["waiting"]
    ]
    for each in document["rivals"]:
        remarks.append(("unsure", f"rival: {plain(each['name'])} (pid {plain(each['pid'])}): {plain(each['what'])}"))
    for server in unwatched(document, document.get("servers", ())):
        remarks.append(("bad", plain(nobody_watches(server, whose(document["pid"])))))
    if not document["watches"] and not document["waiting"] and document["mode"] != "released":
        remarks.append(("", NO_WATCH))
    remarks += [("", f"notice: {plain(notice)}") for notice in document["notices"]]
    return [colour(style, line) for style, text in remarks for line in wrap(text, WIDTH, subsequent_indent="  ")]


def _named(gpu: Entry) -> str:
    return " ".join(map(plain, filter(None, (gpu["gpu"], gpu["name"]))))


def _bad(colour: Paint, lines: Sequence[str]) -> list[str]:
    return [colour("bad", line) for line in lines]


def mhz(clock_mhz: int | None) -> str:
    """For example "405 MHz"; "-" where nobody tells."""
    return NONE if clock_mhz is None else f"{clock_mhz} MHz"
