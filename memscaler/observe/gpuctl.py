"""What is set on the applications of GPUs, as samples of metrics and as a part of the status document.

Nothing where no rule is configured and GVM's driver is not there.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from memscaler.core.gpuctl import NO_LIMIT, Controlled, Gpuctl, GvmReading, Knob, RuleState
from memscaler.core.snapshot import Histogram, Snapshot
from memscaler.core.summary import rank
from memscaler.observe.words import NONE, span

ARBITER_DOWN = "Nothing more is set, or let go: memscaler status tells why."
HINDERED = "Not all is as it wants: memscaler status tells why."
NOTHING = "It has found nothing to set: memscaler status tells why."
WHEN = {"busy": "while clients are at work", "quiet": "while all is quiet"}
_DONE = {
    Knob.COMPUTE_FREEZE: "stopped",
    Knob.MEMORY_LIMIT: "limited in memory",
    Knob.COMPUTE_PRIORITY: "with another GPU priority",
    Knob.CPU_NICE: "with another CPU priority",
    Knob.CPU_WEIGHT: "with another CPU share",
}

Sample = tuple[str, tuple[str, ...], "float | Histogram | None"]


def is_told(gpuctl: Gpuctl) -> bool:
    """Whether there is anything to show."""
    return gpuctl != Gpuctl()


def is_set(controlled: Controlled) -> bool:
    """Whether memscaler has turned it, and not only wants to. It may be so and have a problem: it cannot be undone."""
    return controlled.since_unix_s > 0


def is_frozen(controlled: Controlled) -> bool:
    """Whether a rule keeps it from working, now."""
    return controlled.knob is Knob.COMPUTE_FREEZE and bool(controlled.value) and is_set(controlled)


# ---- metrics --------------------------------------------------------------------------------------------------------


def samples(snapshot: Snapshot) -> Iterator[Sample]:
    """All metrics of rules and of GVM."""
    gpuctl = snapshot.gpuctl
    if not is_told(gpuctl):
        return
    yield "memscaler_arbiter_up", (), gpuctl.pid is not None
    for rule in gpuctl.rules:
        yield from _of_rule(rule)
    now_unix_s = time.time()
    frozen_s = {rule.name: 0.0 for rule in gpuctl.rules}
    for each in filter(is_frozen, gpuctl.controlled):  # also of a rule that is gone, until it is undone
        frozen_s[each.rule] = max(frozen_s.get(each.rule, 0.0), now_unix_s - each.since_unix_s)
    for name, seconds in frozen_s.items():
        yield "memscaler_gpuctl_frozen_seconds", (name,), seconds
    counts = Counter((each.rule, str(each.knob), str(each.means)) for each in filter(is_set, gpuctl.controlled))
    for key, count in sorted(counts.items()):
        yield "memscaler_gpuctl_controlled", key, count
    identities = (*(gpu.identity for gpu in snapshot.gpus), *(each.identity for each in snapshot.ungoverned))
    yield from _of_readings(gpuctl.readings, {who.uuid: str(who.index) for who in identities})


def _of_rule(rule: RuleState) -> Iterator[Sample]:
    yield "memscaler_gpuctl_rule_active", (rule.name, rule.when), rule.holds
    yield "memscaler_gpuctl_rule_seconds_total", (rule.name,), rule.seconds
    for outcome in ("applied", "released", "failed"):
        yield "memscaler_gpuctl_actions_total", (rule.name, outcome), getattr(rule, outcome)
    if rule.first_s:
        yield "memscaler_gpuctl_last_act_seconds", (rule.name,), rule.first_s[-1]


def _of_readings(readings: Iterable[GvmReading], index: Mapping[str, str]) -> Iterator[Sample]:
    """index: of GPUs by UUID. A GPU of whose UUID nobody knows is called by GVM's number, "gvm8"."""
    processes: dict[tuple[str, str, str], list[GvmReading]] = {}
    for each in readings:
        gpu = index.get(each.uuid, "") if each.uuid else f"gvm{each.number}"
        processes.setdefault((str(each.pid), gpu, each.uuid), []).append(each)
    for key, several in processes.items():
        yield "memscaler_gvm_memory_current_bytes", key, _together(sum, several, "memory_current_bytes")
        yield "memscaler_gvm_memory_limit_bytes", key, _limit(several)
        yield "memscaler_gvm_swap_bytes", key, _together(sum, several, "swap_bytes")
        yield "memscaler_gvm_compute_priority", key, _together(min, several, "compute_priority")
        yield "memscaler_gvm_compute_freeze", key, _together(min, several, "compute_freeze")
        yield "memscaler_gvm_kernels_submitted_total", key, _together(sum, several, "kernels_submitted")
        yield "memscaler_gvm_kernels_ended_total", key, _together(sum, several, "kernels_ended")
        yield "memscaler_gvm_kernels_pending", key, _together(sum, several, "kernels_pending")


def _together(put: Callable[[list[int]], int], several: Iterable[GvmReading], field: str) -> int | None:
    """Of a process that GVM has under several thread ids; None: nobody tells."""
    known = [value for each in several if (value := getattr(each, field)) is not None]
    return put(known) if known else None


