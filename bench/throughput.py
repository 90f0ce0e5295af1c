"""As many connections a second as this machine opens, on a watched and an unwatched port of an awake GPU.

A held-open connection keeps the GPU awake. What is promised: the daemon sleeps through all of them. What the kernel
side costs is the client's time per connection, beside the same loop with no memscaler running, in turns. The loop is C,
on every CPU: connect, accept, close, close by reset (no TIME_WAIT).
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.figures import Figure
from bench.governors import governor_on, wait_awake
from bench.loops import open_and_close
from bench.processes import Usage, usage
from tests.governor import connect, eventually, listener

WAKE_UPS_PER_CONNECTION = 0.001
CPU_NS_PER_CONNECTION = 100
THREADS = os.cpu_count() or 1


@dataclass
class Samples:
    """Of every round: us per connection, its ratio to the baseline, and what the daemon did meanwhile."""

    us: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    daemon: list[Usage] = field(default_factory=list)


def bench(*, quick: bool) -> list[Figure]:
    """Rounds of: nothing attached, governor with an unwatched port, with the watched one."""
    count, rounds = (5000, 3) if quick else (20000, 9)
    baseline_us: list[float] = []
    found = {"unwatched": Samples(), "watched": Samples()}
    with listener() as watched, listener() as unwatched:
        open_and_close(unwatched, count, THREADS)
        for _ in range(rounds):
            baseline_us.append(open_and_close(unwatched, count, THREADS))
            one_round(watched, unwatched, count, found, baseline_us[-1])
    return [
        Figure("connections/s without memscaler", 1e6 / statistics.median(baseline_us), "/s"),
        *(figure for kind, samples in found.items() for figure in figures(kind, samples, count, baseline_us)),
    ]


def one_round(
    watched: socket.socket, unwatched: socket.socket, count: int, found: dict[str, Samples], baseline_us: float
) -> None:
    """With a governor whose GPU a connection keeps awake."""
    with governor_on(watched, "a40", idle_after="60s") as governor, connect(watched):
        held, _ = watched.accept()
        with held:
            eventually(lambda: governor.events("memscaler.started"), what="start")
            wait_awake(governor)
            time.sleep(2.5)  # the samples at the start and 2 s later
            for kind, server in (("unwatched", unwatched), ("watched", watched)):
                before = usage(governor.pid)
                spent_us = open_and_close(server, count, THREADS)
                found[kind].daemon.append(usage(governor.pid).since(before))
                found[kind].us.append(spent_us)
                found[kind].ratios.append(spent_us / baseline_us)


def figures(kind: str, samples: Samples, count: int, baseline_us: list[float]) -> list[Figure]:
    """Sums of what the daemon did, medians of what the client paid."""
    total = count * len(samples.daemon)
    median: Callable[[list[float]], float] = statistics.median
    wake_ups = sum(each.switches for each in samples.daemon)
    cpu_ns = sum(each.cpu_ns for each in samples.daemon)
    return [
        Figure(f"{kind}: connections/s", 1e6 / median(samples.us), "/s", None, 1e6 / median(baseline_us)),
        Figure(f"{kind}: client's time per connection", median(samples.us), "us", None, median(baseline_us)),
        Figure(f"{kind}: median of the rounds' ratios to the baseline", median(samples.ratios)),
        Figure(f"{kind}: daemon's wake-ups in {total} connections", wake_ups, "", WAKE_UPS_PER_CONNECTION * total),
        Figure(f"{kind}: daemon's CPU time per connection", cpu_ns / total, "ns", CPU_NS_PER_CONNECTION),
    ]
