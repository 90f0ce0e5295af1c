"""What the arbiter tells the governor of itself: rules, what is set on whom, and what GVM shows."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import TypeVar

from memscaler.config.gpuctl import GpuctlRule
from memscaler.core.gpuctl import Controlled, Gpuctl, GvmReading, Knob, RuleState
from memscaler.daemon.child_words import MOST_BYTES
from memscaler.gvm.book import Book
from memscaler.gvm.hands import Hands, Standing
from memscaler.gvm.rules import Hold, Phase
from memscaler.gvm.wanted import RuleAt, Want

MOST_READINGS, MOST_CONTROLLED = 150, 100  # a message has an end (daemon/child_words.py); the rest is counted
_KEPT_BYTES = 16 * 1024  # of a message, for what is told once
_TEXT = 500
_MOST_FIRST = 64  # GPUs
_NUMBER_BYTES, _MARKS_BYTES = 24, 8  # of a number; of what stands around a field
_ESCAPED, _ESCAPE_BYTES = frozenset('"\\'), 12  # what JSON writes otherwise, and the longest that a character becomes
_KNOBS = (Knob.COMPUTE_FREEZE, Knob.MEMORY_LIMIT, Knob.COMPUTE_PRIORITY, Knob.CPU_NICE, Knob.CPU_WEIGHT)
_MORE = {"rules": "rules are", "controlled": "are", "readings": "processes are"}

_Told = TypeVar("_Told", RuleState, Controlled, GvmReading)


def gpuctl(hands: Hands, readings: tuple[GvmReading, ...], read_unix_s: float, problem: str) -> Gpuctl:
    """Everything. problem: of the arbiter itself."""
    standing = hands.standing()
    book, prepared = standing.book, standing.prepared
    names = {aim.subject.pid: aim.subject.name for aim in prepared.aims}
    named = tuple(replace(each, name=names.get(each.pid, each.name)) for each in readings)
    controlled = tuple(sorted(_controlled(book, standing.wants), key=_rank))
    whole = Gpuctl(
        pid=os.getpid(),
        problem=problem or prepared.problem,
        gvm=not prepared.gvm_why_not,
        gvm_why_not=prepared.gvm_why_not,
        rules=tuple(_rule(rule, standing) for rule in standing.rules.values()),
        controlled=controlled,
        first=tuple(sorted(hands.first())),
        readings=named,
        read_unix_s=read_unix_s,
    )
    return fitting(whole)


def fitting(whole: Gpuctl) -> Gpuctl:
    """What fits into a message: rules first, then what is set, then what is read. notes: how much is left out."""
    left = MOST_BYTES - _KEPT_BYTES
    rules, left = _first(whole.rules, len(whole.rules), left)
    controlled, left = _first(whole.controlled, MOST_CONTROLLED, left)
    readings, left = _first(whole.readings, MOST_READINGS, left)
    missing = {
        "rules": len(whole.rules) - len(rules),
        "controlled": len(whole.controlled) - len(controlled),
        "readings": len(whole.readings) - len(readings),
    }
    notes = {what: f"{count} more {_MORE[what]} not shown" for what, count in missing.items() if count}
    problem, why_not = whole.problem[:_TEXT], whole.gvm_why_not[:_TEXT]
    first = whole.first[:_MOST_FIRST]
    return replace(
        whole, rules=rules, controlled=controlled, readings=readings, notes=notes, problem=problem, gvm_why_not=why_not,
        first=first,
    )  # fmt: skip


def _first(items: tuple[_Told, ...], most: int, left_bytes: int) -> tuple[tuple[_Told, ...], int]:
    """As many as there is room for, and what is left of it. The estimate is cheap, and never too low."""
    kept: list[_Told] = []
    for item in items[:most]:
        size = _most_bytes(item)
        if size > left_bytes:
            break
        kept.append(item)
        left_bytes -= size
    return tuple(kept), left_bytes


def _most_bytes(item: _Told) -> int:
    """At most so many bytes of JSON."""
    return sum(len(each.name) + _size(getattr(item, each.name)) + _MARKS_BYTES for each in fields(item))


def _size(value: object) -> int:
    if isinstance(value, str):
        is_plain = value.isascii() and value.isprintable() and not _ESCAPED & set(value)
        return len(value) if is_plain else _ESCAPE_BYTES * len(value)
    if isinstance(value, tuple):
        return sum(_size(each) + _MARKS_BYTES for each in value)
    return _NUMBER_BYTES


def gist(told: Gpuctl) -> object:
    """What is told when it changes: not that time goes by."""
    rules = tuple(replace(rule, seconds=0.0) for rule in told.rules)
    return replace(told, rules=rules, readings=(), read_unix_s=0.0, notes={})


def _rule(rule: GpuctlRule, standing: Standing) -> RuleState:
    mine = {at[1]: hold for at, hold in standing.holds.items() if at[0] == rule.name}
    on = {watch: hold for watch, hold in mine.items() if hold.is_on}
    counts = standing.counts[rule.name]
    since_s = min((hold.since_s for hold in on.values()), default=0.0)
    why_not, waits = _why_not(rule, mine, standing.prepared.why_not, standing.book)
    return RuleState(
        name=rule.name,
        when=rule.when,
        holds=bool(on),
        since_unix_s=round(time.time() - (time.monotonic() - since_s), 1) if on else 0.0,
        for_=tuple(sorted(on)),
        why_not=why_not,
        waits=waits,
        applied=counts.applied,
        released=counts.released,
        failed=counts.failed,
        seconds=counts.seconds,
        first_s=counts.first_s,
    )


def _why_not(rule: GpuctlRule, mine: Mapping[str, Hold], found: Mapping[RuleAt, str], book: Book) -> tuple[str, bool]:
    """What keeps it from doing what it wants, and whether it only waits for its time.

    Of several reasons the one that is nearest to an act.
    """
    problems = [item.problem for item in book.items.values() if item.want is not None and rule.name in item.want.rules]
    if problem := next((each for each in problems if each), ""):
        return problem, False
    if not mine:
        return "none of its watches is there", False
    for watch, hold in sorted(mine.items()):
        if hold.is_on and (why := found.get((rule.name, watch))):
            return why, False
        if hold.phase is Phase.SPENT or (rule.when == "quiet" and hold.why_not):
            return hold.why_not, hold.waits
    return next((why for at, why in sorted(found.items()) if at[0] == rule.name), ""), False


def _rank(each: Controlled) -> tuple[bool, int, int, str]:
    """What went wrong first, then by process: the same order each time, and no trouble among those not shown."""
    return not each.problem, each.pid, _KNOBS.index(each.knob), each.uuid


def _controlled(book: Book, whose: Mapping[str, Want]) -> Iterator[Controlled]:
    for key, item in book.items.items():
        want = item.want or whose.get(key)
        if want is None:
            continue
        for subject in want.subjects:
            yield Controlled(
                rule=want.rule,
                pid=subject.pid,
                name=subject.name,
                knob=item.place.knob,
                means=item.place.means,
                value=item.ours[-1] if item.ours else want.value,
                was=None if item.was is None else item.was.value,
                uuid=item.place.uuid,
                unit=subject.unit,
                container=subject.container,
                since_unix_s=item.since_unix_s if item.ours and not item.lost else 0.0,  # lost: it is somebody else's
                problem=item.problem,
            )
