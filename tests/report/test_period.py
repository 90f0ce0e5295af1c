"""Which time a report is about: local days, also where and when the clocks change."""

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memscaler.cli.report.period import read_period
from memscaler.core.errors import UsageError


def at(text):
    return datetime.fromisoformat(text).timestamp()


def test_days_are_whole_from_midnight(zone):
    """A week back means from that day's midnight on; the last day ends now."""
    zone("Europe/Berlin")
    period = read_period("7d", at("2026-11-21T22:00:00+01:00"))
    assert period.start_unix_s == at("2026-11-14T00:00:00+01:00")
    assert [day.name for day in period.days] == [f"2026-11-{day}" for day in range(14, 22)]
    assert period.days[-1].length_s == 22 * 3600


@pytest.mark.parametrize(
    ("name", "date", "hours"),
    [
        ("Europe/Berlin", "2026-03-29", 23),
        ("Europe/Berlin", "2026-10-25", 25),
        ("America/New_York", "2026-11-01", 25),
        ("Australia/Lord_Howe", "2026-10-04", 23.5),
        ("Africa/Cairo", "2026-04-24", 23),  # its clocks change at midnight: that day has none
        ("Asia/Kolkata", "2026-10-25", 24),
    ],
)
def test_days_on_which_the_clocks_change(zone, name, date, hours):
    """They have 23 or 25 hours, and the days around them follow each other without a gap."""
    zone(name)
    period = read_period(date, at(f"{date}T12:00:00+00:00") + 3 * 86400)
    assert period.days[0].name == date
    assert period.days[0].length_s == hours * 3600
    for day, following in zip(period.days, period.days[1:], strict=False):
        assert day.end_unix_s == following.start_unix_s


def test_hours(zone):
    """Less than a day counts in whole hours."""
    zone("UTC")
    period = read_period("5h", at("2026-11-21T02:20:00+00:00"))
    assert period.start_unix_s == at("2026-11-20T21:00:00+00:00")
    assert [(day.name, day.length_s / 3600) for day in period.days] == [("2026-11-20", 3.0), ("2026-11-21", 2 + 1 / 3)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "7",
        "-7d",
        "2026-13-01",
        "2026-02-30",
        "0000-00-00",
        "2030-01-01",
        "59m",
        "0",
        "3700d",
        "2001-01-01",
        "9999-12-31",
    ],
)
def test_what_is_no_period(zone, text):
    """The message names the option, the hint what to write."""
    zone("UTC")
    with pytest.raises(UsageError, match="--since") as caught:
        read_period(text, at("2026-11-21T22:00:00+00:00"))
    assert "7d" in caught.value.hint
    assert "ms" not in f"{caught.value} {caught.value.hint}"


def test_years(zone):
    """The hours are kept for five; as a time or as a date."""
    zone("UTC")
    for text in ("500d", "1827d", "2020-01-01"):
        assert read_period(text, at("2026-11-21T22:00:00+00:00")).days


@given(
    now_s=st.integers(10**9, 2 * 10**9),
    back_h=st.integers(1, 24 * 366),
)
def test_days_fill_the_period(now_s, back_h):
    """Without holes, without overlap, each with a name of its own."""
    period = read_period(f"{back_h}h", float(now_s))
    assert period.days[0].start_unix_s == period.start_unix_s
    assert period.days[-1].end_unix_s == period.end_unix_s
    assert sum(day.length_s for day in period.days) == pytest.approx(period.end_unix_s - period.start_unix_s)
    assert len({day.name for day in period.days}) == len(period.days)
