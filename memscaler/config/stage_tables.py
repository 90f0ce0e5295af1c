"""[[stage]] tables and [suspend] become rules, or sentences about everything that is wrong with them."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from memscaler.config import tables
from memscaler.config.near import meant, nearest
from memscaler.config.ports import check_gpu
from memscaler.config.servers import Server
from memscaler.config.stage_keys import STAGE_KEYS, SUSPEND_KEYS
from memscaler.config.stages import Gateway, StageRule, ladder
from memscaler.config.tables import Place
from memscaler.config.values import write_duration
from memscaler.core.stages import LADDER, Stage

STAGE, SUSPEND = "stage", "suspend"
_ONLY_FOR = {"level": Stage.SERVER_SLEEP, "program": Stage.CHECKPOINT}
_NOT_FOR_ALL = {  # keys that mean nothing for what is not a server's own stage, and what to write instead
    Stage.PARK: {
        "servers": "one GPU's time is idle_after in its [gpu.NAME]",
        "force": "",
        "wake_on": "what counts as work is set by touch",
        "enter_timeout": "",
        "leave_timeout": "",
    },
    Stage.SUSPEND: {
        "servers": "it is the whole machine",
        "force": "what keeps the machine up is in [suspend]",
        "wake_on": "",
        "enter_timeout": "write timeout in [suspend]",
        "leave_timeout": "",
    },
}
_OTHER_WORDS = {"server": "servers", "idle_after": "after", "stage": "do", "timeout": "enter_timeout"}


@dataclass(slots=True)
class Found:
    """Rules as the files have them, park with them, and what [suspend] says by field."""

    stages: list[StageRule] = field(default_factory=list)
    suspend: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)


def read_stages(raw: object, place: Place, found: Found) -> None:
    """All [[stage]] tables of a file. place: of the list."""
    if not isinstance(raw, list):
        found.problems.append(f"{place()}: write each stage as a [[stage]] table")
        return
    for nth, entry in enumerate(raw):
        rule = _stage(entry, partial(place, nth), found.problems)
        if rule is not None:
            found.stages.append(rule)


def _stage(raw: object, place: Place, problems: list[str]) -> StageRule | None:
    if not isinstance(raw, dict):
        problems.append(f"{place()}: stage: {raw!r} is not a table")
        return None
    told = tables.read(raw, STAGE_KEYS, place, problems, other_words=_OTHER_WORDS)
    for key, example in (("do", 'do = "server-sleep"'), ("after", 'after = "10m"')):
        if key not in raw:
            problems.append(f"{place()}: a stage needs {key}, as in {example}")
    stage = told.get("stage")
    if stage is not None:
        problems += [f"{place(key)}: {sentence}" for key, sentence in _misplaced(stage, raw)]
    if "servers" in told and not told["servers"]:
        problems.append(f"{place('servers')}: servers is empty (leave it out: the stage is for all)")
    # What stage it is, when and for whom is all that others have to be compared with: so all is told at once.
    known = {"stage", "after_s"} <= told.keys() and ("servers" not in raw or told.get("servers"))
    return StageRule(**told, origin=place()) if known else None


def _misplaced(stage: Stage, raw: Mapping[str, object]) -> Iterable[tuple[str, str]]:
    """Keys that are there and mean nothing for this stage."""
    for key in raw:
        if _ONLY_FOR.get(key, stage) != stage:
            yield key, f"{key} is for {_ONLY_FOR[key]}, not for {stage}"
        elif key in (others := _NOT_FOR_ALL.get(stage, {})):
            yield key, f"{key} is not for {stage}" + (f" ({others[key]})" if others[key] else "")


def read_suspend(raw: object, place: Place, found: Found) -> None:
    """[suspend]; a later file adds to what an earlier one says."""
    if not isinstance(raw, dict):
        found.problems.append(f"{place()}: write it as a table, [suspend]")
        return
    told = tables.read(raw, SUSPEND_KEYS, place, found.problems)
    found.suspend |= told
    found.origins[SUSPEND] = place()
    of_key = {each.field: each.key for each in SUSPEND_KEYS}
    found.origins |= {f"{SUSPEND}.{of_key[name]}": place(of_key[name]) for name in told}


def settled(rules: Iterable[StageRule]) -> tuple[StageRule, ...]:
    """In the order of the ladder, without park; those for all after those that name their servers."""
    deeper = [rule for rule in rules if rule.stage is not Stage.PARK]
    return tuple(sorted(deeper, key=lambda rule: (LADDER.index(rule.stage), not rule.servers)))


def parks_after(rules: Iterable[StageRule]) -> StageRule | None:
    """The rule that says when GPUs are parked, if one does."""
    return next((rule for rule in rules if rule.stage is Stage.PARK), None)


def conflicts(rules: Collection[StageRule]) -> list[str]:
    """Sentences: a stage twice for the same server, and one that comes before a shallower one."""
    problems = []
    for first, second in itertools.combinations(rules, 2):
        if first.stage == second.stage and (same := _same(first, second)) is not None:
            problems.append(f"{second.origin}: {first.stage} is there twice{same} (the first is in {first.origin})")
    names = {name for rule in rules for name in rule.servers}
    park = [rule for rule in rules if rule.stage is Stage.PARK][:1]
    late: dict[tuple[str, str], str] = {}
    for each in [(), *((name,) for name in sorted(names))]:
        for above, below in itertools.pairwise([*park, *ladder(settled(rules), each)]):
            if below.after_s <= above.after_s:
                late.setdefault((above.origin, below.origin), _too_early(below, above))
    return [*problems, *late.values()]


def _same(first: StageRule, second: StageRule) -> str | None:
    """For whom both are, as the end of a sentence; None: for nobody."""
    both = [name for name in second.servers if name in first.servers]
    if both:
        return f" for {', '.join(both)}"
    return "" if not first.servers and not second.servers else None


def _too_early(rule: StageRule, above: StageRule) -> str:
    return (
        f"{rule.origin}: {rule.stage} after {write_duration(rule.after_s)} has to come after {above.stage}, "
        f"which comes after {write_duration(above.after_s)} ({above.origin})"
    )


def early(rules: Iterable[StageRule], idle_after_s: float, origin: str) -> list[str]:
    """Sentences: stages that would come before their GPUs are parked. idle_after_s: 0 is learned, nobody knows."""
    return [
        f"{rule.origin}: {rule.stage} after {write_duration(rule.after_s)} has to come after parking: "
        f"idle_after is {write_duration(idle_after_s)} ({origin})"
        for rule in rules
        if rule.stage is not Stage.PARK and rule.after_s <= idle_after_s
    ]


def strangers(rules: Iterable[StageRule], gateways: Iterable[Gateway], servers: Iterable[Server]) -> list[str]:
    """Sentences: names of servers that nobody describes. Ports and GPUs may come and go."""
    known = {server.name for server in servers}
    named = [(rule.origin, name) for rule in rules for name in rule.servers]
    named += [(gateway.origin, gateway.server) for gateway in gateways if gateway.server]
    return [
        f"{origin}: no [[server]] is called {name}{meant(nearest(name, known))}"
        for origin, name in named
        if name not in known and not name.partition("@")[0].isdecimal() and not _is_gpu(name)
    ]


def _is_gpu(name: str) -> bool:
    try:
        check_gpu(name)
    except ValueError:
        return False
    return True
