"""Times of the week: what may be written, what it means, and when it changes."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memscaler.config.hours import Window, parse_window, parse_windows, within


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A zone with clock changes, by its rule: no zone files are needed."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    os.environ.pop("TZ", None)
    time.tzset()


def at(text: str) -> float:
    return dt.datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(
    ("text", "when", "inside", "until"),
    [
        ("Mon-Fri 09:00-18:00", "2026-11-20T17:59", True, "2026-11-20T18:00"),  # a Friday
        ("Mon-Fri 09:00-18:00", "2026-11-20T18:00", False, "2026-11-23T09:00"),
        ("22:00-06:00", "2026-11-21T05:59", True, "2026-11-21T06:00"),
        ("22:00-06:00", "2026-11-21T06:00", False, "2026-11-21T22:00"),
        ("Fri 22:00-06:00", "2026-11-21T03:00", True, "2026-11-21T06:00"),  # the night after Friday
        ("Fri 22:00-06:00", "2026-11-20T03:00", False, "2026-11-20T22:00"),
        ("Sat,Sun", "2026-11-21T00:00", True, "2026-11-22T00:00"),
        ("sat-MONDAY 23:00-24:00", "2026-11-23T23:30", True, "2026-11-24T00:00"),
        ("02:30-04:00", "2026-10-25T03:30", True, "2026-10-25T04:00"),  # the night of a clock change
        ("12:00-13:00", "2026-03-29T11:00", False, "2026-03-29T12:00"),
    ],
)
def test_within(text: str, when: str, inside: bool, until: str) -> None:
    """Inside or not, and when that changes: on the wall of the machine's own zone."""
    assert within(parse_windows(text), at(when)) == (inside, at(until))


def test_no_windows_never_change() -> None:
    """Nothing configured: nothing to wait for."""
    assert within((), time.time()) == (False, None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Mon Tue", "no time of the week"),
        ("25:00-26:00", "25:00 is no time of day"),
        ("09:00-09:00", "is empty"),
        ("Mo 09:00-10:00", "'Mo' is no day"),
        ("09:61-10:00", "09:61 is no time of day"),
        ("24:00-01:00", "is empty"),
        ("09:00", "is no span"),
    ],
)
def test_what_is_no_time_of_the_week(text: str, problem: str) -> None:
    """Every mistake has a sentence."""
    with pytest.raises(ValueError, match=problem):
        parse_windows([text])


windows = st.builds(
    lambda days, begin, length: Window(days, begin, begin + (length if begin == 0 else min(length, 1439))),
    st.frozensets(st.integers(0, 6), min_size=1),
    st.integers(0, 1439),
    st.integers(1, 1440),
)


@given(windows)
def test_reads_back(window: Window) -> None:
    """What the status prints can be written into the file."""
    assert parse_window(str(window)) == window


@given(st.lists(windows, max_size=4), st.floats(0, 4e9))
def test_nothing_changes_before_the_time_told(some: list[Window], now_s: float) -> None:
    """From now to the next change the answer stays the same."""
    inside, until_s = within(some, now_s)
    assert until_s is None or until_s > now_s
    end_s = now_s + 86400 if until_s is None else min(until_s, now_s + 86400)
    for step in range(1, 10):
        assert within(some, now_s + (end_s - now_s) * step / 10)[0] == inside
