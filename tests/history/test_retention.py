"""The file stays small, the oldest goes first, and a wrong clock costs nothing."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memscaler.history import retention
from memscaler.history.reader import open_history
from memscaler.history.retention import Limits
from memscaler.history.tables import FILE, HOUR_S, Hour, Park
from tests.history.filled import GPU, fill

SMALL = Limits(most_bytes=512 * 1024)
NOW_S = time.time() // HOUR_S * HOUR_S
DAY_S = 86400.0


def hours(first_s: float, count: int) -> list[Hour]:
    return [Hour(first_s + nth * HOUR_S, {"awake": 3600.0}) for nth in range(count)]


def park(at_s: float) -> Park:
    return Park(at_s, at_s + 1, 1.0, "connection", None, None, None, None, "")


def test_it_does_not_grow_for_ever(tmp_path):
    """Hundreds of thousands of gaps go through a file of half a megabyte; the newest are there, the totals, too."""
    for nth in range(40):
        fill(tmp_path, gaps=[(NOW_S + 5000.0 * nth + each, 0.5) for each in range(5000)], saved_j=1.0, limits=SMALL)
        assert (tmp_path / FILE).stat().st_size <= SMALL.most_bytes
    with open_history(tmp_path) as history:
        found = history.gaps(GPU)
        assert len(found) > 10_000
        assert [start_s for start_s, _ in found] == [NOW_S + 200_000.0 - len(found) + nth for nth in range(len(found))]
        assert history.totals()[GPU][0] == 40.0


def test_a_busy_gpu_does_not_push_out_a_quiet_one(tmp_path):
    """The quiet one's gaps, parks and hours are there still."""
    quiet = [(NOW_S + nth, 2.0) for nth in range(300)]
    fill(tmp_path, "GPU-quiet", gaps=quiet, parks=[park(NOW_S + 5)], hours=hours(NOW_S, 30), limits=SMALL)
    for nth in range(20):
        parks = [park(NOW_S + 5000 * nth + each) for each in range(500)]
        fill(tmp_path, gaps=[(NOW_S + 5000 * nth + each, 0.5) for each in range(5000)], parks=parks, limits=SMALL)
    with open_history(tmp_path) as history:
        assert history.gaps("GPU-quiet") == quiet
        assert history.parks("GPU-quiet") == [park(NOW_S + 5)]
        assert len(history.hours("GPU-quiet")) == 30
        assert len(history.parks(GPU)) > 500
    assert (tmp_path / FILE).stat().st_size <= SMALL.most_bytes


def test_hours_go_last(tmp_path):
    """Only where nothing else is left to forget; the oldest first."""
    for nth in range(30):
        fill(tmp_path, hours=hours(NOW_S + 500 * nth * HOUR_S, 500), limits=SMALL)
    with open_history(tmp_path) as history:
        found = history.hours(GPU)
    assert 1000 < len(found) < 15_000
    assert found[-1].start_unix_s == NOW_S + 14_999 * HOUR_S
    assert (tmp_path / FILE).stat().st_size <= SMALL.most_bytes


def test_what_is_old_goes(tmp_path):
    """Gaps and parks after 400 days, hours after five years, totals never."""
    limits = Limits()
    old_s, older_s = NOW_S - 401 * DAY_S, NOW_S - 6 * 366 * DAY_S
    fill(tmp_path, gaps=[(old_s, 1.0)], parks=[park(old_s)], hours=[*hours(older_s, 2), *hours(old_s, 2)], saved_j=9.0)
    fill(tmp_path, gaps=[(NOW_S, 1.0)], parks=[park(NOW_S)], hours=hours(NOW_S - DAY_S, 24), limits=limits)
    with open_history(tmp_path) as history:
        assert history.gaps(GPU) == [(NOW_S, 1.0)]
        assert history.parks(GPU) == [park(NOW_S)]
        assert [hour.start_unix_s for hour in history.hours(GPU)][:2] == [old_s, old_s + HOUR_S]
        assert history.totals()[GPU][0] == 9.0


def test_a_wrong_clock_costs_nothing(tmp_path, monkeypatch):
    """1970 and 2070: for a few hours nobody believes them; what was written under them can be read."""
    fill(tmp_path, gaps=[(NOW_S - 60, 1.0)], parks=[park(NOW_S - 60)], hours=hours(NOW_S - 30 * HOUR_S, 30))
    for wrong_s in (86400.0, NOW_S + 50 * 366 * DAY_S):
        monkeypatch.setattr(time, "time", lambda wrong_s=wrong_s: wrong_s)
        fill(tmp_path, gaps=[(wrong_s, 1.0)], parks=[park(wrong_s)], hours=hours(wrong_s // HOUR_S * HOUR_S, 5))
    monkeypatch.undo()
    fill(tmp_path, gaps=[(NOW_S, 1.0)])
    with open_history(tmp_path) as history:
        assert [start_s for start_s, _ in history.gaps(GPU)][1:3] == [NOW_S - 60, NOW_S]
        assert len(history.parks(GPU)) == 3
        assert len(history.hours(GPU)) == 35, "those of 1970 are old, by any clock that is believed"


@given(counts=st.dictionaries(st.integers(1, 9), st.integers(1, 500), min_size=1), most=st.integers(0, 2000))
def test_who_has_most_loses_most(counts, most):
    """As many rows stay as may, and nobody keeps more than another one who had to give some away."""
    level = retention._level(counts, most)
    kept = {gpu: min(count, level) for gpu, count in counts.items()}
    assert sum(kept.values()) <= most or kept == {}
    if sum(counts.values()) > most:
        assert sum(min(count, level + 1) for count in counts.values()) > most
    else:
        assert kept == counts


@pytest.mark.parametrize("rows", [0, 900])
def test_few_rows_are_never_thinned_out(tmp_path, rows):
    """A file that is full of something else is not emptied for it."""
    fill(tmp_path, gaps=[(float(nth), 1.0) for nth in range(rows)])
    fill(tmp_path, hours=hours(NOW_S, 3000), limits=Limits(most_bytes=1))
    fill(tmp_path, hours=hours(NOW_S, 1), limits=SMALL)
    with open_history(tmp_path) as history:
        assert len(history.gaps(GPU)) == rows
