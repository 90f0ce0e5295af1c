"""What happens in the demo, in order. Real clients, real servers, the real governor; only the GPUs are simulated."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from demo import model
from demo.client import Clients, Work
from demo.evidence import SECOND_NS, parked_spans
from demo.expectations import Alone, Card, Evidence
from demo.governor import Governor
from demo.llama import Llama
from demo.screen import Screen
from demo.watching import Shown, Watcher
from memscaler.simulator import SimulatedBoard, SimulatedDriver

CARDS = (Card("A40", 80, 18, counts_energy=True), Card("P40", 50, 10, counts_energy=False))
BOARDS = ("a40", "p40")
PARK_PATIENCE_S = 4.0  # more than the idle time, before a park counts as missing
SETTLE_S = 0.2
UUID = re.compile(r" GPU-[0-9a-f-]+")


@dataclass(frozen=True, slots=True)
class Plan:
    """How long things take, in seconds, and how much of it there is. short: leaves out what only repeats."""

    idle_s: float
    quiet_s: float
    answer_s: float
    knocks: int
    short: bool = False

    @property
    def steps(self) -> int:
        """For the progress bar."""
        return 7 if self.short else 9


FULL = Plan(idle_s=3.0, quiet_s=1.0, answer_s=1.5, knocks=2)
SHORT = Plan(idle_s=3.0, quiet_s=0.0, answer_s=0.5, knocks=0, short=True)


@dataclass(frozen=True, slots=True)
class Measured:
    """Joules up to a moment: by the governor's metrics, and by the boards themselves."""

    at_ns: int
    used_j: list[float]
    saved_j: list[float]
    simulator_j: list[float]
    accepted: int


