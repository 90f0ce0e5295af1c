"""What is said on open connections: which of them are at work, and when there was work last. Pure.

Two looks at a connection (sock_diag's tcp_info) tell what came in between:

    bytes wait to be read or to be acknowledged, or the   owed: the server works on it, it is live
      client spoke after the server did
    it is new, and the client has not spoken yet          live, for a second
    nothing from the client, the server sent on           work: it streams an answer
    touch_bytes or more from the client                   work
    fewer, answered before touch_s are over               a touch: a health check, a scrape, a ping
    nothing, or a few bytes from the server alone         silent

An answer that has just begun looks like one that is over. Unless the server says itself, before each park, that it has
nothing to do, a touch on an open connection is over only after some seconds of silence.

The kernel's times have the grain of its ticks (1-10 ms). Where both ends spoke in the same tick nobody can tell who was
last: it counts as answered, and as work unless the server is asked before each park.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from memscaler.core.gaps import Span
from memscaler.core.watch import WatchSettings
from memscaler.kernel.sock_diag import Row, Said

SECOND_NS = 1_000_000_000
# A server that keeps a stream open says something now and then ("event: ping", a WebSocket ping). A token in a stream
# of server-sent events is wrapped in more than 100 bytes of JSON.
PING_BYTES = 64
PING_EVERY_NS = 2 * SECOND_NS
# A WebSocket's pong has 6 to 10 bytes; who says no more than a few of them between two looks asks for nothing.
PONG_BYTES = 12
PONG_EVERY_NS = SECOND_NS // 2
MOST_PONGS = 5
GREETING_NS = SECOND_NS  # who has connected is about to speak
PAUSE_NS = 5 * SECOND_NS  # what the server says after a shorter one belongs to what it said before
MOST_SPANS = 1024


@dataclass(slots=True)
class _Heard:
    """Of one connection: when it was met, what had been said when it was judged, since when an answer is owed (or 0).

    mark: what the hook that sees it end has been told. asked_ns: when the client began to wait, or 0; worked_ns: the
    end of its last work; floor_ns: what a look finds began no earlier, and is_floor: as far as is known, just then.
    """

    since_ns: int
    asked_ns: int = 0
    worked_ns: int = 0
    floor_ns: int = 0
    is_floor: bool = False
    received: int = 0
    sent: int = 0
    owed_since_ns: int = 0
    judged_ns: int = 0
    mark: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One look: how many connections are at work now, and the cookies of the others.

    marks: what has changed for the hook that sees connections end: cookie -> bytes from and to the client that are
    judged already, None while an answer is owed. open_ns: since when something is said that may be work or a touch; 0:
    nothing is.
    """

    live: int
    silent: frozenset[int]
    marks: Mapping[int, tuple[int, int] | None]
    open_ns: int = 0


