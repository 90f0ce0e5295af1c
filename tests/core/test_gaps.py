"""The gaps of a GPU: exactly those between its work, each once, whatever order and pieces the work comes to light in."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from memscaler.core.gaps import MOST_PENDING, SHORTEST_NS, Gap, Track, Worked, follow, forget

MS, SECOND = 1_000_000, 1_000_000_000
TICK = 100 * MS
BEGIN = 1_000 * SECOND


def at(seconds: float) -> int:
    return BEGIN + round(seconds * SECOND)


def span(begin_s: float, end_s: float) -> tuple[int, int]:
    return at(begin_s), at(end_s)


def tracked(*steps: tuple[float, dict[int, Worked]]) -> list[tuple[float, float]]:
    """The gaps, in seconds, after these reports at these times."""
    track, told = Track("gpu"), []
    for now_s, reports in steps:
        track, found = follow(track, reports, at(now_s))
        told += [((gap.start_ns - BEGIN) / SECOND, (gap.end_ns - BEGIN) / SECOND) for gap in found]
    return told


def quiet(now_s: float, *spans: tuple[int, int], doubt_s: float | None = None) -> Worked:
    """A watch of which everything until now is known."""
    return Worked(spans, at(now_s), 0 if doubt_s is None else at(doubt_s))


# ---- by hand --------------------------------------------------------------------------------------------------------


def test_between_two_pieces_of_work():
    """The gap is told when the work that ends it has come to light, and not again."""
    steps = [(0, {0: quiet(0)}), (2, {0: quiet(2, span(1, 1.5))}), (9, {0: quiet(9, span(1, 1.5), span(8, 8.1))})]
    assert tracked(*steps) == [(1.5, 8)]
    assert tracked(*steps, (10, {0: quiet(10, span(8, 8.1))})) == [(1.5, 8)]


def test_silence_before_the_first_work_is_no_gap():
    """Nobody knows when it began."""
    assert tracked((0, {0: quiet(0)}), (9, {0: quiet(9, span(8, 8.1))})) == []


def test_short_silence_is_no_gap():
    """A quarter of a second is the least."""
    assert tracked((0, {0: quiet(0)}), (9, {0: quiet(9, span(1, 2), span(2.24, 3), span(3.25, 4))})) == [(3, 3.25)]


def test_gap_is_one_of_all_watches():
    """What one watch does in between ends it."""
    first, second = quiet(9, span(1, 2), span(7, 8)), quiet(9, span(4, 5))
    assert tracked((0, {0: quiet(0), 1: quiet(0)}), (9, {0: first, 1: second})) == [(2, 4), (5, 7)]
    assert tracked((0, {0: quiet(0), 1: quiet(0)}), (9, {0: first, 1: quiet(9, span(1.5, 7.5))})) == []


def test_who_does_not_know_holds_up_the_others():
    """A connection is open that may have begun at any time since the last report: it turns out that it did at 5."""
    steps = [
        (0, {0: quiet(0), 1: quiet(0)}),
        (3, {0: quiet(3, span(1, 2)), 1: quiet(3)}),
        (9, {0: quiet(9, span(8, 8.5)), 1: Worked((), at(3))}),
        (20, {0: quiet(20), 1: quiet(20, span(5, 19))}),
        (30, {0: quiet(30, span(29, 30)), 1: quiet(30)}),
    ]
    assert tracked(*steps[:3]) == []
    assert tracked(*steps) == [(2, 5), (19, 29)]


def test_work_that_goes_on_is_told_again():
    """Open work comes with every look; the gap after it begins where it ended."""
    steps = [(0, {0: quiet(0)}), (2, {0: quiet(2, span(1, 2))}), (4, {0: quiet(4, span(1, 4))})]
    assert tracked(*steps, (9, {0: quiet(9, span(1, 5), span(8, 9))})) == [(5, 8)]


def test_doubt_takes_the_gap_but_not_the_next():
    """What was done until 3 is unknown, hence the begin of the silence that follows is."""
    steps = [(0, {0: quiet(0)}), (4, {0: quiet(4, span(1, 2), doubt_s=3)})]
    assert tracked(*steps, (9, {0: quiet(9, span(6, 7))})) == []
    assert tracked(*steps, (20, {0: quiet(20, span(6, 7), span(19, 20))})) == [(7, 19)]


def test_doubt_about_the_middle_of_work_is_none():
    """The work ends after it, and that end is known."""
    assert tracked((0, {0: quiet(0)}), (9, {0: quiet(9, span(1, 4), span(7, 8), doubt_s=3)})) == [(4, 7)]


def test_open_since_ever():
    """A connection older than the watch has worked all the time; its end is known."""
    steps = [(0, {0: Worked((), at(0))}), (5, {0: quiet(5, (0, at(4)))}), (9, {0: quiet(9, span(8, 9))})]
    assert tracked(*steps) == [(4, 8)]


def test_other_watches_begin_anew():
    """Nobody counted on the new one before."""
    steps = [(0, {0: quiet(0)}), (3, {0: quiet(3, span(1, 2))}), (6, {0: quiet(6), 1: quiet(6)})]
    assert tracked(*steps, (9, {0: quiet(9, span(7, 8)), 1: quiet(9)})) == []
    assert tracked(*steps, (9, {0: quiet(9, span(7, 8)), 1: quiet(9)}), (20, {1: quiet(20)})) == []


def test_no_watch_no_gap():
    """Of a GPU without watches nothing is known."""
    assert tracked((0, {}), (5, {}), (9, {0: quiet(9, span(7, 8))})) == []


def test_what_waits_is_bounded():
    """While one watch never knows, the others' work is kept only so far; then it is forgotten, not made up."""
    track, _ = follow(Track("gpu"), {0: quiet(0), 1: quiet(0)}, at(0))
    count = MOST_PENDING + 50
    for number in range(count):
        reports = {0: quiet(number + 1, span(number + 0.2, number + 0.5)), 1: Worked((), at(0))}
        track, found = follow(track, reports, at(number + 1))
        assert not found
        assert len(track.pending) <= MOST_PENDING
    track, found = follow(track, {0: quiet(count + 1), 1: quiet(count + 1)}, at(count + 1))
    assert 0 < len(found) <= MOST_PENDING
    assert all(gap.end_ns - gap.start_ns == 700 * MS for gap in found)


