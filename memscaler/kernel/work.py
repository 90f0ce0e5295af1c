"""When watches were at work: the spans that the kernel keeps of connections that are over, and those of open ones.

The kernel writes a span when a connection ends as work, and draws together what is less than a gap apart: struct work
in bpf/connections.bpf.c. What goes on on open connections the looks at them tell (traffic.py). Here both become the
reports that core/gaps.py is made for. Whatever may have been missed is reported as such.
"""

from __future__ import annotations

import mmap
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from memscaler.core.gaps import Span, Worked
from memscaler.kernel.bpf import HashMap
from memscaler.kernel.counters import MAX_WATCHES

SPANS = 64
SPAN_WORDS = 3
WORK_WORDS = 1 + SPANS * SPAN_WORDS
SELDOM_NS = 5_000_000_000  # open connections are looked at every 2 s, where that matters


@dataclass(frozen=True, slots=True)
class Spans:
    """Of one watch, in the order in which they were written. count: how many there have been.

    lost_ns: what was done until then is not among them; 0: nothing is missing; None: it is not known until when.
    """

    spans: tuple[Span, ...]
    count: int
    lost_ns: int | None = 0


class WorkRings:
    """The kernel's spans, read through shared memory, or by a system call where that cannot be (before Linux 5.8)."""

    def __init__(self, fd: int, *, mapped: bool) -> None:
        self._map = HashMap(fd, 4, WORK_WORDS * 8)
        self._memory, self._words = None, memoryview(b"")
        if mapped:
            size = -(-MAX_WATCHES * WORK_WORDS * 8 // mmap.PAGESIZE) * mmap.PAGESIZE
            self._memory = mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
            self._words = memoryview(self._memory).cast("Q")

    def close(self) -> None:
        """Nothing can be read afterwards."""
        self._words.release()
        if self._memory is not None:
            self._memory.close()

    def read(self, slot: int, seen: int) -> Spans:
        """Those since there were `seen`, and the last of them once more: it may have grown."""
        words = self._of(slot)
        count, first = words[0], max(0, seen - 1)
        lost_ns: int | None = 0
        if count - first > SPANS:
            first = count - SPANS
            lost_ns = words[_place(first) + 2]
        spans = []
        for index in range(first, count):
            number, begin_ns, end_ns = words[_place(index) : _place(index) + SPAN_WORDS]
            if number == index + 1:
                spans.append((begin_ns, end_ns))
            elif index >= seen:  # else that was reported already
                lost_ns = None
        if count - first > SPANS // 2 and self._of(slot)[0] - first > SPANS:
            lost_ns = None  # the kernel was about to write over what we read: it counts first
        return Spans(() if lost_ns is None else tuple(spans), count, lost_ns)

    def _of(self, slot: int) -> Sequence[int]:
        if self._memory is not None:
            return self._words[slot * WORK_WORDS : (slot + 1) * WORK_WORDS]
        value = self._map.get(struct.pack("=I", slot)) or bytes(WORK_WORDS * 8)
        return struct.unpack(f"={WORK_WORDS}Q", value)


def _place(index: int) -> int:
    return 1 + index % SPANS * SPAN_WORDS


@dataclass(slots=True)
class Hearing:
    """Up to when it is known what was said on a watch's open connections. Times in ns of CLOCK_MONOTONIC.

    heard_ns: up to then. floors: the last such times. noticed_ns: since when connections are known to be open, 0: none
    is. missed_ns: nobody listened for some time before. hook_since_ns: since when the data hook listens, 0: it does
    not. rang_ns: when it rang after the last look, 0: it did not.
    """

    heard_ns: int = 0
    noticed_ns: int = 0
    missed_ns: int = 0
    hook_since_ns: int = 0
    rang_ns: int = 0
    data_rings: int = 0
    floors: deque[int] = field(default_factory=lambda: deque(maxlen=4))

    def check(self, now_ns: int, *, idle: bool) -> None:
        """Nothing is open, or looks at what is must have come in time."""
        self.noticed_ns = 0 if idle else self.noticed_ns or now_ns
        late_ns = now_ns - max(self.heard_ns, self.noticed_ns)
        if not idle and late_ns > SELDOM_NS and not self.hook_since_ns:
            self.missed_ns = now_ns

    def looked(self, now_ns: int, open_ns: int, data_rings: int) -> None:
        """open_ns: since when something is said that is not judged yet, or 0."""
        self.floors.append(now_ns)
        self.heard_ns = max(self.heard_ns, min(now_ns, open_ns or now_ns))
        self.rang_ns, self.data_rings, self.hook_since_ns = 0, data_rings, 0

    def hook_heard(self, now_ns: int, rang_ns: int, data_rings: int) -> None:
        """The data hook was there until now, or until it rang (whatever for)."""
        self.heard_ns = max(rang_ns, self.hook_since_ns) if rang_ns else now_ns
        self.floors.append(self.heard_ns)
        if rang_ns:
            self.hook_since_ns = 0
            self.rang_ns = self.heard_ns if data_rings != self.data_rings else 0


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a watch beside its spans. Times in ns of CLOCK_MONOTONIC.

    idle: no connection is open. heard_ns: all that was said on open connections before then is known, 0: nothing is.
    floors: times until which nothing was missed on open connections. told: the spans that the looks at them have told.
    doubt_ns: what was done until then is not known. doubts: counts of what makes now doubtful where they change.
    """

    began_ns: int
    idle: bool
    heard_ns: int = 0
    floors: Sequence[int] = ()
    told: Sequence[Span] = ()
    doubt_ns: int = 0
    doubts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Seen:
    """What the last report of a watch was made from."""

    facts: Facts
    spans: int
    known_ns: int


def report(seen: Seen | None, facts: Facts, rings: WorkRings, slot: int, now_ns: int) -> tuple[Seen, Worked]:
    """now_ns: the time before the facts were looked up, and with them the counters."""
    doubt_ns = 0
    if seen is None or seen.facts.began_ns != facts.began_ns:  # another watch, or the server began anew
        doubt_ns = facts.began_ns
        seen = Seen(facts, rings.read(slot, 0).count, facts.began_ns)
    found = rings.read(slot, seen.spans)
    if found.lost_ns is None or facts.doubts != seen.facts.doubts:
        doubt_ns = now_ns
    elif facts.doubt_ns > seen.facts.doubt_ns:
        doubt_ns = max(doubt_ns, facts.doubt_ns)
    spans = [(_begin_ns(span, facts.floors), span[1]) for span in found.spans]
    known_ns = max(seen.known_ns, now_ns if facts.idle else facts.heard_ns)
    worked = Worked((*spans, *facts.told), known_ns, max(doubt_ns, found.lost_ns or 0))
    return Seen(facts, found.count, known_ns), worked


def _begin_ns(span: Span, floors: Sequence[int]) -> int:
    """Of a connection that had been judged before, the kernel knows only the end: it worked since the last look."""
    if span[0] < span[1]:
        return span[0]
    return max((floor for floor in floors if floor <= span[0]), default=span[0])
