"""A report that is too long for a message is told in short: what is asleep or wrong last of all. Pure.

The governor takes messages of so many bytes. A report that it never gets leaves `memscaler status` with an old one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from memscaler.core.stages import Rung, Sleep, SleepingServer

CLAUSE = 60  # characters of a sentence that is told in short


def told_in_short(report: Sleep, fits: Callable[[Sleep], bool]) -> Sleep:
    """The report, or the longest of what is less and fits; its `problem` says what is left out."""
    if fits(report):
        return report
    for shorter in _shorter(report):
        if fits(shorter):
            return shorter
    return _with_fewer(report, fits)


def _shorter(report: Sleep) -> Iterator[Sleep]:
    """Without what operators miss least, first of servers that are up, then of all."""
    whom: tuple[Callable[[SleepingServer], bool], ...] = (_is_well, lambda _: True)
    for at, is_meant in enumerate(whom):
        servers = tuple(_clipped(each) if is_meant(each) else each for each in report.servers)
        count = sum(map(is_meant, report.servers))
        of_whom = f"{count} servers that are up" if at == 0 else f"{count} servers"
        yield _saying(replace(report, servers=servers), f"the sentences about {of_whom} are cut short")
        bare = tuple(_bare(each) if is_meant(each) else each for each in servers)
        yield _saying(replace(report, servers=bare), f"nothing but its state is told of {of_whom}")


def _with_fewer(report: Sleep, fits: Callable[[Sleep], bool]) -> Sleep:
    """As many as fit, those first that are not well."""
    order = sorted(report.servers, key=_is_well)
    low, high = 0, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(_of_first(report, order, middle)) else (low, middle - 1)
    return _of_first(report, order, low)


def _of_first(report: Sleep, order: list[SleepingServer], count: int) -> Sleep:
    kept = {(each.port, each.scope) for each in order[:count]}
    servers = tuple(_bare(each) for each in report.servers if (each.port, each.scope) in kept)
    left_out = order[count:]
    asleep = sum(not _is_well(each) for each in left_out)
    which = f"{len(left_out)} of {len(order)} servers are not told of" + f", {asleep} of them not up" * bool(asleep)
    return _saying(replace(report, servers=servers), which)


def _saying(report: Sleep, what: str) -> Sleep:
    machine = replace(report.machine, why_not=tuple(map(_clip, report.machine.why_not[:20])))
    problem = "; ".join(filter(None, (report.problem, f"too many servers for one report: {what}")))
    return replace(report, machine=machine, problem=problem)


def _is_well(server: SleepingServer) -> bool:
    return server.rung is Rung.UP and not server.asleep_by


def _clipped(server: SleepingServer) -> SleepingServer:
    return replace(server, why_not=_clip(server.why_not), note=_clip(server.note))


def _bare(server: SleepingServer) -> SleepingServer:
    """Its totals are those that others go on from, so its counts stay; of the times, none."""
    totals = {stage: replace(each, wakes_s=()) for stage, each in server.totals.items()}
    if _is_well(server):
        return replace(server, why_not="", note="", next=None, next_unix_s=None, totals=totals)
    return replace(_clipped(server), totals=totals)


def _clip(text: str) -> str:
    return text if len(text) <= CLAUSE else f"{text[: CLAUSE - 3]}..."
