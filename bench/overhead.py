"""Requests a second of a real llama.cpp and a real nginx with memscaler watching their port, against without it.

The client is C (loops.c): two at a time, on connections that they keep or on a new one for each request. A round goes
through all states, forth in one and back in the next; what is compared with a state is the mean of what was measured
without memscaler before and after it:
 - no-connections, no-traffic: the port's GPU is awake, because it is asked;
 - beside a parked one: the same, while another watched GPU is parked although a connection to it is open, so that the
   data hook looks at every packet of the machine.
The ratio is that of the medians; the interval holds 95 of 100 ratios of medians of as many rounds drawn again from
those measured. `control` compares the two measurements without memscaler with each other: what is left to chance.
Where the rates are, the CPU time per request (client and server together, with the kernel's part) says it better.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.figures import Figure, percentile
from bench.loops import requests_per_s
from bench.processes import usage
from bench.servers import Server, llama, nginx, request
from tests.governor import Governor, connect, eventually, governing, listener, port_of

RATIO = 0.99
CLIENTS = 2
SLICE_S = 0.1
SETTLE_S = 0.5
DRAWS = 2000
COMPLETION: dict[str, object] = {"prompt": "a", "n_predict": 1}
PARKED_BESIDE = "beside a parked one"
STATES = {
    "no-connections": ("--quiet", "no-connections", "--touch", "off"),
    "no-traffic": (),
    PARKED_BESIDE: (),
}


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of whom. keep: on the same connections all the time."""

    name: str
    server: Server
    request: bytes
    keep: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """One block of requests: per second, CPU time of client and server per request, and the daemon's share of a CPU."""

    per_s: float
    cpu_us: float
    daemon_percent: float = 0.0


@dataclass
class Samples:
    """Of one load in one state, by round: there, before and after (both without memscaler)."""

    on: list[Sample] = field(default_factory=list)
    before: list[Sample] = field(default_factory=list)
    after: list[Sample] = field(default_factory=list)


def bench(*, quick: bool) -> list[Figure]:
    """Everything on one set of servers."""
    seconds, rounds = (0.3, 3) if quick else (0.7, 9)
    with contextlib.ExitStack() as kept:
        loads, found = loads_on(kept.enter_context(llama())), {}
        try:
            loads += loads_on(kept.enter_context(nginx()))
        except FileNotFoundError:
            print("overhead: nginx is not installed (apt install nginx-light): left out")
        measure_all(loads, seconds)  # warm up
        for number in range(rounds):
            one_round(list(STATES)[:: -1 if number % 2 else 1], loads, seconds, found)
    return [figure for load in loads for figure in figures(load.name, found)]


def loads_on(server: Server) -> list[Load]:
    """The requests to this kind of server."""
    kinds = [("", "/", None)]
    if server.name == "llama.cpp":
        kinds = [(" /health", "/health", None), (" 1 token", "/completion", COMPLETION)]
    return [
        Load(f"{server.name}{kind}, {'kept' if keep else 'new'}", server, request(path, body, keep=keep), keep)
        for kind, path, body in kinds
        for keep in (True, False)
    ]


def one_round(
    states: Sequence[str],
    loads: Sequence[Load],
    seconds: float,
    found: dict[tuple[str, str], Samples],
) -> None:
    """Off, one state, off, the next, off ..."""
    before = measure_all(loads, seconds)
    for state in states:
        with governor_in(state, {load.server.port for load in loads}) as governor:
            on = measure_all(loads, seconds, governor.pid)
            assert not governor.driver.boards[0].locks, "it parked"
            assert bool(governor.driver.boards[1].locks) == (state == PARKED_BESIDE)
        after = measure_all(loads, seconds)
        for load in loads:
            samples = found.setdefault((load.name, state), Samples())
            samples.on.append(on[load.name])
            samples.before.append(before[load.name])
            samples.after.append(after[load.name])
        before = after


