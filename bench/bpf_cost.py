"""What the kernel side costs everybody who uses TCP on this machine, in ns per connection and per event. Needs root.

    python -m bench bpf_cost, or for other amounts: python -m bench.bpf_cost [--connections 4000] [--rounds 9]

Three numbers for each of {both hooks, tracepoint alone} x {watched port, unwatched port}, medians over rounds that are
interleaved with the baseline (the same loop with nothing attached), so that a slow minute hits all of them:
 - us per connection: loopback connect, accept, close by reset, close (8 runs of the tracepoint program, 9 of the
   sockops one);
 - its ratio to the baseline;
 - ns per run as the kernel measures it (kernel.bpf_stats_enabled; about half of that is its own clock).
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import statistics
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bench.figures import Figure, table
from memscaler import resources
from memscaler.kernel import attachment, ledger, sock_diag
from memscaler.kernel.bpf import program_info
from memscaler.kernel.netns import entered

STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
RESET = struct.pack("ii", 1, 0)
NETNS = "ms-bench-cost"
WATCHED, UNWATCHED = 8080, 9090


@contextlib.contextmanager
def namespace(name: str) -> Iterator[str]:
    """A network namespace with only a loopback interface."""
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["nsenter", f"--net=/run/netns/{name}", "ip", "link", "set", "lo", "up"], check=True)
        yield f"/run/netns/{name}"
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@contextlib.contextmanager
def kernel_statistics() -> Iterator[None]:
    """Let the kernel time every run of a BPF program."""
    STATS.write_text("1")
    try:
        yield
    finally:
        STATS.write_text("0")


def loop_us(netns: str, port: int, connections: int) -> float:
    """Microseconds per connection."""
    with entered(netns), socket.create_server(("127.0.0.1", port), backlog=64) as server:
        started = time.perf_counter_ns()
        for _ in range(connections):
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                client.connect(("127.0.0.1", port))
                server.accept()[0].close()
        return (time.perf_counter_ns() - started) / 1000 / connections


def runs_ns(attached: attachment.Attachment, netns: str, port: int, connections: int) -> dict[str, tuple[float, float]]:
    """Program -> (ns per run, runs per connection)."""
    programs = [name for name in ("tracepoint_program", "sockops_program") if name in attached.fds]
    before = {name: program_info(attached.fds[name]) for name in programs}
    with kernel_statistics():
        loop_us(netns, port, connections)
    figures = {}
    for name in programs:
        after = program_info(attached.fds[name])
        runs = after["run_count"] - before[name]["run_count"]
        spent = after["run_time_ns"] - before[name]["run_time_ns"]
        figures[name.removesuffix("_program")] = (spent / max(1, runs), runs / connections)
    return figures


def measure(netns: str, connections: int, rounds: int) -> dict[str, dict[str, float]]:
    """Variant -> medians over the rounds."""
    samples: dict[str, dict[str, list[float]]] = {}

    def keep(variant: str, name: str, value: float) -> None:
        samples.setdefault(variant, {}).setdefault(name, []).append(value)

    for _ in range(rounds):
        baseline = loop_us(netns, UNWATCHED, connections)
        keep("baseline", "us", baseline)
        keep("baseline", "ratio", 1.0)
        for hooks, without in (("both", ()), ("tracepoint", ("sockops",))):
            attached = attachment.load(resources.bpf_dir(), without=without)
            book = ledger.Ledger(attached)
            book.watch(WATCHED, sock_diag.SockDiag(netns))
            for kind, port in (("unwatched", UNWATCHED), ("watched", WATCHED)):
                variant = f"{hooks}, {kind}"
                spent = loop_us(netns, port, connections)
                keep(variant, "us", spent)
                keep(variant, "ratio", spent / baseline)
                for name, (cost, count) in runs_ns(attached, netns, port, connections).items():
                    keep(variant, f"{name}_ns", cost)
                    keep(variant, f"{name}_runs", count)
            book.close()
            attached.close()
    return {
        variant: {name: statistics.median(values) for name, values in rows.items()} for variant, rows in samples.items()
    }


def figures(results: dict[str, dict[str, float]]) -> list[Figure]:
    """The medians as a table."""
    base_us = results["baseline"]["us"]
    found = [Figure("nothing attached: time per connection", base_us, "us")]
    for variant, row in results.items():
        if variant == "baseline":
            continue
        found.append(Figure(f"{variant}: time per connection", row["us"], "us", None, base_us))
        found.append(Figure(f"{variant}: median of the rounds' ratios to the baseline", row["ratio"]))
        for name in ("tracepoint", "sockops"):
            if f"{name}_ns" in row:
                label = f"{variant}: {name} program, per run ({row[f'{name}_runs']:.1f} runs/conn.)"
                found.append(Figure(label, row[f"{name}_ns"], "ns"))
    return found


def bench(*, quick: bool) -> list[Figure]:
    """As `python -m bench` calls it."""
    return run(*(1500, 3) if quick else (4000, 9))


def run(connections: int, rounds: int) -> list[Figure]:
    """In a network namespace of its own."""
    with namespace(NETNS) as netns:
        loop_us(netns, UNWATCHED, connections)  # warm up
        return figures(measure(netns, connections, rounds))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--connections", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    print(table(run(options.connections, options.rounds)))


if __name__ == "__main__":
    main()
