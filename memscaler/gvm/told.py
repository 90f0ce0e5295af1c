"""What the arbiter tells the governor of itself: rules, what is set on whom, and what GVM shows."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

from memscaler.config.gpuctl import GpuctlRule
from memscaler.core.gpuctl import Controlled, Gpuctl, GvmReading, RuleState
from memscaler.gvm.book import Book
from memscaler.gvm.hands import Hands, Standing
from memscaler.gvm.rules import Hold, Phase
from memscaler.gvm.wanted import RuleAt, Want

MOST_READINGS, MOST_CONTROLLED = 150, 100  # a message has an end (daemon/child_words.py); the rest is counted


def gpuctl(hands: Hands, readings: tuple[GvmReading, ...], read_unix_s: float, problem: str) -> Gpuctl:
    """Everything. problem: of the arbiter itself."""
    standing = hands.standing()
    book, prepared = standing.book, standing.prepared
    names = {aim.subject.pid: aim.subject.name for aim in prepared.aims}
    named = tuple(replace(each, name=names.get(each.pid, each.name)) for each in readings)
    controlled = tuple(_controlled(book, standing.wants))
    notes = {}
    if len(named) > MOST_READINGS:
        notes["readings"] = f"{len(named) - MOST_READINGS} more processes are not shown"
    if len(controlled) > MOST_CONTROLLED:
        notes["controlled"] = f"{len(controlled) - MOST_CONTROLLED} more are not shown"
    return Gpuctl(
        pid=os.getpid(),
        problem=problem or prepared.problem,
        gvm=not prepared.gvm_why_not,
        gvm_why_not=prepared.gvm_why_not,
        rules=tuple(_rule(rule, standing) for rule in standing.rules.values()),
        controlled=controlled[:MOST_CONTROLLED],
        first=tuple(sorted(hands.first())),
        readings=named[:MOST_READINGS],
        read_unix_s=read_unix_s,
        notes=notes,
    )


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
                since_unix_s=item.since_unix_s if item.ours else 0.0,
                problem=item.problem,
            )
