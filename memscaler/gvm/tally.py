"""What rules have done so far, for telling: counts, times, whose doing each place is. Used under the hands' lock."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from memscaler.gvm.book import Book, Doing
from memscaler.gvm.wanted import RuleAt, Want

KEPT = 20  # times from a client's coming
MOST_CAUSES = 1000  # that were logged already


@dataclass
class Counts:
    """Of one rule. since: watch -> since when it holds there, of CLOCK_MONOTONIC."""

    applied: int = 0
    released: int = 0
    failed: int = 0
    seconds: float = 0.0
    since: dict[str, float] = field(default_factory=dict)
    began_s: float = 0.0
    first_s: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))


@dataclass(frozen=True, slots=True)
class Told:
    """The same, as of now. seconds: in force in all."""

    applied: int
    released: int
    failed: int
    seconds: float
    first_s: tuple[float, ...]


class Tally:
    """wants: by place, what was wanted there last: of what is put back it tells whose it is."""

    def __init__(self) -> None:
        self.wants: dict[str, Want] = {}
        self._counts: dict[str, Counts] = {}
        self._starting: dict[RuleAt, float] = {}

    def of(self, rule: str) -> Counts:
        """This rule's."""
        return self._counts.setdefault(rule, Counts())

    def turned_over(self, at: RuleAt, is_on: bool, at_s: float) -> None:  # noqa: FBT001  # its only meaning
        """A rule has come into force for a watch, or is no more."""
        counts = self.of(at[0])
        if is_on:
            if not counts.since:
                counts.began_s = at_s
            counts.since[at[1]] = at_s
            self._starting[at] = at_s
            return
        self._starting.pop(at, None)
        counts.since.pop(at[1], None)
        if not counts.since:
            counts.seconds += max(at_s - counts.began_s, 0.0)

    def told(self, rule: str) -> Told:
        """Of this rule, until now."""
        counts = self.of(rule)
        seconds = counts.seconds + (time.monotonic() - counts.began_s if counts.since else 0.0)
        return Told(counts.applied, counts.released, counts.failed, round(seconds, 3), tuple(counts.first_s))

    def settled(self, book: Book) -> None:
        """Of the rules that have just come into force: whether all that they want is done."""
        now_s = time.monotonic()
        for at, began_s in list(self._starting.items()):
            items = [item for item in book.items.values() if item.want is not None and at[0] in item.want.rules]
            if any(item.doing is not Doing.NOTHING for item in items):
                continue
            del self._starting[at]
            if any(item.is_as_wanted for item in items):
                self.of(at[0]).first_s.append(now_s - began_s)

    def forget(self, book: Book) -> None:
        """Places that nobody has turned or wants."""
        for key in [key for key in self.wants if key not in book.items]:
            del self.wants[key]


@dataclass
class Causes:
    """Why something could not be done: each is logged once for each place, not for every client that comes."""

    _said: dict[tuple[str, str], None] = field(default_factory=dict)

    def is_new(self, key: str, why: str) -> bool:
        """Whether this was not said yet, as far as we remember."""
        new = (key, why) not in self._said
        self._said[key, why] = None
        if len(self._said) > MOST_CAUSES:
            del self._said[next(iter(self._said))]
        return new
