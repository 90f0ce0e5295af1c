"""The time that a report is about: whole local days, or whole hours if it is shorter than a day."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta

from memscaler.core.errors import UsageError
from memscaler.core.summary import DAY_S, HOUR_S, Day

LONGEST_S = 3653 * DAY_S
HINT = "--since 12h, 7d or 2026-11-01"


@dataclass(frozen=True, slots=True)
class Period:
    """From start to end, which is now; days: the local days in it, the first and the last cut off at its ends."""

    start_unix_s: float
    end_unix_s: float
    days: tuple[Day, ...]


def read_period(since: str, now_unix_s: float) -> Period:
    """`since`: a time back from now, or the date of a local day. Raise UsageError."""
    from memscaler.config import values

    text = since.strip()
    if (day := _date(text)) is not None:
        start_unix_s = midnight_unix_s(day)
        if start_unix_s > now_unix_s:
            raise UsageError(f"--since: {text} is yet to come", hint=HINT)
        if now_unix_s - start_unix_s > LONGEST_S + DAY_S:
            raise UsageError(f"--since: {text} is more than ten years ago", hint=HINT)
    else:
        try:
            back_s = values.duration_s(0.0, float("inf"))(text)
        except ValueError as error:
            raise UsageError(f"--since: {text!r} is no time back from now, and no day", hint=HINT) from error
        if not HOUR_S <= back_s <= LONGEST_S:
            bound = "at least an hour" if back_s < HOUR_S else "at most ten years"
            raise UsageError(f"--since: {text!r} is out of range: {bound}", hint=HINT)
        start_unix_s = (now_unix_s - back_s) // HOUR_S * HOUR_S
        if back_s >= DAY_S:
            start_unix_s = midnight_unix_s(date.fromtimestamp(now_unix_s - back_s))  # noqa: DTZ012  # local days
    return Period(start_unix_s, now_unix_s, _days(start_unix_s, now_unix_s))


def midnight_unix_s(day: date) -> float:
    """When this local day begins. Where the clocks change at midnight, the first moment that bears its date."""
    return datetime(day.year, day.month, day.day).timestamp()  # noqa: DTZ001  # local days


def _days(start_unix_s: float, end_unix_s: float) -> tuple[Day, ...]:
    found, day = [], date.fromtimestamp(start_unix_s)  # noqa: DTZ012
    begin_s = start_unix_s
    while begin_s < end_unix_s:
        following = day + timedelta(days=1)
        stop_s = min(end_unix_s, midnight_unix_s(following))
        if stop_s > begin_s:
            found.append(Day(day.isoformat(), begin_s, stop_s))
        begin_s, day = stop_s, following
    return tuple(found)


def _date(text: str) -> date | None:
    """None: it is written like no date. Raise UsageError for one that is on no calendar."""
    if not (len(text) == len("2026-11-01") and text[4] == text[7] == "-"):
        return None
    try:
        day = date.fromisoformat(text)
        midnight_unix_s(day + timedelta(days=1))
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(f"--since: {text!r} is no date", hint=HINT) from error
    return day
