"""What stands behind `memscaler gpuctl set`: processes and KNOB=VALUE, in any order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memscaler.config import knobs
from memscaler.config.near import nearest
from memscaler.core.errors import UsageError
from memscaler.core.gpuctl import Knob

HINT = "see `memscaler gpuctl set --help`"
NO_PROCESS = "no process: name a PID, a UNIT or a PORT"


@dataclass(frozen=True, slots=True)
class Wanted:
    """targets: as they were written. values: what each knob is to be."""

    targets: tuple[str, ...]
    values: dict[Knob, int]


def parsed(words: Sequence[str], *, beyond: bool = False) -> Wanted:
    """Raise UsageError for what is no knob, no value of it, or no target."""
    targets: list[str] = []
    values: dict[Knob, int] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            targets.append(word)
            continue
        knob = knob_of(name)
        if knob in values:
            raise UsageError(f"{knob} is given twice", hint=HINT)
        try:
            values[knob] = knobs.parsed(knob, value, beyond=beyond)
        except ValueError as error:
            hint = "GVM's code takes 16, too: --beyond" if knob is Knob.COMPUTE_PRIORITY and value == "16" else HINT
            raise UsageError(f"{knob}: {error}", hint=hint) from error
    if not values:
        raise UsageError("nothing to set: no KNOB=VALUE", hint=f"knobs are {', '.join(Knob)}")
    if not targets:
        raise UsageError(NO_PROCESS, hint=HINT)
    return Wanted(tuple(dict.fromkeys(targets)), values)


def knobs_of(words: Sequence[str], hint: str) -> tuple[tuple[str, ...], tuple[Knob, ...]]:
    """Of get and reset: targets, and the knobs among the words. Raise UsageError for KNOB=VALUE, or for no target."""
    for word in words:
        if "=" in word:
            raise UsageError(f"{word!r}: nothing is set here", hint=f"memscaler gpuctl set ... {word}")
    found = tuple(dict.fromkeys(Knob(word) for word in words if word in set(Knob)))
    targets = tuple(dict.fromkeys(word for word in words if word not in set(Knob)))
    if not targets:
        raise UsageError(NO_PROCESS, hint=hint)
    return targets, found


def knob_of(name: str) -> Knob:
    """Raise UsageError with the nearest one."""
    try:
        return Knob(name)
    except ValueError:
        near = nearest(name, list(Knob))
        hint = f"did you mean {near}?" if near else f"knobs are {', '.join(Knob)}"
        raise UsageError(f"no such knob: {name!r}", hint=hint) from None
