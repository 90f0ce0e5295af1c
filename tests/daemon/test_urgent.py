"""The urgent channel: whoever asks gets its own answer, in time or not at all, and nobody is ever kept."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from memscaler.daemon import urgent as channel
from memscaler.daemon.urgent import NOT_ANSWERED, PARK_WAIT_S, WAKE_WAIT_S, Urgent
from tests.patience import patience

SLACK_S = 0.5 * patience()  # of a busy machine, beside the time that may be waited


class Other:
    """The arbiter's end."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        end.settimeout(10)

    def asked(self) -> dict[str, Any]:
        return dict(json.loads(self.end.recv(4096)))

    def answer(self, number: int, **more: Any) -> None:
        self.end.send(json.dumps({"n": number, **more}).encode())


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Urgent, Other]]:
    """Both ends; answers that are given at once come in time also on a busy machine."""
    monkeypatch.setattr(channel, "WAKE_WAIT_S", 5.0)
    monkeypatch.setattr(channel, "PARK_WAIT_S", 5.0)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    urgent = Urgent()
    urgent.attach(ours)
    urgent.first, urgent.gvm = frozenset({"GPU-1", "GPU-2"}), True
    yield urgent, Other(theirs)
    urgent.detach()
    theirs.close()


def took_s(urgent: Urgent) -> float:
    """What a wake waits."""
    began_s = time.monotonic()
    urgent.before_wake("GPU-1", rang=True)
    return time.monotonic() - began_s


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The times of the product again."""
    monkeypatch.setattr(channel, "WAKE_WAIT_S", WAKE_WAIT_S)
    monkeypatch.setattr(channel, "PARK_WAIT_S", PARK_WAIT_S)


def test_a_wake_waits_for_its_answer(pair: tuple[Urgent, Other]) -> None:
    """And says who it is for, and why."""
    urgent, other = pair
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(urgent.before_wake, "GPU-1", rang=True)
        question = other.asked()
        assert (question["wake"], question["rang"]) == ("GPU-1", True)
        time.sleep(0.1)
        assert not waiting.done()
        other.answer(question["n"])
        waiting.result(10)


def test_other_gpus_ask_nothing(pair: tuple[Urgent, Other]) -> None:
    """They pay nothing; nor does anybody when there is no arbiter."""
    urgent, other = pair
    urgent.before_wake("GPU-3", rang=True)
    urgent.gvm = False
    assert urgent.may_park("GPU-1") == ""
    Urgent().before_wake("GPU-1", rang=True)
    assert Urgent().may_park("GPU-1") == ""
    other.end.setblocking(False)
    with pytest.raises(BlockingIOError):
        other.asked()


def test_a_park_is_refused_with_the_reason(pair: tuple[Urgent, Other]) -> None:
    """In its words."""
    urgent, other = pair
    with ThreadPoolExecutor(1) as pool:
        for word in ("kernels pending: python (77)", ""):
            waiting = pool.submit(urgent.may_park, "GPU-2")
            question = other.asked()
            assert question["park"] == "GPU-2"
            other.answer(question["n"], word=word)
            assert waiting.result(10) == word


def test_many_ask_at_once_and_get_their_own_answers(pair: tuple[Urgent, Other]) -> None:
    """In any order, also between answers to nobody."""
    urgent, other = pair
    with ThreadPoolExecutor(16) as pool:
        for _ in range(30):
            waiting = [pool.submit(urgent.may_park, f"GPU-{number}") for number in range(16)]
            questions = [other.asked() for _ in waiting]
            for question in sorted(questions, key=lambda each: hash(str(each["n"]))):
                other.answer(10**6 + question["n"], word="nobody's")
                other.answer(question["n"], word=question["park"])
            assert [each.result(10) for each in waiting] == [f"GPU-{number}" for number in range(16)]


def test_who_does_not_answer_delays_one_wake_and_no_more(
    pair: tuple[Urgent, Other], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until something comes; parks are refused meanwhile, because nobody knows."""
    urgent, other = pair
    hurry(monkeypatch)
    assert WAKE_WAIT_S <= took_s(urgent) <= WAKE_WAIT_S + SLACK_S
    began_s = time.monotonic()
    for _ in range(20):
        urgent.before_wake("GPU-1", rang=True)
    assert time.monotonic() - began_s < 20 * WAKE_WAIT_S * patience()
    assert urgent.may_park("GPU-1") == NOT_ANSWERED
    questions = [other.asked() for _ in range(22)]
    for question in questions:  # all the same they were asked
        other.answer(question["n"])
    monkeypatch.setattr(channel, "WAKE_WAIT_S", 5.0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(urgent.before_wake, "GPU-1", rang=False)
        last = other.asked()
        assert not last["rang"]
        time.sleep(0.05)
        assert not waiting.done()  # it is waited for again
        other.answer(last["n"])
        waiting.result(10)


def test_one_that_reads_no_more_keeps_nobody(pair: tuple[Urgent, Other], monkeypatch: pytest.MonkeyPatch) -> None:
    """However many questions lie there."""
    urgent, _ = pair
    hurry(monkeypatch)
    began_s = time.monotonic()
    for _ in range(5000):
        urgent.before_wake("GPU-1", rang=True)
    assert time.monotonic() - began_s < 5000 * WAKE_WAIT_S


@pytest.mark.parametrize("nonsense", [b"{", b"7", b"[]", b'"x"', b"\xff", b'{"n": []}', b'{"n": "x"}'])
def test_nonsense_is_no_answer(pair: tuple[Urgent, Other], nonsense: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """And harms nobody."""
    urgent, other = pair
    hurry(monkeypatch)
    other.end.send(nonsense)
    assert took_s(urgent) < WAKE_WAIT_S + SLACK_S
    assert urgent.may_park("GPU-1") == NOT_ANSWERED


def test_a_word_that_is_none_is_doubt(pair: tuple[Urgent, Other]) -> None:
    """Nobody knows what it means."""
    urgent, other = pair
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(urgent.may_park, "GPU-1")
        other.answer(other.asked()["n"], word=7)
        assert waiting.result(10) == NOT_ANSWERED


@pytest.mark.parametrize("ours", [True, False])
def test_who_waits_hears_of_its_end(pair: tuple[Urgent, Other], ours: bool) -> None:
    """At once, not when its time is over; and nobody keeps a descriptor."""
    urgent, other = pair
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(urgent.may_park, f"GPU-{number}") for number in range(4)]
        for _ in waiting:
            other.asked()
        began_s = time.monotonic()
        if ours:
            urgent.detach()
        else:
            other.end.close()
        words = [each.result(10) for each in waiting]
        assert time.monotonic() - began_s < 4
        assert set(words) == ({""} if ours else {NOT_ANSWERED})
    assert took_s(urgent) < 1
    if ours:
        other.end.settimeout(5)
        assert other.end.recv(1) == b""  # closed


def test_arbiters_come_and_go_under_those_who_ask() -> None:
    """A descriptor that is closed too early is another one's by then: nothing may be written or read there."""
    urgent, over, mistakes = Urgent(), threading.Event(), []

    def ask(number: int) -> None:
        while not over.is_set():
            time.sleep(0.0005)  # the interpreter is the others', too
            try:
                urgent.before_wake(f"GPU-{number}", rang=True)
                urgent.may_park(f"GPU-{number}")
            except Exception as error:  # noqa: BLE001  # any is one too many
                mistakes.append(error)

    def echo(end: socket.socket) -> None:
        with end:
            while data := end.recv(4096):
                try:
                    end.send(data)
                except OSError:
                    return

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    before = len(list(Path("/proc/self/fd").iterdir()))
    bystander, far = socket.socketpair()
    with bystander, far:
        for _ in range(60):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            echoing = threading.Thread(target=echo, args=(theirs,))
            echoing.start()
            urgent.attach(ours)
            urgent.first, urgent.gvm = frozenset(f"GPU-{number}" for number in range(6)), True
            time.sleep(0.003)
            urgent.detach()
            echoing.join(10)
            assert not echoing.is_alive()
        over.set()
        for thread in threads:
            thread.join(10)
        far.setblocking(False)
        with pytest.raises(BlockingIOError):
            far.recv(1)
    assert not mistakes
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
