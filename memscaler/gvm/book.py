"""What is turned, what is to be turned, and what is to be put back: pure. One Item for each place.

    clean    nothing of ours is set there
    turning  a call is under way; whatever it comes to, the place may be ours from then on
    ours     it is as a rule wants it, or was: to be put back when no rule wants it any more
    undoing  a call is under way

One call at a time for each place: who hangs in a driver is not asked again. A turn that fails is tried again after
growing pauses while it is wanted. An undo is tried for ever, with short pauses: somebody stands still until then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from memscaler.core.gpuctl import Knob
from memscaler.gvm.turning import Place, Was
from memscaler.gvm.wanted import Want

FIRST_RETRY_S, LONGEST_RETRY_S = 2.0, 300.0  # of a turn
FIRST_UNDO_S, LONGEST_UNDO_S = 0.2, 10.0

Seconds = float


class Doing(StrEnum):
    """The call that is under way at a place."""

    NOTHING = ""
    TURN = "turn"
    UNDO = "undo"


@dataclass(frozen=True, slots=True)
class Item:
    """A place. want: None when no rule wants anything there. ours: what we have set, or may have, the last one last.

    was: before; None: not looked at yet. doing, call: what is under way, and its number. again: to be turned once more
    although it is as wanted: somebody else may have changed it. lost: somebody else has it now, until nobody wants it.
    fails: since it went well; not_before_s: of the next attempt. problem: a sentence. since_unix_s: it is ours.
    """

    place: Place
    want: Want | None = None
    ours: tuple[int, ...] = ()
    was: Was | None = None
    doing: Doing = Doing.NOTHING
    call: int = 0
    aimed: int = 0
    again: bool = False
    lost: bool = False
    settled: bool = False
    fails: int = 0
    not_before_s: Seconds = 0.0
    problem: str = ""
    since_unix_s: float = 0.0

    @property
    def is_clean(self) -> bool:
        """Nothing of ours is set there, nor is about to be."""
        return not self.ours and self.doing is Doing.NOTHING

    @property
    def is_as_wanted(self) -> bool:
        """What is wanted is set, as far as we know."""
        return self.want is not None and self.settled and self.ours[-1:] == (self.want.value,)


@dataclass(frozen=True, slots=True)
class Turn:
    """Write into the journal that this place may be ours; then turn it. Answer with Turned, NotTurned or Ended.

    was: before us; None: the place is clean, look. again: look first whether it is so still. ours: with the value that
    is to be set now.
    """

    key: str
    place: Place
    value: int
    call: int
    was: Was | None
    ours: tuple[int, ...]
    again: bool = False


@dataclass(frozen=True, slots=True)
class Undo:
    """Put it back, then take it out of the journal. Answer with Ended or NotUndone."""

    key: str
    place: Place
    was: Was
    ours: tuple[int, ...]
    call: int


Action = Turn | Undo


@dataclass(frozen=True, slots=True)
class Turned:
    """It is as was asked."""

    key: str
    call: int
    was: Was
    at_unix_s: float = 0.0


@dataclass(frozen=True, slots=True)
class NotTurned:
    """It is not. changed: it may have changed all the same. was: None if that was not even looked at.

    lost: somebody else has changed it, and it is his now. at_s: now.
    """

    key: str
    call: int
    why: str
    at_s: Seconds
    changed: bool = False
    was: Was | None = None
    lost: bool = False
    at_unix_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing of ours is there any more: put back, or its process is gone, or it is somebody else's. at_s: now."""

    key: str
    call: int
    at_s: Seconds


@dataclass(frozen=True, slots=True)
class NotUndone:
    """It may be ours still."""

    key: str
    call: int
    why: str
    at_s: Seconds


@dataclass(frozen=True, slots=True)
class Late:
    """A call takes longer than it should; its answer will come, or never."""

    key: str
    call: int
    why: str


Answer = Turned | NotTurned | Ended | NotUndone | Late


@dataclass(frozen=True, slots=True)
class Book:
    """All places. number: of the last call."""

    items: Mapping[str, Item] = field(default_factory=dict)
    number: int = 0

    @property
    def is_clean(self) -> bool:
        """Nothing is left to be put back."""
        return all(item.is_clean for item in self.items.values())

    @property
    def due_s(self) -> Seconds:
        """When to call `act` at the latest."""
        return min((_due_s(item) for item in self.items.values()), default=math.inf)


def adopt(book: Book, key: str, place: Place, was: Was, ours: tuple[int, ...], since_unix_s: float = 0.0) -> Book:
    """Something that an earlier arbiter has left: to be put back."""
    return _with(book, key, Item(place, ours=ours or (0,), was=was, since_unix_s=since_unix_s))


