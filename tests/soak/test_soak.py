"""Clients, faults, kills, stops, reloads and operators all at once: no promise is broken and nothing leaks.

MEMSCALER_SOAK_S: seconds (`make soak`: half an hour). MEMSCALER_SOAK_SEED: the seed that a failed run has printed.
"""

import json
import os
import random
import time
from dataclasses import dataclass

import pytest

from tests.governor import connect, eventually, listener, port_of
from tests.soak import checker
from tests.soak.checker import Checker
from tests.soak.soak import Soak

SECONDS = float(os.environ.get("MEMSCALER_SOAK_S", "30"))


@pytest.mark.timeout(SECONDS * 2 + 240)
def test_soak(tmp_path):
    """8 boards, 64 watches, one seed."""
    seed = os.environ.get("MEMSCALER_SOAK_SEED") or str(random.SystemRandom().randrange(10**6))
    print(f"MEMSCALER_SOAK_SEED={seed}")
    soak = Soak(tmp_path, SECONDS, seed)
    soak.run()
    print(soak.report())


@dataclass
class Board:
    """One of no driver."""

    index: int = 0
    is_slow: bool = False
    locks: str = ""
    key: str = "a40"
    memory_clock_mhz: int = 405


class Driver:
    """What the checker asks of one."""

    def __init__(self, *boards):
        self.boards = boards

    def log_mark(self):
        return 0

    def call_log(self, **_):
        return []


@pytest.fixture
def checking(monkeypatch):
    """A checker in a hurry, and its board."""
    monkeypatch.setitem(checker.GRACE_S, "up", 0.1)
    monkeypatch.setattr(checker, "SETTLED_S", 0.05)
    board = Board()
    found = Checker(Driver(board))
    found.told({"what": "mode", "mode": "up", "new": True})
    return found, board


def looks(found, for_s):
    end = time.monotonic() + for_s
    while time.monotonic() < end:
        found.look()
        time.sleep(0.01)


def violations(capsys):
    return [json.loads(line)["violation"] for line in capsys.readouterr().out.splitlines() if "violation" in line]


def first_violation(found, capsys):
    return eventually(lambda: looks(found, 0.02) or violations(capsys), what="a violation")[0]


def test_checker_sees_a_slow_board_with_a_client(checking, capsys):
    """A connection, a request under way, a hold: each is told once the grace is over, unless the driver is at fault."""
    found, board = checking
    with listener() as server:
        found.told({"what": "watches", "watches": [[port_of(server), [0], True]]})
        board.is_slow = True
        looks(found, 0.3)
        assert not violations(capsys)
        with connect(server):
            found.told({"what": "fault", "board": 0})
            looks(found, 0.3)
            assert not violations(capsys)
            found.faults[0] = 0.0
            assert "connection" in first_violation(found, capsys)
    for event, word in (
        ({"what": "request", "port": port_of_any(found), "key": 7}, "request 7"),
        ({"what": "hold", "id": "h", "boards": [0]}, "hold h"),
    ):
        found.told(event)
        found.wanted_since.clear()
        assert word in first_violation(found, capsys)


def port_of_any(found):
    return next(iter(found.watches))


def test_checker_sees_a_board_that_never_parks(checking):
    """Its account has the time in which the board should have been parked, and none in which it was."""
    found, board = checking
    looks(found, 0.4)
    assert found.account["quiet_ms"][0] > 100
    assert not found.account["parked_ms"][0]
    board.is_slow = True
    looks(found, 0.4)
    assert found.account["parked_ms"][0] > 100
