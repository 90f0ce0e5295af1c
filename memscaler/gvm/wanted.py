"""What should be set where, of all that the rules in force want. Pure.

Of two rules for one place the stricter holds: a freeze before none, the lowest limit, the lowest priority, the highest
nice, the lowest weight. When one lets go the other's stays.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from memscaler.core.gpuctl import Knob
from memscaler.gvm.processes import Subject
from memscaler.gvm.turning import Place

RuleAt = tuple[str, str]  # a rule's name, and the key of a watch

STRICTER: Mapping[Knob, Callable[[Iterable[int]], int]] = {
    Knob.MEMORY_LIMIT: min,
    Knob.COMPUTE_PRIORITY: max,  # lower is higher
    Knob.COMPUTE_FREEZE: max,
    Knob.CPU_NICE: max,  # lower is higher
    Knob.CPU_WEIGHT: min,
}


@dataclass(frozen=True, slots=True)
class Aim:
    """What a rule wants of one process as long as it is in force for a watch."""

    rule: str
    watch: str
    subject: Subject
    place: Place
    value: int


@dataclass(frozen=True, slots=True)
class Want:
    """What is wanted at a place. subjects: who is there. rule: whose value it is; rules: of all that want anything."""

    place: Place
    value: int
    rule: str
    rules: frozenset[str]
    subjects: tuple[Subject, ...]


def wanted(aims: Iterable[Aim], on: Collection[RuleAt]) -> dict[str, Want]:
    """By the key of the place. on: the rules that are in force, and where. Freezes come first."""
    here: dict[str, list[Aim]] = {}
    for aim in aims:
        if (aim.rule, aim.watch) in on:
            here.setdefault(aim.place.key, []).append(aim)
    wants = {key: _strictest(those) for key, those in here.items()}
    return dict(sorted(wants.items(), key=lambda each: each[1].place.knob is not Knob.COMPUTE_FREEZE))


def _strictest(aims: list[Aim]) -> Want:
    place = aims[0].place
    value = STRICTER[place.knob](aim.value for aim in aims)
    rule = min(aim.rule for aim in aims if aim.value == value)
    subjects = {(aim.subject.pid, aim.subject.started): aim.subject for aim in aims}
    return Want(place, value, rule, frozenset(aim.rule for aim in aims), tuple(subjects.values()))
