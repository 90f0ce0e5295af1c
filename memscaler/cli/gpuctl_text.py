"""Rules for other programs as text for people: a table of them, and what each has set on which process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap
from typing import Any

from memscaler.cli.output import INDENT, WIDTH, columns, labelled, plain, span
from memscaler.cli.paint import Paint
from memscaler.config.amounts import bytes_text
from memscaler.core.gpuctl import NO_LIMIT, Knob, Means
from memscaler.observe.gpuctl import WHEN, done_text

Entry = Mapping[str, Any]

NONE = "-"
HEADINGS = ("RULE", "NOW", "SINCE", "ACTS IN", "WHEN")
NAME_WIDTH = 26
MOST_PROCESSES = 8  # of each rule
_STOPPED = {
    Means.GVM: "frozen by GVM",
    Means.CGROUP: "stopped by its cgroup",
    Means.SIGNAL: "stopped by SIGSTOP",
}
_WORDS = {Knob.COMPUTE_PRIORITY: "GPU priority", Knob.CPU_NICE: "nice", Knob.CPU_WEIGHT: "CPU weight"}


def gpuctl_parts(told: Entry | None, colour: Paint) -> list[str]:
    """Of the status document's key `gpuctl`; nothing where no rule is configured and all is well."""
    if not told:
        return []
    rules, parts = told["rules"], []
    if rules:
        table = columns([HEADINGS, *map(_row, rules)])
        parts.append(colour.column(table, "NOW", [paint_of(each, told) for each in rules]))
    lines = [line for each in rules for line in _about(each, told["controlled"], colour)]
    known = {each["name"] for each in rules}
    gone = [each for each in told["controlled"] if each["rule"] not in known]
    lines += [line for each in gone for line in labelled(f"{plain(each['rule'])} (gone):", process_text(each))]
    lines += [colour("bad", line) for line in labelled("arbiter:", plain(told["problem"]))]
    lines += [line for each in told["notes"] for line in labelled(f"{plain(each['about'])}:", plain(each["note"]))]
    return [*parts, "\n".join(lines)]


def _row(rule: Entry) -> Sequence[str]:
    name = plain(rule["name"])
    return (
        name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH - 3]}...",
        standing(rule),
        NONE if rule["since_s"] is None else span(rule["since_s"]),
        acts_in(rule),
        WHEN.get(rule["while"], plain(rule["while"])),
    )


def standing(rule: Entry) -> str:
    """In a word, or two."""
    return "in force" if rule["holds"] else "waiting"


def paint_of(rule: Entry, told: Entry) -> str:
    """As what a GPU is painted: red while something cannot be set, or let go."""
    if any(each["problem"] for each in told["controlled"] if each["rule"] == rule["name"]):
        return "unmanaged"
    return "held" if rule["holds"] else ""


def acts_in(rule: Entry) -> str:
    """From a client's coming until all was set, in the median of the last times."""
    act = rule["act"]
    if act is None:
        return NONE
    return f"{act['median_s'] * 1000:.1f} ms" if act["median_s"] < 1 else f"{act['median_s']:.1f}s"


def rule_text(rule: Entry, controlled: Iterable[Entry], *, problems_first: bool = False) -> str:
    """For whom it is in force, what it has set, what hinders it, in one line. problems_first: its end may be cut."""
    mine = [each for each in controlled if each["rule"] == rule["name"]]
    ports = f"for {', '.join(map(plain, rule['for']))}" if rule["holds"] and rule["for"] else ""
    failed = f"failed {rule['failed']} times" if rule["failed"] else ""
    does, hinders = (ports, done_text(mine)), (_clause(rule["why_not"]), failed.replace(" 1 times", " once"))
    return "; ".join(filter(None, (*hinders, *does) if problems_first else (*does, *hinders)))


def _about(rule: Entry, controlled: Iterable[Entry], colour: Paint) -> Iterable[str]:
    mine = [each for each in controlled if each["rule"] == rule["name"]]
    lines = labelled(f"{plain(rule['name'])}:", rule_text(rule, mine))
    mine.sort(key=lambda each: (not each["problem"], each["pid"]))
    for each in mine[:MOST_PROCESSES]:
        style = "bad" if each["problem"] else ""
        lines += [colour(style, line) for line in _item(process_text(each))]
    more = len(mine) - MOST_PROCESSES
    return [*lines, *(_item(f"and {more} more: `memscaler gpuctl ls`") if more > 0 else [])]


def _item(text: str) -> list[str]:
    return wrap(f"- {text}", WIDTH, initial_indent=f"{INDENT}  ", subsequent_indent=f"{INDENT}    ")


def process_text(each: Entry) -> str:
    """For example "4711 train (batch.service): stopped by SIGSTOP for 12s"."""
    where = plain(each["unit"] or each["container"])
    who = f"{plain(each['pid'])} {plain(each['name']) or NONE}" + (f" ({where})" if where else "")
    gpu = f" on {plain(each['gpu'])}" if each["gpu"] else ""
    problem = _clause(each["problem"])
    if each["since_s"] is None:  # it is only wanted
        return f"{who}: {plain(each['knob'])}{gpu}: {problem or 'is being set'}"
    since = f" for {span(each['since_s'])}"
    return f"{who}: {_value_text(each)}{gpu}{since}{_was(each)}" + (f"; {problem}" if problem else "")


def _value_text(each: Entry) -> str:
    knob, value = each["knob"], each["value"]
    if knob == Knob.COMPUTE_FREEZE:
        return _STOPPED.get(each["means"], "stopped") if value else "not stopped"
    if knob == Knob.MEMORY_LIMIT:
        return "no memory limit" if value == NO_LIMIT else f"at most {bytes_text(value)}"
    return f"{_WORDS.get(knob, plain(knob))} {plain(value)}"


def _was(each: Entry) -> str:
    was = each["was"]
    if was is None or each["knob"] == Knob.COMPUTE_FREEZE:
        return ""
    return f", was {bytes_text(was) if each['knob'] == Knob.MEMORY_LIMIT else plain(was)}"


def _clause(sentence: object) -> str:
    return plain(sentence).rstrip(".")
