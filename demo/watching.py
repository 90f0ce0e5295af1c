"""A thread that looks at the boards twenty times a second, and at the governor's log and metrics."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from demo.client import Clients
from demo.evidence import Sample
from demo.governor import Governor, Metrics
from memscaler.simulator import SimulatedDriver

LOOK_S = 0.05
SCRAPE_S = 1.0
FRESH_S, FRESH_PATIENCE_S = 0.1, 3.0


@dataclass(slots=True)
class Shown:
    """What the display shows of one GPU."""

    name: str
    port: int
    state: str = ""
    connections: int = 0  # live ones, as the governor's metrics have them


class Watcher:
    """Collects; `on_event` is called, in this thread, with every event of the governor's log."""

    def __init__(
        self, driver: SimulatedDriver, clients: Clients, shown: list[Shown], on_event: Callable[[dict[str, Any]], None]
    ) -> None:
        self.samples: list[list[Sample]] = [[] for _ in driver.boards]
        self.shown = shown
        self.metrics: Metrics | None = None
        self.most_connections = [0] * len(shown)
        self.scrape = True
        self._driver = driver
        self._clients = clients
        self._on_event = on_event
        self._governor: Governor | None = None
        self._lock = threading.RLock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """The last look is over when this returns."""
        self._end.set()
        self._thread.join()

    def follow(self, governor: Governor | None) -> None:
        """Read this governor's log and metrics from now on."""
        with self._lock:
            self._tell()
            self._governor = governor

    def fresh_metrics(self) -> Metrics | None:
        """A scrape that tells of this moment: the governor answers from a sample that may be a second old."""
        end = time.monotonic() + FRESH_PATIENCE_S
        while True:
            found = self.look_at_metrics()
            ages = found.values("memscaler_gpu_sample_age_seconds") if found else []
            if (ages and max(ages) <= FRESH_S) or time.monotonic() > end:
                return found
            time.sleep(5 * LOOK_S)

    def look_at_metrics(self) -> Metrics | None:
        """A scrape right now."""
        with self._lock:
            found = self._governor.metrics() if self._governor else None
            if found is not None:
                self.metrics = found
                for index, shown in enumerate(self.shown):
                    shown.connections = int(found.value("memscaler_port_connections", port=str(shown.port)))
                    self.most_connections[index] = max(self.most_connections[index], shown.connections)
            return found

    def _run(self) -> None:
        scrape_due = time.monotonic()
        while not self._end.wait(LOOK_S):
            for gpu, board in enumerate(self._driver.boards):
                now_ns = time.monotonic_ns()
                waiting_ns = max((now_ns - since_ns for since_ns in self._clients.waiting_since_ns(gpu)), default=0)
                locked = bool(board.locks)
                self.samples[gpu].append(Sample(time.monotonic_ns(), board.power_w, locked, waiting_ns))
            with self._lock:
                self._tell()
            if self.scrape and time.monotonic() >= scrape_due:
                self.look_at_metrics()
                scrape_due = time.monotonic() + SCRAPE_S

    def _tell(self) -> None:
        if self._governor is None:
            return
        for event in self._governor.news():
            if event["event"] == "gpu.changed_state":
                self.shown[int(str(event["gpu"]).removeprefix("gpu"))].state = event["state"]
            self._on_event(event)
