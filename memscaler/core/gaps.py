"""The gaps between the work of a GPU: from what its watches report of their work, late and in pieces. Pure.

A GPU works while any of its watches does. Each watch reports the work that has come to light, and up to when it knows
all: whatever began before that has been reported, at least its begin. What is older than that on every watch is
settled: sorted by its begin, it leaves gaps, each of which is told once.

Where somebody may have missed work, the silence that follows has no known begin: it is no gap. A gap may be missing;
none is made up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

SHORTEST_NS = 250_000_000
"""Shorter silence between two pieces of work is no gap: no idle time is that short."""
MOST_PENDING = 1024
"""Pieces of work that wait for a watch that does not know; with more of them all is forgotten up to then."""

Span = tuple[int, int]
"""(begin, end) in ns of CLOCK_MONOTONIC."""


@dataclass(frozen=True, slots=True)
class Gap:
    """No work on any watch of this GPU, from the end of the last to the begin of the next. Times: CLOCK_MONOTONIC."""

    gpu: str
    start_ns: int
    end_ns: int

    @property
    def length_s(self) -> float:
        """In seconds."""
        return (self.end_ns - self.start_ns) / 1e9


@dataclass(frozen=True, slots=True)
class Worked:
    """What has come to light of one watch since its last report.

    spans: its work; begin 0: it has been at work for as long as anybody knows. The same work may come again, with a
        later end.
    known_ns: whatever began before that has been reported. It may also come later that a report says less.
    doubt_ns: what was done until then nobody knows; 0: nothing new is unknown.
    """

    spans: tuple[Span, ...] = ()
    known_ns: int = 0
    doubt_ns: int = 0


@dataclass(frozen=True, slots=True)
class Track:
    """One GPU's work so far. Up to `known_ns` all is settled; quiet_ns: the end of the last work that is.

    unsure: nobody knows when the last work ended. pending: work that began later, and may be more. watches: whose
    reports it was made from.
    """

    gpu: str
    watches: frozenset[int] = frozenset()
    known_ns: int = 0
    quiet_ns: int = 0
    unsure: bool = True
    pending: tuple[Span, ...] = ()


def forget(track: Track, until_ns: int) -> Track:
    """What was done until then nobody knows."""
    left = tuple(span for span in track.pending if span[1] > until_ns)
    quiet_ns = max(track.quiet_ns, until_ns)
    unsure = track.unsure or until_ns >= track.quiet_ns
    return replace(track, quiet_ns=quiet_ns, unsure=unsure, pending=left)


def follow(track: Track, reports: Mapping[int, Worked], now_ns: int) -> tuple[Track, tuple[Gap, ...]]:
    """Take in a report of each watch of the GPU. The gaps that are settled by it, in order.

    now_ns: when the reports were asked for. Other watches than before: what they did until now is unknown.
    """
    if reports.keys() != track.watches:
        track = forget(replace(track, watches=frozenset(reports), known_ns=now_ns, pending=()), now_ns)
    if not reports:
        return track, ()
    doubt_ns = max(report.doubt_ns for report in reports.values())
    known_ns = max(track.known_ns, min(report.known_ns for report in reports.values()))
    fresh = [span for report in reports.values() for span in report.spans]
    track = replace(track, pending=_merged([*track.pending, *fresh]))
    if len(track.pending) > MOST_PENDING:
        doubt_ns = max(doubt_ns, track.pending[-1][1])
    if doubt_ns:
        track = forget(track, doubt_ns)
    return _settle(track, known_ns)


def _settle(track: Track, known_ns: int) -> tuple[Track, tuple[Gap, ...]]:
    """Everything that began before known_ns is known now."""
    quiet_ns, unsure, gaps = track.quiet_ns, track.unsure, []
    later = 0
    for begin_ns, end_ns in track.pending:
        if begin_ns >= known_ns:
            break
        later += 1
        if begin_ns - quiet_ns >= SHORTEST_NS and not unsure:
            gaps.append(Gap(track.gpu, quiet_ns, begin_ns))
        if end_ns > quiet_ns:
            quiet_ns, unsure = end_ns, False
    settled = replace(track, known_ns=known_ns, quiet_ns=quiet_ns, unsure=unsure, pending=track.pending[later:])
    return settled, tuple(gaps)


def _merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """In order, without overlaps and without silence too short for a gap."""
    merged: list[Span] = []
    for begin_ns, end_ns in sorted(spans):
        if merged and begin_ns - merged[-1][1] < SHORTEST_NS:
            merged[-1] = merged[-1][0], max(merged[-1][1], end_ns)
        else:
            merged.append((begin_ns, end_ns))
    return tuple(merged)
