"""Checks of what can be set on the processes of GPUs: GVM's driver, the kernel's means, and the arbiter.

What can be done here is found out above the daemon (memscaler/gvm/capability.py); the command hands it in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from memscaler.config.gpuctl import GpuctlRule
from memscaler.core.errors import DaemonNotRunning, MemscalerError
from memscaler.core.gpuctl import Ability, Knob
from memscaler.core.knobs import GVM_ONLY
from memscaler.daemon import rights
from memscaler.daemon.doctor.context import Context, NoAnswer
from memscaler.daemon.doctor.model import Verdict, failed, passed, unknown, warned
from memscaler.daemon.journals import CONTROLLED, tells_of_something

SEE = "see docs/gpuctl.md"
LEFT = "a memscaler that is gone has left processes frozen, or otherwise set"
NOBODY_ASKED = "no [[gpuctl]] rule wants it"
DRIVER = "MS-GVM-01"


def driver(context: Context) -> Verdict:
    """Whether GVM's driver is there, and may be used. It is needed by who wants it only."""
    if not context.is_root:
        return unknown("GVM's files are root's")
    rows = _rows(context)
    limit = rows[Knob.MEMORY_LIMIT]
    if limit.means:
        return passed(f"GVM's driver is there: {context.settings.gvm.root}/nvidia-uvm/processes")
    rules = context.settings.gpuctl
    if wanting := [rule for rule in rules if rule.values().keys() & GVM_ONLY or (rule.freeze and rule.how == "gvm")]:
        told = f"{_names(wanting)}: {limit.lacks or limit.why_not}"
        return failed(told, f'take memory_limit, compute_priority and how = "gvm" away; {_or_mount(context)}{SEE}')
    if limit.source:
        return warned(f"GVM's driver is there, and cannot be used: {limit.why_not}", SEE)
    return passed(f"{limit.lacks or limit.why_not}; {NOBODY_ASKED}")


def _or_mount(context: Context) -> str:
    """The one place that tells it: where GVM is wanted, and nothing is mounted."""
    root = context.settings.gvm.root
    try:
        is_empty = next(root.iterdir(), None) is None
    except OSError:
        is_empty = False
    return f"if GVM's driver is installed: mount -t debugfs debugfs {root}; " if is_empty else ""


def abilities(context: Context) -> Iterator[Verdict]:
    """The capability table, a verdict for each row."""
    rows = _rows(context)
    wanting: dict[str, list[GpuctlRule]] = {}
    for rule in context.settings.gpuctl:
        for knob in rule.values():
            wanting.setdefault(str(knob), []).append(rule)
    for what, row in rows.items():
        others = [rule for rule in wanting.get(what, []) if _otherwise(rule, row)]
        if others and context.is_root:
            hows = ", ".join(dict.fromkeys(rule.how for rule in others))
            seen = f"{_names(others)} by {hows}: here it can be done by {', '.join(row.means)} only"
            yield failed(seen, f"change how; {SEE}", row.what)
        else:
            yield _ability(row, wanting.get(what, []), is_root=context.is_root)


def arbiter(context: Context) -> Iterator[Verdict]:
    """Whether the process that does the rules runs, and what keeps each rule from doing what it wants."""
    rules = context.settings.gpuctl
    left = tells_of_something(context.settings.runtime_dir, CONTROLLED)
    if not rules and not left:
        yield passed("no [[gpuctl]] rule is configured")
        return
    try:
        told = context.status().get("gpuctl") or {}
    except DaemonNotRunning:
        if left:
            yield failed(LEFT, "sudo memscaler restore")
            return
        yield warned(f"{len(rules)} [[gpuctl]] rules, and no daemon runs", "see MS-DAEMON-01")
        return
    except (MemscalerError, NoAnswer) as error:
        yield unknown(f"the daemon does not tell: {error}", "see MS-DAEMON-01")
        return
    if not rules:
        yield passed("no [[gpuctl]] rule is configured; what was set is being put back")
        return
    if not told.get("pid"):
        problem = told.get("problem") or "the daemon runs none"
        yield failed(f"no arbiter runs: {problem}", "memscaler reload; then see the daemon's log")
        return
    for note in told.get("notes") or ():
        if note.get("about") == rights.ABOUT:
            yield warned(str(note.get("note")).removesuffix(f": {rights.REMEDY}"), rights.REMEDY, "rights")
    states = {state.get("name"): state for state in told.get("rules") or ()}
    for rule in rules:
        yield _rule(rule.name, states.get(rule.name))


def _otherwise(rule: GpuctlRule, row: Ability) -> bool:
    """Whether it wants to freeze in a way that cannot be had, where another can."""
    is_freeze = row.what == Knob.COMPUTE_FREEZE and rule.freeze
    return is_freeze and bool(row.means) and rule.how not in ("auto", *row.means)


def _rule(name: str, state: Mapping[str, Any] | None) -> Verdict:
    if state is None:
        return warned("the daemon does not have it", "memscaler reload", name)
    why_not = state.get("why_not")
    if why_not and not state.get("waits"):
        return warned(str(why_not), f"see `memscaler status`; {SEE}", name)
    return passed("in force" if state.get("holds") else f"waits: {why_not}" if why_not else "ready", name)


def _rows(context: Context) -> Mapping[str, Ability]:
    """By name."""
    return {row.what: row for row in context.abilities()}


def _ability(row: Ability, wanting: Iterable[GpuctlRule], *, is_root: bool) -> Verdict:
    able = bool(row.means) or (row.what not in set(Knob) and bool(row.source))
    if able:
        seen = f"by {', '.join(row.means)}" if row.means else f"told by {row.source}"
        return passed(f"{seen}; {row.note}" if row.note else seen, row.what)
    why_not = _said_once(row)
    if not is_root:
        return unknown(why_not, subject=row.what)
    rules = list(wanting)
    if rules:
        return failed(f"{_names(rules)}: {why_not}", f"change the rule; {SEE}", row.what)
    asked = f"; {NOBODY_ASKED}" if row.what in set(Knob) else ""
    return passed(f"not possible here: {why_not}{asked}", row.what)


def _said_once(row: Ability) -> str:
    """Why not; what is wrong with GVM itself is the first check's to tell."""
    if not row.lacks:
        return row.why_not
    return row.why_not.replace(row.lacks, f"GVM cannot be {'written' if row.source else 'seen'} ({DRIVER})")


def _names(rules: Iterable[GpuctlRule]) -> str:
    return "wanted by " + ", ".join(f'"{rule.name}"' for rule in rules)