def want(book: Book, wants: Mapping[str, Want]) -> Book:
    """This is wanted from now on, and nothing else. Follow with `act`."""
    items = dict(book.items)
    for key in items.keys() | wants.keys():
        wish, item = wants.get(key), items.get(key)
        if item is None:
            if wish is not None:
                items[key] = Item(wish.place, wish)
            continue
        changed = (item.want is None) != (wish is None) or (
            item.want is not None and wish is not None and item.want.value != wish.value
        )
        item = replace(item, want=wish)
        if changed:  # another attempt, at once
            item = replace(item, fails=0, not_before_s=0.0, again=False, lost=False, problem="")
        items[key] = item
    return replace(book, items={key: item for key, item in items.items() if item.want or not item.is_clean})


def look_again(book: Book) -> Book:
    """What is ours is to be looked at: a process may have come back to its GPU, which forgets. Follow with `act`."""
    items = {key: replace(item, again=True) if item.is_as_wanted else item for key, item in book.items.items()}
    return replace(book, items=items)


def act(book: Book, now_s: Seconds) -> tuple[Book, tuple[Action, ...]]:
    """What is to be done now. What is wanted comes first, so that whoever changes means never runs in between."""
    turns: list[Action] = []
    undos: list[Action] = []
    number, items = book.number, dict(book.items)
    for key, item in book.items.items():
        if _due_s(item) > now_s:
            continue
        number += 1
        wish = item.want
        if wish is not None:
            ours = (*(value for value in item.ours if value != wish.value), wish.value)
            again = item.is_as_wanted
            turns.append(Turn(key, item.place, wish.value, number, item.was, ours, again))
            items[key] = replace(item, doing=Doing.TURN, call=number, aimed=wish.value, again=False)
        else:
            undos.append(Undo(key, item.place, item.was or Was(None), item.ours, number))
            items[key] = replace(item, doing=Doing.UNDO, call=number, settled=False)
    freezes_first = sorted(turns, key=lambda each: each.place.knob is not Knob.COMPUTE_FREEZE)
    thaws_first = sorted(undos, key=lambda each: each.place.knob is not Knob.COMPUTE_FREEZE)
    return replace(book, items=items, number=number), (*freezes_first, *thaws_first)


def _due_s(item: Item) -> Seconds:
    if item.doing is not Doing.NOTHING:
        return math.inf
    if item.want is None:
        return item.not_before_s if item.ours else math.inf
    if item.lost or (item.is_as_wanted and not item.again):
        return math.inf
    return item.not_before_s


def hear(book: Book, answer: Answer) -> Book:
    """An answer. One to a call that is not under way is passed over. Follow with `act`."""
    item = book.items.get(answer.key)
    if item is None or item.doing is Doing.NOTHING or item.call != answer.call:
        return book
    idle = replace(item, doing=Doing.NOTHING)
    match answer:
        case Late(why=why):
            return _with(book, answer.key, replace(item, problem=why))
        case Turned(was=was, at_unix_s=at_unix_s):
            ours = (item.aimed,)
            since = item.since_unix_s if item.ours else at_unix_s
            heard = replace(
                idle, ours=ours, was=was, settled=True, fails=0, not_before_s=0.0, problem="", since_unix_s=since
            )
        case NotTurned(why=why, changed=changed, was=was, lost=lost, at_s=at_s):
            since = item.since_unix_s or answer.at_unix_s
            tried = (*(value for value in item.ours if value != item.aimed), item.aimed) if changed else item.ours
            heard = replace(
                _failed(idle, why, at_s, FIRST_RETRY_S, LONGEST_RETRY_S),
                ours=tried,
                was=(item.was or was) if tried else None,
                settled=False,
                lost=lost,
                since_unix_s=since if tried else 0.0,
            )
            heard = replace(heard, not_before_s=0.0, fails=0) if heard.want is None else heard
        case Ended(at_s=at_s):
            heard = Item(item.place, item.want)
            if item.doing is Doing.TURN:  # gone: not wanted after the next look, unless it comes back before that
                heard = _failed(replace(heard, fails=item.fails), "", at_s, FIRST_RETRY_S, LONGEST_RETRY_S)
        case NotUndone(why=why, at_s=at_s):
            heard = _failed(idle, why, at_s, FIRST_UNDO_S, LONGEST_UNDO_S)
            heard = replace(heard, not_before_s=0.0) if heard.want is not None else heard
    if heard.want is None and heard.is_clean:
        return _without(book, answer.key)
    return _with(book, answer.key, heard)


def _failed(item: Item, why: str, at_s: Seconds, first_s: Seconds, longest_s: Seconds) -> Item:
    pause_s = min(first_s * 2.0 ** min(item.fails, 20), longest_s)
    return replace(item, problem=why, fails=item.fails + 1, not_before_s=at_s + pause_s)


def _with(book: Book, key: str, item: Item) -> Book:
    return replace(book, items={**book.items, key: item})


def _without(book: Book, key: str) -> Book:
    return replace(book, items={other: item for other, item in book.items.items() if other != key})
