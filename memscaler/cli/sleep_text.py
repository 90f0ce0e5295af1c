"""The deeper stages as text for people: a table of servers, what is to be said about each, and the machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from memscaler.cli.output import columns, labelled, plain, span
from memscaler.cli.paint import Paint
from memscaler.core.text import fine_energy

Entry = Mapping[str, Any]

NONE = "-"
HEADINGS = ("SERVER", "STAGE", "SINCE", "WAKES IN", "SLEPT")
NAME_WIDTH = 26
# As what a GPU in that state is painted.
STYLES = {"down": "parked", "entering": "cooling", "leaving": "cooling", "stuck": "unmanaged"}


def sleep_parts(told: Entry | None, colour: Paint) -> list[str]:
    """Of the status document's key `sleep`; nothing where no stage is configured."""
    if not told:
        return []
    servers, parts = told["servers"], []
    if servers:
        table = columns([HEADINGS, *map(_row, servers)])
        parts.append(colour.column(table, "STAGE", [STYLES.get(each["rung"], "") for each in servers]))
    lines = [line for each in servers for line in _about(each, colour)]
    for stage in (each for each in told["gpus"] if each["seconds"] >= 1.0):
        lines += labelled(f"{plain(stage['gpu'])}:", saving_text(stage))
    for label, text in machine_texts(told["machine"]):
        style = "bad" if label == "machine stuck:" else ""
        lines += [colour(style, line) for line in labelled(label, text)]
    lines += [colour("bad", line) for line in labelled("sleeper:", plain(told["problem"]))]
    return [*parts, "\n".join(lines)]


def _row(server: Entry) -> Sequence[str]:
    slept_s = sum(each["seconds"] for each in server["stages"])
    name = plain(server["name"])
    return (
        name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH - 3]}...",
        plain(server["standing"]),
        NONE if server["since_s"] is None else span(server["since_s"]),
        wake_text(server),
        span(slept_s) if slept_s else NONE,
    )


def wake_text(server: Entry) -> str:
    """How long leaving its stage took in the median; while it is up, of the next one, or of the deepest it has been in.

    "-" where nobody has measured it.
    """
    known = {each["stage"]: each["wake"] for each in server["stages"] if each["wake"]}
    if server["stage"]:
        stage = server["stage"]
    else:
        stage = server["next"] if server["next"] in known else next(reversed(known), "")
    return seconds(known[stage]["median_s"]) if stage in known else NONE


def seconds(took_s: float) -> str:
    """For example "20ms", "0.4s", "12s", "1m 5s"."""
    if took_s < 0.0995:  # noqa: PLR2004  # two digits, here and below
        return f"{took_s * 1000:.0f}ms"
    return span(took_s) if took_s >= 9.95 else f"{took_s:.1f}s"  # noqa: PLR2004


def _about(server: Entry, colour: Paint) -> Iterable[str]:
    style = "bad" if server["rung"] == "stuck" else ""
    return [colour(style, line) for line in labelled(f"{plain(server['name'])}:", server_text(server))]


def server_text(server: Entry) -> str:
    """Who put it there, what comes next or why not, what failed, and what to do."""
    parts = [f"put to sleep by {plain(server['asleep_by'])}"] if server["asleep_by"] else []
    if server["next"]:
        when = "" if (server["next_in_s"] or 0.0) < 1.0 else f" in {span(server['next_in_s'])}, if it stays quiet"
        parts.append(f"next {plain(server['next'])}{when}")
    parts.append(_clause(server["why_not"]))
    parts += [f"{plain(each['stage'])} failed {times(each['failed'])}" for each in server["stages"] if each["failed"]]
    return "; ".join(filter(None, [*parts, _clause(server["note"])]))


def saving_text(spent: Entry) -> str:
    """What a stage of a GPU spared."""
    where = f"in {plain(spent['stage'])} for {span(spent['seconds'])}"
    watts = "" if spent["power_w"] is None else f" at {spent['power_w']:.1f} W"
    if not spent["compared_s"]:
        return f"{where}{watts}; what that saves is not known"
    joules = spent["saved_j"]
    what = "saved" if joules >= 0 else "lost"
    return f"{where}{watts}; {what} {fine_energy(abs(joules))} beyond parking"


def machine_texts(machine: Entry) -> list[tuple[str, str]]:
    """(label, sentence) about suspend; nothing where it is not wanted and nothing happened."""
    texts = []
    if machine["rung"] == "stuck":
        texts.append(("machine stuck:", "; ".join(map(_clause, machine["why_not"])) or "it could not be suspended"))
    elif machine["rung"] != "up":
        texts.append(("machine:", f"{plain(machine['rung'])} suspend for {span(machine['since_s'])}"))
    elif machine["never"]:
        left_s = machine["never_for_s"]
        until = "" if left_s is None else f", for another {span(left_s)}"
        texts.append(("machine:", f"is not suspended: {_clause(machine['never'])}{until}"))
    elif machine["wanted"] and machine["why_not"]:
        texts.append(("machine:", f"stays up: {'; '.join(map(_clause, machine['why_not']))}"))
    elif machine["wanted"] and machine["next_in_s"] is not None:
        texts.append(("machine:", f"suspend in {span(machine['next_in_s'])}, if everything stays quiet"))
    elif machine["wanted"]:
        texts.append(("machine:", "suspend when every server is quiet"))
    if machine["alarm_in_s"] is not None:
        texts.append(("alarm:", f"the machine wakes by itself in {span(machine['alarm_in_s'])}"))
    if machine["suspends"] or machine["failed"]:
        failed = f", failed {times(machine['failed'])}" if machine["failed"] else ""
        told = f"suspended {times(machine['suspends'])}, asleep for {span(machine['asleep_s'])} in all{failed}"
        if machine.get("wake"):
            told += f"; wakes in {seconds(machine['wake']['median_s'])}, servers and all"
        texts.append(("slept:", told + (f"; last: {_clause(machine['last'])}" if machine["last"] else "")))
    return texts


def times(count: int) -> str:
    """For example "once", "3 times"."""
    return "once" if count == 1 else f"{count} times"


def _clause(sentence: object) -> str:
    return plain(sentence).rstrip(".")