def _limit(several: Iterable[GvmReading]) -> float | None:
    known = [each.memory_limit_bytes for each in several if each.memory_limit_bytes is not None]
    if not known:
        return None
    return math.inf if NO_LIMIT in known else float(sum(known))


# ---- the status document --------------------------------------------------------------------------------------------


def document(snapshot: Snapshot, names: Mapping[str, str], now_unix_s: float) -> dict[str, Any] | None:
    """None where there is nothing to tell. names: of GPUs, by UUID."""
    gpuctl = snapshot.gpuctl
    if not is_told(gpuctl):
        return None
    return {
        "pid": gpuctl.pid,
        "problem": gpuctl.problem,
        "gvm": gpuctl.gvm,
        "gvm_why_not": gpuctl.gvm_why_not,
        "gvm_at": None if gpuctl.gvm_at is None else asdict(gpuctl.gvm_at),
        "rules": [_rule(each, now_unix_s) for each in gpuctl.rules],
        "controlled": [_controlled(each, names, now_unix_s) for each in gpuctl.controlled],
        "readings": [_reading(each, names) for each in gpuctl.readings],
        "read_s": _ago(gpuctl.read_unix_s, now_unix_s),
        "notes": [{"about": about, "note": note} for about, note in gpuctl.notes.items()],
    }


def _rule(rule: RuleState, now_unix_s: float) -> dict[str, Any]:
    """act: how long it took from a client's coming until all was set, of the last times."""
    took_s = sorted(rule.first_s)
    act = {"count": len(took_s), "median_s": rank(took_s, 0.5), "worst_s": took_s[-1]} if took_s else None
    return {
        "name": rule.name,
        "while": rule.when,
        "holds": rule.holds,
        "since_s": _ago(rule.since_unix_s, now_unix_s) if rule.holds else None,
        "for": list(rule.for_),
        "why_not": rule.why_not,
        "waits": rule.waits,
        "applied": rule.applied,
        "released": rule.released,
        "failed": rule.failed,
        "seconds": round(rule.seconds, 1),
        "act": act,
    }


def _controlled(each: Controlled, names: Mapping[str, str], now_unix_s: float) -> dict[str, Any]:
    return {
        "rule": each.rule,
        "pid": each.pid,
        "name": each.name,
        "unit": each.unit,
        "container": each.container,
        "gpu": names.get(each.uuid, each.uuid),
        "knob": str(each.knob),
        "means": str(each.means),
        "value": each.value,
        "was": each.was,
        "since_s": _ago(each.since_unix_s, now_unix_s),
        "problem": each.problem,
    }


def _reading(each: GvmReading, names: Mapping[str, str]) -> dict[str, Any]:
    """memory_limit_bytes: None where there is none, or nobody tells; limited tells which."""
    limit = each.memory_limit_bytes
    return {
        "pid": each.pid,
        "tid": each.tid,
        "name": each.name,
        "gpu": names.get(each.uuid, each.uuid),
        "number": each.number,
        "memory_current_bytes": each.memory_current_bytes,
        "memory_limit_bytes": None if limit == NO_LIMIT else limit,
        "limited": None if limit is None else limit != NO_LIMIT,
        "swap_bytes": each.swap_bytes,
        "compute_priority": each.compute_priority,
        "compute_freeze": each.compute_freeze,
        "kernels_submitted": each.kernels_submitted,
        "kernels_ended": each.kernels_ended,
        "kernels_pending": each.kernels_pending,
    }


def _ago(unix_s: float, now_unix_s: float) -> float | None:
    return round(max(0.0, now_unix_s - unix_s), 1) if unix_s else None


# ---- the page -------------------------------------------------------------------------------------------------------


def rows(told: Mapping[str, Any] | None) -> Iterator[tuple[str, dict[str, str]]]:
    """(key, texts) of each rule, from the document. No names of programs, units or people."""
    for rule in () if told is None else told["rules"]:
        mine = [each for each in told["controlled"] if each["rule"] == rule["name"]] if told else []
        programs = done_text(mine)
        idle = NOTHING if rule["holds"] and not programs else ""
        texts: dict[str, str] = {
            "rule": rule["name"],
            "when": WHEN.get(str(rule["while"]), str(rule["while"])),
            "standing": "in force" if rule["holds"] else "waiting",
            "paint": "held" if rule["holds"] else "disabled",
            "since": "" if rule["since_s"] is None else f"for {span(rule['since_s'])}",
            "why": HINDERED if any(each["problem"] for each in mine) else idle,
            "programs": programs or NONE,
            "acts_in": NONE if rule["act"] is None else f"{rule['act']['median_s'] * 1000:.1f} ms",
        }
        yield rule["name"], texts


def done_text(controlled: Iterable[Mapping[str, Any]]) -> str:
    """What is set on how many processes: "2 stopped, 1 limited in memory"."""
    processes: dict[str, set[int]] = {}
    for each in controlled:
        if each["since_s"] is not None:
            processes.setdefault(each["knob"], set()).add(each["pid"])
    return ", ".join(f"{len(processes[knob])} {words}" for knob, words in _DONE.items() if knob in processes)


def remarks(told: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """(about, text) of what is to be noted on the page."""
    if told is not None and told["problem"]:
        yield "Other programs", ARBITER_DOWN
