"""The checker, a process that knows nothing of the daemon: it reads the boards and the kernel's list of sockets.

On its standard input it is told what is done to the daemon and the boards, and which requests wait for an answer: one
JSON object per line. Each violation is a line on its standard output, and the account at the end is one.

    python -m tests.soak.checker STATE_FILE
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from memscaler.simulator import SimulatedDriver
from tests.patience import patience

LIVE = {"01", "08"}  # ESTABLISHED, CLOSE_WAIT: include/net/tcp_states.h
EVERY_S = 0.02
# So long a board may be slow although somebody is there, by what state the daemon is in: it needs milliseconds, the
# guardian needs to notice and to open the driver; this machine has other things to do.
GRACE_S = {"up": 2.0, "dead": 5.0, "stopped": 5.0, "orphaned": 1e9, "starting": 1e9}
AFTER_FAULT_S = 15.0  # a failed wake is asked for again after 3.2 s at most
MOST_SUSPECTS = 10_000
SETTLED_S = 2.5  # quiet for longer than that: it should be parked


class Checker:
    """Compares each moment with what was promised."""

    def __init__(self, driver: SimulatedDriver) -> None:
        self.boards = driver.boards
        self.driver = driver
        count = range(len(self.boards))
        self.mode, self.mode_since = "starting", 0.0
        self.watches: dict[int, tuple[tuple[int, ...], bool, float]] = {}  # port -> boards, by connections, since
        self.requests: dict[tuple[int, int], float] = {}
        self.connections: dict[tuple[int, int], float] = {}  # local and remote port -> first seen
        self.faults: dict[int, float] = dict.fromkeys(count, 0.0)  # excused until then; inf: now
        self.doubted: set[int] = set()  # boards that may be left alone, after faults, until the daemon starts anew
        self.holds: dict[str, tuple[frozenset[int], float]] = {}
        self.suspect: dict[tuple[int, str], int] = {}
        self.slow = dict.fromkeys(count, False)
        self.wanted_since: dict[int, float] = {}  # slow and with somebody there, one or another, since
        self.quiet_since: dict[int, float | None] = dict.fromkeys(count)
        self.account: dict[str, Counter[int]] = defaultdict(Counter)
        self.samples = 0
        self.latest = time.monotonic()
        self.mark = driver.log_mark()
        self.calls: Counter[str] = Counter()

    def told(self, event: dict[str, Any]) -> None:  # noqa: C901  # a case for each
        """Something that was done."""
        now = time.monotonic()
        match event.pop("what"):
            case "mode":
                self.mode, self.mode_since = event["mode"], now
                if self.mode == "up" and event["new"]:
                    self.doubted = {board for board, until in self.faults.items() if until > now}
            case "watches":
                known = self.watches
                self.watches = {}
                for port, gpus, by_connections in event["watches"]:
                    same = port in known and known[port][:2] == (tuple(gpus), by_connections)
                    self.watches[port] = (tuple(gpus), by_connections, known[port][2] if same else now)
            case "request":
                self.requests[event["port"], event["key"]] = now
            case "answered":
                self.requests.pop((event["port"], event["key"]), None)
            case "fault":
                self.faults[event["board"]] = float("inf")
                self.doubted.add(event["board"])
            case "cleared":
                self.faults[event["board"]] = now + AFTER_FAULT_S * patience()
            case "disturbed":
                self.quiet_since = dict.fromkeys(self.quiet_since)
            case "hold":
                self.holds[event["id"]] = (frozenset(event["boards"]), now)
            case "unhold":
                self.holds.pop(event["id"], None)

    def look(self) -> None:
        """One moment."""
        # The boards first: who comes after that need not have been noticed.
        slow = {board.index: board.is_slow or bool(board.locks) for board in self.boards}
        present = sockets(self.watches)
        now = time.monotonic()
        self.connections = {pair: self.connections.get(pair, now) for pair in present}
        if len(self.suspect) > MOST_SUSPECTS:
            self.suspect.clear()
        claims = self._claims()
        for board, is_slow in slow.items():
            if is_slow and claims.get(board):
                claims[board].append((self.wanted_since.setdefault(board, now), "somebody all the time"))
            else:
                self.wanted_since.pop(board, None)
            self._compare(board, is_slow, claims.get(board), now)
            self._count(board, is_slow, now, quiet=not claims.get(board))
        self.slow = slow
        self.latest = now
        self.samples += 1
        if self.samples % 50 == 0:
            records = self.driver.call_log(after=self.mark)
            self.mark = max((record.number for record in records), default=self.mark)
            self.calls.update(record.symbol for record in records)

    def _claims(self) -> dict[int, list[tuple[float, str]]]:
        """Board -> since when it has to be awake, and for whom."""
        found: dict[int, list[tuple[float, str]]] = defaultdict(list)
        for (port, peer), since in self.connections.items():
            boards, by_connections, watched_since = self.watches[port]
            for board in boards if by_connections else ():
                found[board].append((max(since, watched_since), f"connection {port} <- {peer}"))
        for (port, key), since in self.requests.items():
            if port in self.watches:
                boards, _, watched_since = self.watches[port]
                for board in boards:
                    found[board].append((max(since, watched_since), f"request {key} on {port}"))
        for name, (held, since) in self.holds.items():
            for board in held:
                found[board].append((since, f"hold {name}"))
        return found

    def _compare(self, board: int, slow: bool, claims: list[tuple[float, str]] | None, now: float) -> None:
        grace_s = GRACE_S[self.mode] * patience()
        excused = now < self.faults[board]
        for since, whose in claims or ():
            overdue = now - max(since, self.mode_since, self.faults[board] if not excused else now) - grace_s
            if not slow or excused or overdue <= 0:
                self.suspect.pop((board, whose), None)
                continue
            seen = self.suspect[board, whose] = self.suspect.get((board, whose), 0) + 1
            if seen == 3:  # not between two looks only
                self._violated(board, f"slow for {grace_s + overdue:.2f} s although there is {whose} ({self.mode})")

    def _count(self, board: int, slow: bool, now: float, *, quiet: bool) -> None:
        """How much of the time in which it should be parked it is."""
        if slow != self.slow[board]:
            self.account["parks" if slow else "wakes"][board] += 1
            if self.mode == "stopped":  # by the guardian: the daemon will take it for a rival
                self.doubted.add(board)
        if not quiet or self.mode != "up" or board in self.doubted:
            self.quiet_since[board] = None
            return
        begun = self.quiet_since[board]
        self.quiet_since[board] = begun = now if begun is None else begun
        if now - max(begun, self.mode_since) > SETTLED_S * patience():
            span_ms = round((now - self.latest) * 1000)
            self.account["quiet_ms"][board] += span_ms
            self.account["parked_ms"][board] += span_ms * slow

    def _violated(self, board: int, what: str) -> None:
        state = self.boards[board]
        say(
            violation=f"gpu{board} ({state.key}): {what}",
            at=time.monotonic(),
            locks=str(state.locks),
            clock_mhz=state.memory_clock_mhz,
            mode=f"{self.mode} for {time.monotonic() - self.mode_since:.2f} s",
            calls=[
                f"{record.symbol}{record.arguments} = {record.code} by {record.pid} {time.monotonic() - record.entry_ns / 1e9:.2f} s ago"
                for record in self.driver.call_log()[-2000:]
                if record.gpu == board
            ][-12:],
        )


def sockets(ports: dict[int, Any]) -> list[tuple[int, int]]:
    """(watched port, client's port) of each live connection, as the servers have it."""
    found = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, *_ = line.split(maxsplit=4)
        port = int(local[9:], 16)
        if port in ports and state in LIVE:
            found.append((port, int(remote[9:], 16)))
    return found


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def main() -> None:
    """Until the standard input ends."""
    checker = Checker(SimulatedDriver.attach(sys.argv[1]))
    os.set_blocking(0, False)
    say(ready=True)
    rest = b""
    due = time.monotonic()
    while True:
        ready, _, _ = select.select([0], [], [], max(0.0, due - time.monotonic()))
        if ready:
            data = os.read(0, 1 << 20)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                checker.told(json.loads(line))
        if time.monotonic() >= due:
            checker.look()
            due = max(due + EVERY_S, time.monotonic())
    say(
        account={name: dict(count) for name, count in checker.account.items()},
        samples=checker.samples,
        calls=dict(checker.calls),
    )


if __name__ == "__main__":
    main()