@contextlib.contextmanager
def governor_in(state: str, ports: set[int]) -> Iterator[Governor]:
    """Watches the ports for gpu0, and one of our own for gpu1, to which a pooled connection is open."""
    with contextlib.ExitStack() as kept:
        folder = Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="memscaler-bench-")))
        neighbour = kept.enter_context(listener())
        kept.enter_context(connect(neighbour))
        soon = "100ms" if state == PARKED_BESIDE else "1h"
        config = folder / "config.toml"
        config.write_text(f'min_dwell = "0s"\nidle_after = "1h"\n[gpu.gpu1]\nidle_after = "{soon}"\n')
        watches = [f"{port}:gpu0" for port in sorted(ports)] + [f"{port_of(neighbour)}:gpu1"]
        told = ["--config", str(config), *STATES[state], *(word for watch in watches for word in ("--port", watch))]
        governor = kept.enter_context(governing(folder / "run", "a40,p40", *told, by_connections=False))
        board = governor.driver.boards[1]
        if state == PARKED_BESIDE:
            eventually(lambda: board.locks, within_s=20, what="the other GPU parked")
        time.sleep(SETTLE_S)
        yield governor


def measure_all(loads: Sequence[Load], seconds: float, daemon: int | None = None) -> dict[str, Sample]:
    """One block of each."""
    return {load.name: measure(load, seconds, [] if daemon is None else [daemon]) for load in loads}


def measure(load: Load, seconds: float, daemon: Sequence[int]) -> Sample:
    """One block, in slices: their median does not mind if the machine is away for one of them."""
    server, governor, ours_ns = usage(load.server.pid), usage(*daemon), time.process_time_ns()
    started_ns = time.monotonic_ns()
    slices: list[tuple[float, int]] = []
    while len(slices) < round(seconds / SLICE_S):
        rate, count = requests_per_s(load.server.port, load.request, clients=CLIENTS, keep=load.keep, seconds=SLICE_S)
        if count:
            slices.append((rate, count))
    took_ns = time.monotonic_ns() - started_ns
    spent_ns = time.process_time_ns() - ours_ns + usage(load.server.pid).since(server).cpu_ns
    return Sample(
        statistics.median(per_s for per_s, _ in slices),
        spent_ns / 1000 / sum(count for _, count in slices),
        usage(*daemon).since(governor).cpu_ns / took_ns * 100,
    )


def figures(load: str, found: dict[tuple[str, str], Samples]) -> list[Figure]:
    """The rates with the promise, and the CPU time, which depends less on who else uses the machine."""
    rows, everything = [], [found[load, state] for state in STATES]
    off = [(a.per_s, b.per_s) for each in everything for a, b in zip(each.before, each.after, strict=True)]
    ratio, low, high = compared(off)
    after = statistics.median(b for _, b in off)
    rows.append(Figure(f"{load}: control: requests/s ({low:.3f}..{high:.3f})", after, "/s", None, after / ratio))
    for state in STATES:
        each = found[load, state]
        for what, unit, value in (("requests/s", "/s", _per_s), ("CPU time per request", "us", _cpu_us)):
            between = [(value(a) + value(b)) / 2 for a, b in zip(each.before, each.after, strict=True)]
            on = [value(sample) for sample in each.on]
            ratio, low, high = compared(list(zip(between, on, strict=True)))
            promise = RATIO if unit == "/s" else None
            noise = (high - low) / 2
            name = f"{load}, {state}: {what} ({low:.3f}..{high:.3f})"
            base = statistics.median(between)
            rows.append(Figure(name, statistics.median(on), unit, baseline=base, at_least=promise, noise=noise))
        share = statistics.median(sample.daemon_percent for sample in each.on)
        rows.append(Figure(f"{load}, {state}: the daemon's share of a CPU", share, "%"))
    return rows


def _per_s(sample: Sample) -> float:
    return sample.per_s


def _cpu_us(sample: Sample) -> float:
    return sample.cpu_us


def compared(pairs: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """(ratio of the medians, second to first; the ends of its interval)."""

    def ratio(of: Sequence[tuple[float, float]]) -> float:
        return statistics.median(b for _, b in of) / statistics.median(a for a, _ in of)

    draw: Callable[[], float] = random.Random(1).random
    drawn = [ratio([pairs[int(draw() * len(pairs))] for _ in pairs]) for _ in range(DRAWS)]
    return ratio(pairs), percentile(drawn, 2.5), percentile(drawn, 97.5)
