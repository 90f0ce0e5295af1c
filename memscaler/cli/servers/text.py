"""Servers in words: a table, a state, a sentence about each that is not as it should be."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from memscaler.cli.output import WIDTH, columns, plain, span
from memscaler.cli.paint import Paint

NONE = "-"
NOT_RUNNING = "not running"  # described, and not applied yet
UNATTENDED = "unattended"  # described, and its supervisor does not run: it may have left the server running
HEADINGS = ("SERVER", "STATE", "SINCE", "PORT", "GPUS", "RESTARTS", "MODEL")
STYLES = {
    "ready": "ok",
    "failed": "bad",
    "waiting": "unsure",
    "starting": "awake",
    "stopping": "cooling",
    "disabled": "faint",
    "stopped": "faint",
    NOT_RUNNING: "faint",
    UNATTENDED: "faint",
}
SETTLED = frozenset({"ready", "failed", "disabled", "stopped"})
MODEL_WIDTH = 28
GPU_WIDTH = 20

Report = Mapping[str, Any]


def table(reports: Sequence[Report], colour: Paint, now_unix_s: float) -> str:
    """A row for each; below it, sentences about those that need somebody."""
    styles = [STYLES.get(str(report["state"]), "") for report in reports]
    made = columns([HEADINGS, *(_row(report, now_unix_s) for report in reports)])
    lines = [colour.column(made, "STATE", styles), *remarks(reports, colour, now_unix_s)]
    if changed := [_pending(report) for report in reports if report.get("pending")]:
        text = f"* described otherwise than it runs: {', '.join(changed)}; sudo memscaler servers apply"
        lines += ["", *textwrap.wrap(text, WIDTH, subsequent_indent="  ")]
    return "\n".join(lines)


def _pending(report: Report) -> str:
    return f"{plain(report['name'])} ({', '.join(map(plain, report['pending']))})"


def remarks(reports: Sequence[Report], colour: Paint, now_unix_s: float) -> list[str]:
    """Why a server is not ready, and what comes next."""
    lines = []
    for report in reports:
        if text := why(report, now_unix_s):
            style = STYLES.get(str(report["state"]), "")
            wrapped = textwrap.wrap(f"{plain(report['name'])}: {text}", WIDTH, subsequent_indent="  ")
            lines += [colour(style if style != "faint" else "", line) for line in wrapped]
    return [""] * bool(lines) + lines


def why(report: Report, now_unix_s: float) -> str:
    """Empty where the state says it all."""
    parts = [plain(report["reason"])] if report.get("reason") else []
    ended = plain(report.get("ended") or "")
    if ended and report["state"] in ("waiting", "failed") and not any(ended in part for part in parts):
        parts.append(f"ended with {ended}")
    if report.get("starts_unix_s"):
        parts.append(f"starts again in {span(report['starts_unix_s'] - now_unix_s)}")
    if report["state"] == "failed" and ended:  # what was never started has written nothing
        parts.append(f"memscaler servers logs {plain(report['name'])} has more")
    return "; ".join(parts)


def _row(report: Report, now_unix_s: float) -> Sequence[str]:
    since = report.get("since_unix_s")
    return (
        plain(report["name"]),
        plain(report["state"]) + "*" * bool(report.get("pending")),
        span(now_unix_s - since) if since else NONE,
        plain(report["port"] or NONE),
        gpus(report.get("names") or report["gpus"]),
        plain(report["restarts"]),
        _short(plain(report["model"]).rpartition("/")[2]) or NONE,
    )


def gpus(names: Sequence[str]) -> str:
    """Short enough for a table: UUIDs by their beginnings."""
    text = ",".join(plain(name)[:8] if plain(name).startswith("GPU-") else plain(name) for name in names)
    return (text if len(text) <= GPU_WIDTH else f"{len(names)} GPUs") or NONE


def _short(text: str) -> str:
    return text if len(text) <= MODEL_WIDTH else text[: MODEL_WIDTH - 3] + "..."
