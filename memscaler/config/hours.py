"""Times of the week: "Mon-Fri 09:00-18:00", "22:00-06:00", "Sat,Sun". Local time, whatever the clock is set to."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
FULL_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
DAY_MIN = 24 * 60
_EXAMPLES = '"Mon-Fri 09:00-18:00", "22:00-06:00" or "Sat,Sun"'
_TIMES = re.compile(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})")


@dataclass(frozen=True, slots=True)
class Window:
    """On these days (0: Monday) from `begin_min` on, minutes after midnight; up to `end_min`, which may be past it.

    0 <= begin_min < 1440, begin_min < end_min < begin_min + 1440, or a whole day, from 0 to 1440. str() reads back as
    the same window.
    """

    days: frozenset[int]
    begin_min: int
    end_min: int

    def __str__(self) -> str:
        days = "" if len(self.days) == len(DAYS) else ",".join(DAYS[day] for day in sorted(self.days)) + " "
        ends = DAY_MIN if self.end_min == DAY_MIN else self.end_min % DAY_MIN
        return f"{days}{_clock(self.begin_min)}-{_clock(ends)}"

    def spans(self, now: dt.datetime) -> Iterator[tuple[float, float]]:
        """(begin, end) in seconds since 1970 of all that end after yesterday's midnight, for nine days."""
        for offset in range(-2, 9):
            day = dt.datetime.combine(now.date() + dt.timedelta(days=offset), dt.time())
            if day.weekday() in self.days:
                # On the wall, not elapsed: on the night of a clock change a window is an hour longer or shorter.
                begin, end = (day + dt.timedelta(minutes=minute) for minute in (self.begin_min, self.end_min))
                yield begin.timestamp(), end.timestamp()


def parse_windows(raw: object) -> tuple[Window, ...]:
    """Windows, in TOML's list or parted by semicolons. Raise ValueError with a sentence."""
    texts = raw if isinstance(raw, (list, tuple)) else str(raw).split(";")
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{raw!r} is not a list of times (write {_EXAMPLES})")
    return tuple(parse_window(text) for text in texts if text.strip())


def parse_window(text: str) -> Window:
    """One window. Raise ValueError with a sentence."""
    words = text.split()
    times = words.pop() if words and ":" in words[-1] else "00:00-24:00"
    if len(words) > 1 or not text.strip():
        raise ValueError(f"{text!r} is no time of the week (write {_EXAMPLES})")
    found = _TIMES.fullmatch(times)
    if found is None:
        raise ValueError(f"{text!r}: {times!r} is no span of time (write 09:00-18:00)")
    begin, end = _minutes(found[1], found[2], text), _minutes(found[3], found[4], text)
    if begin in (DAY_MIN, end):
        raise ValueError(f"{text!r}: {times!r} is empty (a whole day is 00:00-24:00)")
    days = _days(words[0], text) if words else frozenset(range(len(DAYS)))
    return Window(days, begin, end if end > begin else end + DAY_MIN)


def within(windows: Iterable[Window], now_unix_s: float) -> tuple[bool, float | None]:
    """(now inside one of them, when that may change next in seconds since 1970; None: never)."""
    now = dt.datetime.fromtimestamp(now_unix_s)  # noqa: DTZ006  # local time is what people mean
    spans = [span for window in windows for span in window.spans(now)]
    inside = any(begin <= now_unix_s < end for begin, end in spans)
    return inside, min((edge for span in spans for edge in span if edge > now_unix_s), default=None)


def _minutes(hours: str, minutes: str, text: str) -> int:
    total = int(hours) * 60 + int(minutes)
    if int(minutes) >= 60 or total > DAY_MIN:  # noqa: PLR2004  # minutes of an hour
        raise ValueError(f"{text!r}: {hours}:{minutes} is no time of day (00:00-24:00)")
    return total


def _days(text: str, whole: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        begin, end = _day(first, whole), _day(last if dash else first, whole)
        found |= {(begin + step) % len(DAYS) for step in range((end - begin) % len(DAYS) + 1)}
    return frozenset(found)


def _day(word: str, whole: str) -> int:
    """Mon, monday, MON."""
    for number, (short, full) in enumerate(zip(DAYS, FULL_DAYS, strict=True)):
        if word.strip().lower() in (short.lower(), full):
            return number
    raise ValueError(f"{whole!r}: {word!r} is no day (write {', '.join(DAYS)})")


def _clock(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"