def test_forget_what_is_long_known():
    """A doubt about the time before the last known work changes nothing."""
    track, _ = follow(Track("gpu"), {0: quiet(0)}, at(0))
    track, _ = follow(track, {0: quiet(5, span(3, 4))}, at(5))
    assert forget(track, at(2)) == track


def test_length():
    """In seconds."""
    assert Gap("gpu", at(1), at(3.5)).length_s == 2.5


# ---- against an oracle -----------------------------------------------------------------------------------------------


WORK = st.lists(
    st.tuples(st.integers(0, 200), st.integers(0, 40)).map(lambda each: (each[0], each[0] + each[1])), max_size=12
)
DRAINS = st.lists(st.tuples(st.integers(0, 260), st.integers(0, 30), st.integers(0, 1)), max_size=25)
DOUBTS = st.lists(st.tuples(st.integers(0, 25), st.integers(0, 3), st.integers(0, 250)), max_size=4)


def ticks(number: int) -> int:
    return BEGIN + number * TICK


def truth(watches: list[list[tuple[int, int]]]) -> list[tuple[int, int]]:
    """Tick by tick: where no watch works, between two where one does."""
    busy = sorted({tick for work in watches for begin, end in work for tick in range(begin * 2, end * 2 + 1)})
    halves = [(before, after) for before, after in pairwise(busy) if after - before > 1]
    gaps = [(ticks(before // 2), ticks(after // 2)) for before, after in halves]
    return [(start, end) for start, end in gaps if end - start >= SHORTEST_NS]


class Pieces:
    """One watch that tells its work late and in pieces, and never says that it knows more than it does."""

    def __init__(self, work: list[tuple[int, int]]) -> None:
        self.left = sorted(work)
        self.again: list[tuple[int, int]] = []
        self.known = 0

    def lose(self, until: int) -> None:
        """Every second piece that was over by then is never told."""
        over = [each for each in self.left if each[1] <= until]
        self.left = [each for each in self.left if each not in over[until % 2 :: 2]]

    def report(self, now: int, lag: int, *, partly: bool) -> Worked:
        """At tick `now`. partly: what is going on is told as far as it has come; else only that it does.

        What is over is told as late as the lag allows, and then twice.
        """
        over = [each for each in self.left if each[1] < now and (each[0] < now - lag or partly)]
        going_on = [each for each in self.left if each[0] <= now <= each[1]]
        self.left = [each for each in self.left if each not in over]
        known = now - lag if partly or not going_on else min(now - lag, going_on[0][0])
        self.known = max(self.known, known)
        told = [(begin, now) for begin, _ in going_on if partly]
        spans = tuple((ticks(begin), ticks(end)) for begin, end in over + told + self.again)
        self.again = over
        return Worked(spans, ticks(self.known))


def told(
    watches: list[list[tuple[int, int]]],
    drains: list[tuple[int, int, int]],
    doubts: list[tuple[int, int, int]],
) -> tuple[list[Gap], list[int]]:
    """(all gaps that are told, the doubts that were reported)."""
    pieces = [Pieces(work) for work in watches]
    track, _ = follow(Track("gpu"), dict.fromkeys(range(len(pieces)), Worked((), ticks(-1))), ticks(-1))
    gaps: list[Gap] = []
    doubted = []
    for number, (now, lag, partly) in enumerate([*sorted(drains), (1000, 0, 1)]):
        unknown = {slot: tick for at, slot, tick in doubts if at == number and slot < len(pieces) and tick <= now}
        for slot, tick in unknown.items():
            pieces[slot].lose(tick)
            doubted.append(ticks(tick))
        reports = {slot: piece.report(now, lag, partly=bool(partly)) for slot, piece in enumerate(pieces)}
        for slot, tick in unknown.items():
            reports[slot] = replace(reports[slot], doubt_ns=ticks(tick))
        track, found = follow(track, reports, ticks(now))
        gaps += found
    return gaps, doubted


@given(st.lists(WORK, min_size=1, max_size=4), DRAINS)
def test_exactly_the_gaps(watches, drains):
    """Without a doubt: every gap, once, in order, and no other, however the work comes to light."""
    gaps, _ = told(watches, drains, [])
    assert [(gap.start_ns, gap.end_ns) for gap in gaps] == truth(watches)


@given(st.lists(WORK, min_size=1, max_size=4), DRAINS, DOUBTS)
def test_none_is_made_up(watches, drains, doubts):
    """With doubts, about what is never told: none but true gaps, and all that begin after the last doubt."""
    gaps, doubted = told(watches, drains, doubts)
    claimed, true = [(gap.start_ns, gap.end_ns) for gap in gaps], truth(watches)
    assert claimed == [gap for gap in true if gap in claimed]
    assert [gap for gap in true if gap[0] > max(doubted, default=0)] == [
        gap for gap in claimed if gap[0] > max(doubted, default=0)
    ]
