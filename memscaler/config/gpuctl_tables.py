"""[[gpuctl]] tables and [gvm] become rules, or sentences about everything that is wrong with them."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from memscaler.config import stage_tables, tables
from memscaler.config.gpuctl import GpuctlRule, Gvm
from memscaler.config.gpuctl_keys import GPUCTL_KEYS, GVM_KEYS, SERVER
from memscaler.config.near import meant, nearest
from memscaler.config.servers import Server
from memscaler.config.stages import StageRule, Suspend
from memscaler.config.tables import Place
from memscaler.core.stages import Stage

GPUCTL, GVM = "gpuctl", "gvm"
TABLES = (GPUCTL, GVM)
_OTHER_WORDS = {
    "when": "while",
    "watch": "watches",
    "servers": "watches",
    "ports": "watches",
    "match": "processes",
    "units": "processes",
    "priority": "compute_priority",
    "limit": "memory_limit",
    "nice": "cpu_nice",
    "weight": "cpu_weight",
}
_OTHER_GVM_WORDS = {"proc": "proc_root", "debugfs": "root", "gvm_gpu_map": "gpu_map"}


@dataclass(slots=True)
class Found:
    """Rules as the files have them, and what [gvm] says by field.

    names: (name, place) of all rules, also of those with something wrong in them. amiss: of these the ones that can be
    read, but for what is wrong with them: something else may be doubtful, too.
    """

    rules: list[GpuctlRule] = field(default_factory=list)
    names: list[tuple[str, str]] = field(default_factory=list)
    amiss: list[GpuctlRule] = field(default_factory=list)
    gvm: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)


def read(table: str, raw: object, place: Place, found: Found) -> None:
    """What stands under one of TABLES in a file. place: of it."""
    if table == GVM:
        _read_gvm(raw, place, found)
    elif isinstance(raw, list):
        for nth, entry in enumerate(raw):
            rule = _rule(entry, partial(place, nth), found)
            found.rules += [rule] if rule else []
    else:
        found.problems.append(f"{place()}: write each rule as a [[gpuctl]] table")


def _rule(raw: object, place: Place, found: Found) -> GpuctlRule | None:
    problems = found.problems
    if not isinstance(raw, dict):
        problems.append(f"{place()}: gpuctl: {raw!r} is not a table")
        return None
    before = len(problems)
    told = tables.read(raw, GPUCTL_KEYS, place, problems, other_words=_OTHER_WORDS)
    if "name" in told:
        found.names.append((told["name"], place()))
    for key, example in (("name", 'name = "batch"'), ("processes", 'processes = ["unit:batch.service"]')):
        if key not in raw:
            problems.append(f"{place()}: a rule needs {key}, as in {example}")
    for key in ("processes", "watches"):
        if key in told and not told[key]:
            more = " (leave it out: the rule is for all)" if key == "watches" else ""
            problems.append(f"{place(key)}: {key} is empty{more}")
    problems += _together(told, place)
    if len(problems) == before:
        return GpuctlRule(**told, origin=place())
    if "name" in told and "how" not in told and len(told) == len(raw):
        found.amiss.append(GpuctlRule(**told, origin=place()))
    return None


def _together(told: Mapping[str, Any], place: Place) -> list[str]:
    """What does not go together."""
    wrong = []
    if "how" in told and not told.get("freeze"):
        wrong.append(f"{place('how')}: how tells by what to freeze, and nothing is frozen: write freeze = true")
    is_busy = told.get("when", "busy") == "busy"
    if is_busy and told.get("freeze") and any(match.kind == SERVER for match in told.get("processes", ())):
        wrong.append(f"{place('processes')}: while its clients are at work a server cannot be frozen")
    if not is_busy and "release_after_s" in told:
        wrong.append(f'{place("release_after")}: release_after is for while = "busy": who comes ends quiet at once')
    return wrong


def _read_gvm(raw: object, place: Place, found: Found) -> None:
    """[gvm]; a later file adds to what an earlier one says."""
    if not isinstance(raw, dict):
        found.problems.append(f"{place()}: write it as a table, [gvm]")
        return
    told = tables.read(raw, GVM_KEYS, place, found.problems, other_words=_OTHER_GVM_WORDS)
    found.gvm |= told
    of_key = {each.field: each.key for each in GVM_KEYS}
    found.origins |= {f"{GVM}.{of_key[name]}": place(of_key[name]) for name in told}


def settled(found: Found) -> Gvm:
    """What [gvm] says, with the defaults."""
    return Gvm(**found.gvm)


# ---- what can be known when everything is read ----------------------------------------------------------------------


def wrong(found: Found, sleep: stage_tables.Found, servers: Collection[Server]) -> list[str]:
    """Everything. sleep: the deeper stages of the same files."""
    asleep = frozen_sleepers(found.rules, sleep.stages, Suspend(**sleep.suspend), servers)
    return [*found.problems, *conflicts(found.names), *strangers(found.rules, servers), *asleep]


def conflicts(names: Iterable[tuple[str, str]]) -> list[str]:
    """Sentences: names that two have. names: (name, place) of each rule."""
    return [
        f"{there}: two rules are called {name} (the first is in {here})"
        for (name, here), (other, there) in itertools.combinations(names, 2)
        if name == other
    ]


def strangers(rules: Iterable[GpuctlRule], servers: Iterable[Server]) -> list[str]:
    """Sentences: names of servers that nobody describes. Ports may come and go."""
    known = {server.name for server in servers}
    return [
        f"{rule.origin}: no [[server]] is called {name}{meant(nearest(name, known))}"
        for rule in rules
        for name in rule.watches
        if name not in known and not is_port(name)
    ]


def is_port(word: str) -> bool:
    """Whether it is "8080" or "8080@container:web", and no server's name."""
    return word.partition("@")[0].isdecimal()


def frozen_sleepers(
    rules: Iterable[GpuctlRule], stages: Collection[StageRule], suspend: Suspend, servers: Iterable[Server]
) -> list[str]:
    """Sentences: servers that would be frozen, and then asked to do something."""
    names = {server.name: str(server.port) for server in servers if server.port is not None}
    wrong = []
    for rule in rules:
        if rule.when == "busy" or not rule.freeze or not any(match.kind == SERVER for match in rule.processes):
            continue
        wrong += [
            f"{rule.origin}: a server that is frozen cannot enter {stage.stage} ({stage.origin}): leave one of them "
            "out, or name different servers"
            for stage in stages
            if stage.stage not in (Stage.PARK, Stage.SUSPEND) and _overlap(rule.watches, stage.servers, names)
        ]
        wrong += [
            f"{rule.origin}: before suspend ({stage.origin}) servers are told to {suspend.servers}, and a frozen one "
            'does not hear: write servers = "keep" in [suspend], or leave one of them out'
            for stage in stages
            if stage.stage is Stage.SUSPEND and suspend.servers != "keep"
        ]
    return wrong


def _overlap(watches: Collection[str], servers: Collection[str], names: Mapping[str, str]) -> bool:
    """Whether some server may be meant by both; () is all. names: port by name of a server."""
    ours, theirs = ({names.get(each, each) for each in some} for some in (watches, servers))
    return not ours or not theirs or bool(ours & theirs)
