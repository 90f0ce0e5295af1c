"""What is turned and put back: every order of wishes, answers, failures and deaths of a small world."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memscaler.config.gpuctl import GpuctlRule
from memscaler.core.gpuctl import Knob, Means
from memscaler.gvm import book as books
from memscaler.gvm.book import Book, Doing, Ended, Late, NotTurned, NotUndone, Turn, Turned, Undo
from memscaler.gvm.processes import Subject
from memscaler.gvm.turning import Place, Was
from memscaler.gvm.wanted import Aim, Want, wanted

PLACES = {
    "a": Place(Knob.COMPUTE_FREEZE, Means.SIGNAL, 11, 100),
    "b": Place(Knob.MEMORY_LIMIT, Means.GVM, 12, 200, path="/12/0", uuid="GPU-1"),
}
PLAIN = {"a": 0, "b": 2**64 - 1}
VALUES = {"a": (1,), "b": (6, 4)}


def a_want(key: str, value: int) -> Want:
    place = PLACES[key]
    return Want(place, value, "rule", frozenset({"rule"}), (Subject(place.pid, place.started),))


@dataclass
class World:
    """real: what is set, None: that process is gone. journal: what an undo would find. calls: what has no answer yet."""

    book: Book = field(default_factory=Book)
    real: dict[str, int | None] = field(default_factory=lambda: dict(PLAIN))
    journal: dict[str, tuple[Was, tuple[int, ...]]] = field(default_factory=dict)
    calls: list[Turn | Undo] = field(default_factory=list)
    wants: dict[str, Want] = field(default_factory=dict)
    now_s: float = 0.0

    def act(self) -> None:
        for _ in range(50):
            self.book, actions = books.act(self.book, self.now_s)
            if not actions:
                break
            for action in actions:
                assert action.key not in {call.key for call in self.calls}, "one call at a time"
                self.calls.append(action)
        else:
            raise AssertionError("it never comes to rest")
        for key, item in self.book.items.items():
            assert (item.doing is not Doing.NOTHING) == any(call.key == key for call in self.calls)

    def want(self, **values: int) -> None:
        self.wants = {key: a_want(key, value) for key, value in values.items()}
        self.book = books.want(self.book, self.wants)
        self.act()

    def hear(self, answer) -> None:
        self.book = books.hear(self.book, answer)
        self.act()

    def do(self, how: str) -> None:
        """The oldest call ends."""
        if not self.calls:
            return
        call = self.calls.pop(0)
        key, real = call.key, self.real[call.key]
        if how == "late":
            self.calls.insert(0, call)
            self.hear(Late(key, call.call, "it takes long"))
        elif isinstance(call, Turn):
            self.turn(call, how, real)
        elif how == "fail" and real is not None:
            self.hear(NotUndone(key, call.call, "no", self.now_s))
        else:
            if real is not None and (real in call.ours or key == "a"):  # what others have set is theirs
                self.real[key] = PLAIN[key] if call.was.value is None else call.was.value
            self.journal.pop(key, None)
            self.hear(Ended(key, call.call, self.now_s))

    def turn(self, call: Turn, how: str, real: int | None) -> None:
        key = call.key
        if real is None:
            self.journal.pop(key, None)
            self.hear(Ended(key, call.call, self.now_s))
            return
        was = call.was or Was(real)
        self.journal[key] = was, call.ours
        if how == "fail":
            if call.was is None:
                self.journal.pop(key)
            self.hear(NotTurned(key, call.call, "no", self.now_s, was=was))
        else:
            self.real[key] = call.value
            if how == "half":
                self.hear(NotTurned(key, call.call, "0x1f", self.now_s, changed=True, was=was))
            else:
                self.hear(Turned(key, call.call, was, 1.0))

    def die(self, key: str) -> None:
        self.real[key] = None

    def tick(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while self.book.due_s <= end_s:
            self.now_s = max(self.now_s, self.book.due_s)
            self.act()
        self.now_s = end_s

    def again(self) -> None:
        self.book = books.look_again(self.book)
        self.act()

    def settle(self, seconds: float = 20.0) -> None:
        """All goes well from now on."""
        end_s = self.now_s + seconds
        for _ in range(500):
            if self.calls:
                self.do("ok")
            elif self.book.due_s <= end_s:
                self.tick(self.book.due_s - self.now_s)
            else:
                self.now_s = end_s
                return
        raise AssertionError("it never comes to rest")

    def check(self) -> None:
        """Always."""
        for key, real in self.real.items():
            if real is not None and real != PLAIN[key]:
                assert key in self.journal, "a crash now would leave it for ever"
                was, ours = self.journal[key]
                assert real in ours
                assert was.value == PLAIN[key], "what it was is what it was before us"
        for key, item in self.book.items.items():
            if item.want is not None and not item.is_as_wanted and item.doing is Doing.NOTHING and not item.lost:
                assert item.problem or item.not_before_s > self.now_s, f"{key}: not as wanted, and nobody knows why"


STEPS = {
    "freeze": lambda world: world.want(a=1),
    "limit": lambda world: world.want(b=6),
    "less": lambda world: world.want(a=1, b=4),
    "nothing": lambda world: world.want(),
    "ok": lambda world: world.do("ok"),
    "fail": lambda world: world.do("fail"),
    "half": lambda world: world.do("half"),
    "late": lambda world: world.do("late"),
    "a dies": lambda world: world.die("a"),
    "b dies": lambda world: world.die("b"),
    "again": World.again,
    "tick": lambda world: world.tick(1.0),
}


def walk(story) -> None:
    world = World()
    for name in story:
        STEPS[name](world)
        world.check()
    wants = {key: want.value for key, want in world.wants.items()}
    world.settle(700.0)  # longer than any pause
    for key, value in wants.items():
        assert world.real[key] in (value, None), (story, world.book)
    world.want()  # everybody has gone
    world.settle()
    for key, plain in PLAIN.items():
        assert world.real[key] in (plain, None), (story, world.book)
    assert world.journal == {}
    assert world.book.is_clean
    assert world.book.items == {}
    assert world.book.due_s == math.inf


def test_every_order_of_events():
    """All stories of four, exhaustively: what is wanted comes about, and in the end everything is as it was."""
    for story in itertools.product(STEPS, repeat=4):
        walk(story)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(list(STEPS)), max_size=40))
def test_long_stories(story):
    """The same at random."""
    walk(story)


@pytest.mark.parametrize("left_by", ["a crash before the turn", "a crash after it"])
def test_what_an_earlier_arbiter_left_is_put_back(left_by):
    """Whether or not it got as far as doing it."""
    world = World()
    world.journal["a"] = Was(0), (1,)
    world.real["a"] = 1 if left_by.endswith("it") else 0
    world.book = books.adopt(world.book, "a", PLACES["a"], Was(0), (1,))
    world.act()
    world.settle()
    assert world.real["a"] == 0
    assert world.journal == {}


def test_a_failing_undo_is_tried_for_ever_at_short_intervals():
    """Somebody stands still until it works."""
    world = World()
    world.want(a=1)
    world.do("ok")
    world.want()
    for _ in range(100):
        world.do("fail")
        assert world.book.items["a"].problem == "no"
        assert world.book.due_s - world.now_s <= books.LONGEST_UNDO_S
        world.tick(books.LONGEST_UNDO_S)
        assert world.calls


def test_a_failing_turn_waits_longer_each_time():
    """And says why."""
    world = World()
    world.want(a=1)
    pauses = []
    for _ in range(12):
        world.do("fail")
        pauses.append(world.book.due_s - world.now_s)
        world.tick(pauses[-1])
    assert pauses[:3] == [2.0, 4.0, 8.0]
    assert max(pauses) == books.LONGEST_RETRY_S


def test_what_somebody_else_has_changed_is_his_until_the_rule_lets_go():
    """It is told, and not fought over."""
    world = World()
    world.want(a=1)
    world.do("ok")
    world.again()
    call = world.calls.pop()
    assert isinstance(call, Turn)
    assert call.again
    world.hear(NotTurned("a", call.call, "somebody else has let it go on", world.now_s, lost=True))
    assert world.book.due_s == math.inf
    assert world.book.items["a"].problem
    world.want()
    world.want(a=1)
    world.settle()
    assert world.book.items["a"].is_as_wanted


def test_of_two_rules_the_stricter_holds_and_one_that_lets_go_leaves_the_other():
    """Freeze before none, the lowest limit, the lowest priority, the highest nice, the lowest weight."""
    one = GpuctlRule(
        name="one", freeze=True, memory_limit_bytes=6, compute_priority=3, cpu_nice=5, cpu_weight=50, origin="x"
    )
    two = GpuctlRule(name="two", memory_limit_bytes=4, compute_priority=12, cpu_nice=-3, cpu_weight=100)
    subject = Subject(11, 100)
    places = {knob: Place(knob, Means.GVM, 11, 100, path="/11/0") for knob in Knob}
    aims = [
        Aim(rule.name, "8080", subject, places[knob], value)
        for rule in (one, two)
        for knob, value in rule.values().items()
    ]
    both = {
        want.place.knob: (want.value, want.rule) for want in wanted(aims, {("one", "8080"), ("two", "8080")}).values()
    }
    assert both == {
        Knob.COMPUTE_FREEZE: (1, "one"),
        Knob.MEMORY_LIMIT: (4, "two"),
        Knob.COMPUTE_PRIORITY: (12, "two"),
        Knob.CPU_NICE: (5, "one"),
        Knob.CPU_WEIGHT: (50, "one"),
    }
    assert {want.rule for want in wanted(aims, {("two", "8080")}).values()} == {"two"}
    assert Knob.COMPUTE_FREEZE not in {want.place.knob for want in wanted(aims, {("two", "8080")}).values()}
    assert wanted(aims, {("two", "9090")}) == {}
