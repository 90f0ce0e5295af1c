"""What stages were worth and would have been worth: sums of what was measured, and a plain word where nothing was."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memscaler.core.stage_summary import AFTERS_S, Measured, measured, stage_sums, stage_what_if, together
from memscaler.core.stage_times import Spell
from memscaler.core.stages import Spent, Stage

SPELLS = st.lists(
    st.builds(
        Spell,
        server=st.just("s"),
        port=st.integers(1, 3),
        scope=st.just(""),
        stage=st.sampled_from([Stage.SERVER_SLEEP, Stage.STOP_SERVER]),
        at_unix_s=st.floats(0, 1000),
        until_unix_s=st.one_of(st.none(), st.floats(1000, 2000)),
        wake_s=st.one_of(st.none(), st.floats(0, 100)),
        failed=st.booleans(),
        by=st.sampled_from(["", "", "Ollama"]),
    ),
    max_size=12,
)
GAPS = st.lists(st.tuples(st.floats(0, 100), st.floats(1, 100)), max_size=10)


@given(SPELLS, st.floats(0, 2000), st.floats(0, 2000))
def test_sums(spells, one_s, other_s) -> None:
    """Every spell is in one of them, and its time counts within the period only."""
    start_s, end_s = sorted((one_s, other_s))
    spells.sort(key=lambda spell: spell.at_unix_s)
    sums = stage_sums(spells, {}, start_s, end_s, 1500.0)
    counted = sum(each.entered + each.failed for each in sums) + sum(bool(each.by_others_s) for each in sums)
    assert counted <= len(spells) + len(sums)
    most_s = (end_s - start_s) * len(spells)
    for each in sums:
        assert 0 <= each.seconds + each.by_others_s <= most_s
        assert each.unended <= len(spells)
        assert each.wake is None or each.wake.median_s <= each.wake.p99_s <= each.wake.worst_s
    if start_s == 0 and end_s == 2000:
        assert sum(each.entered for each in sums) == sum(not spell.failed and not spell.by for spell in spells)


def test_a_spell_that_lasts_and_one_whose_end_nobody_saw() -> None:
    """The last of a server lasts as long as there are records; of an earlier one nobody knows how long it was."""
    earlier = Spell("s", 1, "", Stage.STOP_SERVER, 100.0)
    (found,) = stage_sums([earlier, Spell("s", 1, "", Stage.STOP_SERVER, 500.0)], {}, 0, 1000, 900.0)
    assert (found.entered, found.seconds, found.unended) == (2, 400.0, 1)


def test_what_was_measured() -> None:
    """The watts spared are those in the stage alone; entering and leaving is per time; half a minute tells nothing."""
    spent = Spent(3600, 3600, 36_000, 3600, 32_000, 90, 4000, 2)
    spells = [
        Spell("s", 1, "", Stage.STOP_SERVER, at, wake_s=took) for at, took in ((0, 10), (1, 30), (2, 12), (3, None))
    ]
    assert measured(spent, spells) == Measured(10.0, 2000.0, 12)
    assert measured(spent, []).lacks == "how long leaving it takes was never measured"
    assert measured(Spent(30, 30, 1, 30, 1), spells).lacks == "what it spares was never measured"
    assert measured(None, spells).lacks == "what it spares was never measured"


def test_what_if_in_figures() -> None:
    """Two gaps of an hour and one of five minutes in a day; ten watts spared, 2 kJ a time, 12 s to wait."""
    gaps = [(0.0, 3600.0), (10_000.0, 300.0), (20_000.0, 3600.0)]
    found = stage_what_if(gaps, 86_400.0, {Stage.STOP_SERVER: Measured(10.0, 2000.0, 12.0)})
    assert [row.after_s for row in found.rows] == list(AFTERS_S)
    ten = found.rows[0]
    assert (ten.times, ten.seconds, ten.waited_s) == (2, 6000.0, 24.0)
    assert ten.saved_j == pytest.approx(60_000 - 4000)
    assert ten.a_day(ten.times) == 2
    assert found.rows[-1].saved_j == 0
    assert found.unknown == {}


@given(GAPS, st.floats(0, 100), st.floats(0, 1e5), st.floats(0, 1e3))
def test_later_is_never_more_of_it(gaps, spared_w, switch_j, wake_s) -> None:
    """Who waits longer is in the stage less often and for less time; and nothing is said of what was not measured."""
    many = [(start_s * 1000, length_s * 200) for start_s, length_s in gaps]
    known = {Stage.STOP_SERVER: Measured(spared_w, switch_j, wake_s), Stage.CHECKPOINT: Measured(None, None, 3.0)}
    found = stage_what_if(many, 1e6, known)
    assert {row.stage for row in found.rows} == {Stage.STOP_SERVER}
    assert set(found.unknown) == {Stage.CHECKPOINT}
    for one, other in pairwise(found.rows):
        assert one.times >= other.times
        assert one.seconds >= other.seconds
        assert one.waited_s >= other.waited_s


@given(st.lists(GAPS, min_size=1, max_size=4))
def test_quiet_together(every) -> None:
    """Second by second: the machine could have slept when every GPU was in a gap, and at no other time."""
    parted = []
    for gaps in every:
        at_s, mine = 0.0, []
        for pause_s, length_s in gaps:
            mine.append((at_s + pause_s + 1, length_s))
            at_s = mine[-1][0] + length_s
        parted.append(mine)
    found = together(parted)
    for at_s in [spot / 2 for spot in range(0, 2200, 7)]:
        inside = [any(start_s < at_s < start_s + length_s for start_s, length_s in gaps) for gaps in parted]
        edges = any(at_s in (start_s, start_s + length_s) for gaps in parted for start_s, length_s in gaps)
        if not edges:
            assert all(inside) is any(start_s < at_s < start_s + length_s for start_s, length_s in found)