class Demo:
    """Everything that runs. Use as `with Demo(...) as demo: evidence = demo.play()`."""

    def __init__(self, plan: Plan, folder: Path, screen: Screen) -> None:
        self._plan = plan
        self._folder = folder
        self._screen = screen
        self._stack = contextlib.ExitStack()
        self._evidence = Evidence(CARDS)
        self._runs = 0

    def __enter__(self) -> Self:
        try:
            self._prepare()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # ---- the parts --------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        screen = self._screen
        screen.heading("Getting ready")
        path = self._folder / "tiny.gguf"
        model.write(path)
        screen.event(f"wrote a random model of {path.stat().st_size / 1e6:.1f} MB")
        servers = [
            self._stack.enter_context(Llama(path, self._folder / f"llama{gpu}.log")) for gpu in range(len(CARDS))
        ]
        for server in servers:
            server.wait_listening()
        ports = tuple(server.port for server in servers)
        screen.event(f"two llama.cpp servers listen on ports {ports[0]} and {ports[1]}")
        state = self._folder / "run" / "simulator" / "state"
        state.parent.mkdir(parents=True)
        self._driver = self._stack.enter_context(SimulatedDriver.create(state, BOARDS))
        self._clients = Clients(ports, Work(self._driver.boards))
        self._tokens = self._tokens_in(self._plan.answer_s, ports)
        shown = [Shown(card.name, port) for card, port in zip(CARDS, ports, strict=True)]
        self._watcher = Watcher(self._driver, self._clients, shown, self._on_event)
        self._screen.watch(lambda: list(zip(shown, self._watcher.samples, strict=True)))
        self._watcher.start()
        self._stack.callback(self._watcher.stop)
        self._arguments = [f"--port={port}:gpu{gpu}" for gpu, port in enumerate(ports)]
        self._arguments += ["--simulate", ",".join(BOARDS), "--idle-after", f"{self._plan.idle_s:g}s"]
        self._start_governor()
        screen.step_done()

    def _tokens_in(self, wanted_s: float, ports: tuple[int, ...]) -> int:
        """How many tokens this machine makes in that time. Asked before the governor is there to count connections."""
        probe = Clients(ports, Work(self._driver.boards)).ask(0, 200, stream=False).answers[0]
        rate = probe.tokens * SECOND_NS / max(1, probe.done_ns - probe.sent_ns)
        return min(1500, max(100, round(rate * wanted_s)))

    def _start_governor(self) -> None:
        self._runs += 1
        log = self._folder / f"governor{self._runs}.log"
        self._governor = Governor(self._folder / "run", log, self._arguments)
        self._stack.callback(self._governor.clean_up)
        for event in self._governor.wait_started():
            self._on_event(event)
        self._watcher.follow(self._governor)
        self._watcher.scrape = True

    def _on_event(self, event: dict[str, Any]) -> None:
        """Retell the governor's log in plain words."""
        if event["event"] == "kernel.attached":
            self._screen.event(f"the governor's kernel side is attached ({' and '.join(event['hooks'])})")
        elif event["event"] == "gpu.governed":
            gpu = _number(event["gpu"])
            self._screen.event(f"{CARDS[gpu].name} (gpu{gpu}) is governed, lever: {event['lever']}")
        elif event["event"] == "gpu.woken":
            name = CARDS[_number(event["gpu"])].name
            if "latency_us" in event:
                self._evidence.latencies_us.append(event["latency_us"])
                self._screen.event(f"{name} woken {event['latency_us']} us after the kernel saw a connection", "yellow")
            else:
                self._screen.event(f"{name} woken ({event['reason']})", "yellow")
        elif event["event"] == "gpu.changed_state" and event["state"] in ("parked", "unmanaged"):
            name = CARDS[_number(event["gpu"])].name
            why = f" ({event['reason']})" if event["state"] == "unmanaged" else ""
            self._screen.event(f"{name} {event['state']}{why}", "green" if not why else "red")
        elif event["event"] == "guardian.acted":
            said = UUID.sub("", event["what"].removeprefix("the daemon died; "))
            self._screen.event(f"guardian: {said}", "yellow")
        elif event["event"] == "said":  # whatever has no log of its own
            self._screen.event(event["text"], "red")
        elif event.get("level") in ("error", "critical"):
            self._screen.event(f"governor: {event}", "red")

    # ---- the story --------------------------------------------------------------------------------------------------

    def play(self) -> Evidence:
        """All scenes. Returns what was seen."""
        before = self._measure()
        self._scene("Nobody asks anything", self._quiet, "at first")
        self._scene("One client asks the A40's server", self._ask_one, 0)
        if not self._plan.short:
            self._scene("One client asks the P40's server", self._ask_one, 1)
        self._scene("Five clients ask at once", self._ask_all)
        self._scene("A client stays connected and thinks", self._think, 0)
        if not self._plan.short:
            self._scene("Short questions out of the blue", self._knock)
        self._account(before, self._measure())
        self._scene("The governor is killed (SIGKILL), then started again", self._kill)
        self._scene("The governor is told to stop (SIGTERM)", self._stop)
        return self._collect()

    def _scene(self, title: str, act: Callable[..., None], *arguments: object) -> None:
        self._screen.heading(title)
        act(*arguments)
        self._screen.step_done()

    def _quiet(self, when: str) -> None:
        """Wait until both are parked, note it, and stay so for a while."""
        parked = self._wait_parked()
        time.sleep(SETTLE_S)
        watts = [board.power_w for board in self._driver.boards]
        self._evidence.quiet.append((when, parked, watts))
        now = ", ".join(f"{card.name} {power_w:.0f} W" for card, power_w in zip(CARDS, watts, strict=True))
        self._screen.event(f"now: {now}")
        time.sleep(self._plan.quiet_s)

    def _ask_one(self, gpu: int) -> None:
        start_ns = time.monotonic_ns()
        connection = self._clients.ask(gpu, self._tokens)
        self._evidence.alone.append(Alone(gpu, start_ns, time.monotonic_ns()))
        self._tell_answer(connection.answers[-1].tokens, start_ns)
        self._quiet(f"after the {CARDS[gpu].name} was asked")

    def _ask_all(self) -> None:
        start_ns = time.monotonic_ns()
        before = len(self._clients.connections)
        self._clients.ask_together([0, 0, 0, 1, 1], self._tokens // 2)
        asked = self._clients.connections[before:]
        self._tell_answer(sum(each.answers[-1].tokens for each in asked), start_ns)
        self._quiet("after five clients")

    def _think(self, gpu: int) -> None:
        """Longer than the idle time, less than the 5 s after which llama.cpp closes a silent connection."""
        pause_s = min(self._plan.idle_s * 1.35, 4.4)
        start_ns = time.monotonic_ns()
        connection = self._clients.talk(gpu, 200, pause_s)
        self._evidence.alone.append(Alone(gpu, start_ns, time.monotonic_ns()))
        self._screen.event(f"silent for {pause_s:.1f} s with the connection open, then asked again")
        self._tell_answer(sum(answer.tokens for answer in connection.answers), start_ns)
        self._quiet("after the long silence")

    def _knock(self) -> None:
        for number in range(self._plan.knocks):
            self._clients.ask_together([0, 1], 20)
            self._quiet(f"after knock {number + 1}")

    def _kill(self) -> None:
        seen = self._evidence
        self._watcher.scrape = False
        seen.parked_at_kill = [bool(board.locks) for board in self._driver.boards]
        seen.daemon_pid = self._governor.pid
        seen.killed_ns = self._governor.kill()
        if not self._wait(lambda: not any(board.locks for board in self._driver.boards), 3.0):
            self._screen.event("still parked!", "red")
        time.sleep(self._plan.quiet_s)
        self._start_governor()
        seen.restarted = all(self._wait_parked())
        time.sleep(SETTLE_S)

    def _stop(self) -> None:
        seen = self._evidence
        self._watcher.scrape = False
        seen.stop_status, seen.stop_s = self._governor.stop()
        for card, board in zip(CARDS, self._driver.boards, strict=True):
            if board.locks:
                seen.locks_left.append(f"{card.name} {board.locks}")
        seen.locks_left += [path.name for path in (self._folder / "run" / "journal").glob("GPU-*.json")]
        self._screen.event(f"ended after {seen.stop_s * 1000:.0f} ms")
        time.sleep(0.5)

    # ---- helpers ----------------------------------------------------------------------------------------------------

    def _wait_parked(self) -> list[bool]:
        self._wait(lambda: all(board.locks for board in self._driver.boards), 2 * self._plan.idle_s + PARK_PATIENCE_S)
        return [bool(board.locks) and _is_slow(board) for board in self._driver.boards]

    def _wait(self, reached: Callable[[], bool], limit_s: float) -> bool:
        end = time.monotonic() + limit_s
        while not reached():
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        return True

    def _measure(self) -> Measured:
        """By a scrape that the governor takes a new sample for."""
        metrics = self._watcher.fresh_metrics()

        def each_gpu(name: str) -> list[float]:
            return [metrics.value(name, gpu=str(gpu)) if metrics else 0.0 for gpu in range(len(CARDS))]

        return Measured(
            at_ns=time.monotonic_ns(),
            used_j=each_gpu("memscaler_gpu_energy_joules_total"),
            saved_j=each_gpu("memscaler_gpu_energy_saved_joules_total"),
            simulator_j=[board.energy_j for board in self._driver.boards],
            accepted=int(metrics.value("memscaler_port_accepts_total")) if metrics else 0,
        )

    def _account(self, first: Measured, last: Measured) -> None:
        seen = self._evidence
        seen.measured_ns = first.at_ns, last.at_ns
        seen.accepted = last.accepted
        seen.used_j = _differences(first.used_j, last.used_j)
        seen.saved_j = _differences(first.saved_j, last.saved_j)
        seen.simulator_j = _differences(first.simulator_j, last.simulator_j)

    def _tell_answer(self, tokens: int, start_ns: int) -> None:
        self._screen.event(f"answered: {tokens} tokens, {(time.monotonic_ns() - start_ns) / SECOND_NS:.1f} s")

    def _collect(self) -> Evidence:
        self._watcher.stop()
        seen = self._evidence
        seen.connections = self._clients.connections
        seen.samples = self._watcher.samples
        seen.most_connections = self._watcher.most_connections
        calls = self._driver.call_log()
        seen.spans = [parked_spans(calls, gpu) for gpu in range(len(CARDS))]
        return seen


def _is_slow(board: SimulatedBoard) -> bool:
    """The lock has taken effect, within its settle time."""
    end = time.monotonic() + 1.0
    while not board.parked and time.monotonic() < end:
        time.sleep(0.005)
    return board.parked


def _differences(first: list[float], last: list[float]) -> list[float]:
    return [after - before for before, after in zip(first, last, strict=True)]


def _number(gpu: object) -> int:
    """Of "gpu0", or of 0."""
    return int(str(gpu).removeprefix("gpu"))
