"""The clients and their servers, in one thread: what is open when follows from the seed."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from tests.soak.world import HALVES, Watched

REQUEST, ANSWER = b"x" * 3000, b"y" * 200
RESET = struct.pack("ii", 1, 0)
Tell = Callable[..., None]


class Pair:
    """Both ends of a connection. kept: stays open through the quiet."""

    def __init__(self, listener: socket.socket, watched: Watched, key: int) -> None:
        self.watched, self.key, self.kept, self.busy = watched, key, False, False
        self.client = socket.create_connection(listener.getsockname(), timeout=10)
        self.server, _ = listener.accept()

    def close(self, how: str = "client") -> None:
        """how: who closes first; "reset": abruptly."""
        if how == "reset":
            self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        for end in (self.server, self.client) if how == "server" else (self.client, self.server):
            end.close()


class Load:
    """Busy and quiet times, each half of the boards by itself. tell: the checker, of requests under way."""

    def __init__(self, listeners: Sequence[socket.socket], watched: Sequence[Watched], seed: str, tell: Tell) -> None:
        self._listeners = dict(zip(watched, listeners, strict=True))
        self._random = random.Random(f"{seed}:load")
        self._tell = tell
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._open: dict[int, Pair] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self.done: Counter[str] = Counter()
        self.error: Exception | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Close everything."""
        self._stop.set()
        self._thread.join(30)
        for pair in [*self._open.values()]:
            self._close(pair, "client")

    def _run(self) -> None:
        for half in range(len(HALVES)):
            self._at(self._random.uniform(0, 1), lambda half=half: self._begin(half))
        try:
            while not self._stop.is_set():
                due, _, act = heapq.heappop(self._agenda)
                while (left := due - time.monotonic()) > 0 and not self._stop.wait(left):
                    pass
                if not self._stop.is_set():
                    act()
        except Exception as error:  # noqa: BLE001  # told by the soak
            self.error = error

    def _at(self, in_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (time.monotonic() + in_s, next(self._numbers), act))

    def _begin(self, half: int) -> None:
        """Work on some boards of this half for a while, then none for a while."""
        chance = self._random
        busy_s, quiet_s = chance.uniform(1.5, 4), chance.uniform(2.5, 6)
        if chance.random() < 0.3:  # longer than it takes to be rescued
            busy_s = chance.uniform(8, 14)
        boards = set(chance.sample(HALVES[half], chance.randint(1, 4)))
        ports = [each for each in self._listeners if set(each.gpus) <= boards]
        end = time.monotonic() + busy_s
        for _ in range(chance.randint(5, 60)):
            watched = chance.choice(ports)
            self._at(chance.uniform(0, busy_s * 0.8), lambda watched=watched: self._work(watched, end))
        self._at(busy_s, lambda: self._hush(half))
        self._at(busy_s + quiet_s, lambda: self._begin(half))

    def _hush(self, half: int) -> None:
        for pair in [*self._open.values()]:
            if pair.watched.gpus[0] in HALVES[half] and not pair.kept:
                self._close(pair, "client")

    def _work(self, watched: Watched, end: float) -> None:
        chance = self._random
        what = chance.choice(("touch", "stay", "half", "request", "request", "reset", "again", "keep"))
        how = chance.choice(("client", "server"))
        stays_s = min(chance.choice((0.2, 3, 12)) * chance.random(), max(0.02, end - time.monotonic()))
        older = [each for each in self._open.values() if each.kept and each.watched == watched and not each.busy]
        if what == "keep" and (watched.by_connections or len(older) > 3):
            what = "stay"
        if what == "again" and not older:
            what = "request"
        self.done[what] += 1
        if what == "again":
            self._ask(older[0], stays_s, lambda: None)
            return
        pair = Pair(self._listeners[watched], watched, next(self._numbers))
        self._open[pair.key] = pair
        match what:
            case "touch":
                self._close(pair, how)
            case "stay" | "reset":
                self._at(stays_s, lambda: self._close(pair, "reset" if what == "reset" else how))
            case "half":
                (pair.client if how == "client" else pair.server).shutdown(socket.SHUT_WR)
                self._at(stays_s, lambda: self._close(pair, how))
            case "request":
                self._ask(pair, stays_s, lambda: self._close(pair, how))
            case "keep":
                pair.kept = True
                self._ask(pair, stays_s, lambda: None)
                self._at(stays_s + chance.uniform(1, 15), lambda: self._close(pair, how))

    def _ask(self, pair: Pair, for_s: float, after: Callable[[], None]) -> None:
        pair.busy = True
        pair.client.sendall(REQUEST)
        self._tell("request", port=pair.watched.port, key=pair.key)
        self._at(for_s, lambda: self._answer(pair, after))

    def _answer(self, pair: Pair, after: Callable[[], None]) -> None:
        if pair.key not in self._open or not pair.busy:
            return
        self._tell("answered", port=pair.watched.port, key=pair.key)
        pair.busy = False
        with contextlib.suppress(OSError):
            pair.server.recv(1 << 16)
            pair.server.sendall(ANSWER)
            pair.client.recv(1 << 16)
        after()

    def _close(self, pair: Pair, how: str) -> None:
        if self._open.pop(pair.key, None) is not None:
            if pair.busy:
                self._tell("answered", port=pair.watched.port, key=pair.key)
            pair.close(how)