@dataclass(slots=True)
class Traffic:
    """The open connections of one watch. Times in ns of CLOCK_MONOTONIC; touches: how many have been seen.

    server_tells: whether the server is asked before each park. heard_ns: what was said before then has been looked at.
    spans: when they were at work, as the looks found it; to be taken out.
    """

    settings: WatchSettings
    last_activity_ns: int = 0
    last_work_ns: int = 0
    last_unsure_ns: int = 0
    touches: int = 0
    server_tells: bool = False
    heard_ns: int = 0
    spans: list[Span] = field(default_factory=list)
    _heard: dict[int, _Heard] = field(default_factory=dict)

    def look(
        self, rows: Iterable[Row], now_ns: int, opened: Mapping[int, int] | None = None, rang_ns: int = 0
    ) -> Verdict:
        """Judge what was said since the last look. rows: the live connections that count.

        opened: cookie -> when it began, where that is known. rang_ns: the first word since the last look came then.
        """
        before, self._heard = self._heard, {}
        live, silent, marks = 0, set(), {}
        for row in rows:
            heard = self._heard[row.cookie] = before.get(row.cookie) or _Heard(now_ns)
            is_new = row.cookie not in before
            heard.is_floor = is_new or bool(rang_ns)  # a new one may have asked for more than the last of its requests
            heard.floor_ns = max(self.heard_ns, rang_ns, opened.get(row.cookie, 0) if is_new and opened else 0)
            is_live = True
            if row.said is None:  # this kernel does not tell
                self._worked(heard, heard.floor_ns, now_ns)
            else:
                is_live = self._is_live(row, row.said, heard, now_ns)
            if is_live:
                live += 1
            else:
                silent.add(row.cookie)
            mark = None if is_live else (heard.received, heard.sent)
            if mark != heard.mark:
                marks[row.cookie] = heard.mark = mark
        asked = [each.asked_ns for each in self._heard.values() if each.asked_ns > each.worked_ns]
        return Verdict(live, frozenset(silent), marks, min(asked, default=0))

    def has_spoken(self, rows: Iterable[Row]) -> bool:
        """True if a client said something since the last look, or an answer is owed, or the connection is new."""
        return any(self._spoke(row) for row in rows)

    def _spoke(self, row: Row) -> bool:
        heard = self._heard.get(row.cookie)
        if heard is None or row.said is None:
            return True
        answered = row.said.sent - heard.sent >= PING_BYTES
        return answered or row.said.received != heard.received or bool(row.unread or row.unsent)

    def _is_live(self, row: Row, said: Said, heard: _Heard, now_ns: int) -> bool:
        from_client, from_server = said.received - heard.received, said.sent - heard.sent
        touch_ns = round(self.settings.touch_s * SECOND_NS)
        if not said.received and now_ns - heard.since_ns < GREETING_NS:
            return True
        waited_ns = now_ns - (heard.judged_ns or heard.since_ns)
        least = PONG_BYTES * min(MOST_PONGS, 1 + waited_ns // PONG_EVERY_NS) if touch_ns else 1
        if _is_owed(row, said, asked=from_client >= least):
            heard.owed_since_ns = heard.owed_since_ns or now_ns
            heard.asked_ns = heard.asked_ns or _begin_ns(said, heard, now_ns, asked=from_client > 0)
            # The bytes are judged with the answer: a touch may be under way just now. A longer wait is work.
            if now_ns - heard.owed_since_ns >= touch_ns or from_client >= self.settings.touch_bytes:
                self.last_work_ns, self.last_activity_ns = now_ns, max(now_ns, self.last_activity_ns)
                self._worked(heard, heard.asked_ns, now_ns)
            return True
        owed_ns = now_ns - heard.owed_since_ns if heard.owed_since_ns else 0
        asked_ns = heard.asked_ns or _begin_ns(said, heard, now_ns, asked=from_client > 0)
        heard.received, heard.sent, heard.owed_since_ns, heard.judged_ns = said.received, said.sent, 0, now_ns
        heard.asked_ns = 0
        if from_client < least and from_server < PING_BYTES * max(1, waited_ns / PING_EVERY_NS):
            return False
        owed_ns = max(owed_ns, said.received_ago_ns - said.sent_ago_ns)
        ago_ns = min(said.received_ago_ns, said.sent_ago_ns) if from_client else said.sent_ago_ns
        at_ns = now_ns - ago_ns
        # In the same tick: the answer to this, or this after another answer? Only the server knows.
        tied = said.received_ago_ns == said.sent_ago_ns and not self.server_tells
        if tied or not from_client or from_client >= self.settings.touch_bytes or owed_ns >= touch_ns:
            self.last_work_ns = max(self.last_work_ns, at_ns)
            self._worked(heard, asked_ns, at_ns)
        else:
            self.touches += 1
            if not self.server_tells:
                self.last_unsure_ns = max(self.last_unsure_ns, at_ns)
        self.last_activity_ns = max(self.last_activity_ns, at_ns)
        return False

    def _worked(self, heard: _Heard, begin_ns: int, end_ns: int) -> None:
        heard.worked_ns = max(begin_ns, end_ns)
        self.spans.append((begin_ns, heard.worked_ns))
        if len(self.spans) > MOST_SPANS:  # nobody takes them
            self.spans[:] = [(min(self.spans)[0], max(end for _, end in self.spans))]


def _begin_ns(said: Said, heard: _Heard, now_ns: int, *, asked: bool) -> int:
    """When the work began that a look has found. asked: the client said something; else the server goes on."""
    if asked and not heard.is_floor:
        return max(heard.floor_ns, now_ns - said.received_ago_ns)
    goes_on = not asked and heard.floor_ns - heard.worked_ns < PAUSE_NS
    return heard.worked_ns if goes_on else heard.floor_ns


def _is_owed(row: Row, said: Said, *, asked: bool) -> bool:
    """True while the client waits: the server has not read, not answered, or not delivered. asked: it said enough."""
    if row.unread or row.unsent:
        return True
    if not asked:
        return False
    # Both ages begin with the connection: its first request may be as old as "the last answer".
    return not said.sent or said.received_ago_ns < said.sent_ago_ns
