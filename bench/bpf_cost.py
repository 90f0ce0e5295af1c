"""What the kernel side costs everybody who uses TCP on this machine: ns per run, us per connection and per exchange.

    python -m bench bpf_cost, or for other amounts: python -m bench.bpf_cost [--connections 4000] [--rounds 9]

Medians over rounds. In each, what runs with a hook stands beside the same without it, so that a slow minute hits both:
 - connections (loopback connect, accept, close, close by reset; 8 runs of the tracepoint program, 9 of the sockops
   one) with {both hooks, tracepoint alone} on {an unwatched, a watched} port, and with 16 ignored prefixes;
 - exchanges (one byte there, one back, on one open connection) with the data hook: on unwatched ports, on watched ones
   where nobody listens to this connection (it is active), on one that is listened to but whose GPU has been woken
   already (unarmed), and with a ring for every packet.
ns per run is what the kernel measures (kernel.bpf_stats_enabled), its reading of the clock included: beside it stands a
program that does nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import socket
import statistics
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.figures import Figure, table
from bench.loops import exchange, open_and_close
from memscaler import resources
from memscaler.core.watch import WatchSettings
from memscaler.kernel import attachment, ledger, sock_diag
from memscaler.kernel.bpf import _call, link_create, program_info
from memscaler.kernel.doorbell import Doorbell
from memscaler.kernel.netns import entered
from memscaler.kernel.watch import PLAIN

STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
SO_COOKIE = 57
CHUNKS = 10
NETNS = "ms-bench-cost"
WATCHED, UNWATCHED = 8080, 9090
IGNORED = tuple(
    f"127.{net}.0.0/16" for net in range(1, 17)
)  # beside the client's own, so that all have to be told apart
# bpf(2): what include/uapi/linux/bpf.h calls BPF_PROG_LOAD, BPF_PROG_TYPE_CGROUP_SKB, BPF_CGROUP_INET_INGRESS
PROG_LOAD, CGROUP_SKB, INGRESS = 5, 8, 0
RETURN_1 = struct.pack("=BBhi", 0xB7, 0, 0, 1) + struct.pack("=BBhi", 0x95, 0, 0, 0)


@dataclass
class Row:
    """Of one variant, by round: us, its ratio to the same without hooks, and program -> (ns per run, runs per us)."""

    us: list[float] = field(default_factory=list)
    without_us: list[float] = field(default_factory=list)
    programs: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


Rows = dict[str, Row]


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
    before = STATS.read_text()
    STATS.write_text("1")
    try:
        yield
    finally:
        STATS.write_text(before)


def timed(programs: Mapping[str, int], count: int, work: Callable[[], object]) -> dict[str, tuple[float, float]]:
    """Program -> (ns per run, runs per each of `count`) while this is done."""
    before = {name: program_info(fd) for name, fd in programs.items()}
    with kernel_statistics():
        work()
    found = {}
    for name, fd in programs.items():
        after = program_info(fd)
        runs = after["run_count"] - before[name]["run_count"]
        found[name] = ((after["run_time_ns"] - before[name]["run_time_ns"]) / max(1, runs), runs / count)
    return found


def keep(row: Row, us: float, without_us: float, programs: Mapping[str, tuple[float, float]]) -> None:
    """One round's."""
    row.us.append(us)
    row.without_us.append(without_us)
    for name, cost in programs.items():
        row.programs.setdefault(name, []).append(cost)


def middle_us(loop: Callable[[int], float], count: int) -> float:
    """The median of several short loops: the machine may be away for one of them."""
    return statistics.median(loop(count // CHUNKS) for _ in range(CHUNKS))


# ---- connections -----------------------------------------------------------------------------------------------------


def connections_round(netns: str, count: int, rows: Rows) -> None:
    """All variants once."""
    plain = PLAIN
    one_load("both hooks", (), netns, count, {"unwatched": plain, "watched": plain}, rows)
    settings = {"watched, touches told": WatchSettings(), "watched, 16 prefixes": WatchSettings(ignore=IGNORED)}
    one_load("both hooks", (), netns, count, settings, rows)
    one_load("tracepoint alone", ("sockops",), netns, count, {"unwatched": plain, "watched": plain}, rows)


def one_load(
    hooks: str, without: tuple[str, ...], netns: str, count: int, kinds: Mapping[str, WatchSettings], rows: Rows
) -> None:
    """Without hooks, then with them."""
    with entered(netns):
        servers = {port: socket.create_server(("127.0.0.1", port), backlog=64) for port in (UNWATCHED, WATCHED)}
        without_us = middle_us(lambda few: open_and_close(servers[UNWATCHED], few), count)
        attached = attachment.load(resources.bpf_dir(), without=without)
        programs = {name: attached.fds[f"{name}_program"] for name in ("tracepoint", "sockops")[: 2 - len(without)]}
        book = ledger.Ledger(attached)
        for kind, settings in kinds.items():
            watch = book.watch(WATCHED, sock_diag.SockDiag(), settings)
            server = servers[UNWATCHED if kind == "unwatched" else WATCHED]
            us = middle_us(lambda few, at=server: open_and_close(at, few), count)
            costs = timed(programs, count, lambda at=server: open_and_close(at, count))
            keep(rows.setdefault(f"{hooks}, {kind}", Row()), us, without_us, costs)
            book.unwatch(watch.slot)
        book.close()
        attached.close()
        for server in servers.values():
            server.close()


# ---- packets ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def connection(server_port: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends. The client's port is the one above the server's."""
    with socket.create_server(("127.0.0.1", server_port)) as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.bind(("127.0.0.1", server_port + 1))
        client.connect(("127.0.0.1", server_port))
        accepted, _ = server.accept()
        with accepted:
            for end in (client, accepted):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield client, accepted


def packets_round(netns: str, count: int, rows: Rows) -> None:
    """Both ends' ports are watched, or neither's, so that every packet goes the same way through the program."""
    with contextlib.ExitStack() as kept:
        kept.enter_context(entered(netns))
        attached = attachment.load(resources.bpf_dir())
        kept.callback(attached.close)
        book = ledger.Ledger(attached)
        kept.callback(book.close)
        watches = [book.watch(WATCHED + end, sock_diag.SockDiag()) for end in (0, 1)]
        elsewhere, ends = (kept.enter_context(connection(port)) for port in (UNWATCHED, WATCHED))
        hook, program = book.data_hook, {"data": attached.fds["data_program"]}

        def measure(kind: str, pair: tuple[socket.socket, socket.socket]) -> None:
            us: dict[bool, list[float]] = {False: [], True: []}
            for _ in range(CHUNKS):
                for attached, change in ((False, hook.detach), (True, hook.attach)):
                    change()
                    us[attached].append(exchange(*pair, count // CHUNKS))
            costs = timed(program, count, lambda: exchange(*pair, count))
            keep(rows.setdefault(kind, Row()), statistics.median(us[True]), statistics.median(us[False]), costs)

        measure("unwatched ports", elsewhere)
        measure("watched, not listened to", ends)
        for watch, end in zip(watches, reversed(ends), strict=True):
            hook.listen_to(watch.slot, [struct.unpack("=Q", end.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0]])
        measure("listened to, not armed", ends)
        doorbell = Doorbell(attached.fds["doorbell"])
        kept.callback(doorbell.close)

        def ring_each() -> None:
            for _ in range(count // 10):
                for watch in watches:
                    book.counters.arm(watch.slot)
                exchange(*ends, 1)
                doorbell.silence()

        rings = sum(book.counters.read(watch.slot).data_rings for watch in watches)
        row = rows.setdefault("listened to, rings each time", Row())
        for name, cost in timed(program, count // 10, ring_each).items():
            row.programs.setdefault(name, []).append(cost)
        rings = sum(book.counters.read(watch.slot).data_rings for watch in watches) - rings
        assert rings == count // 10 * 2, f"{rings} rings"
        hook.detach()
        row = rows.setdefault("a program that does nothing", Row())
        with nothing_on(attached.fds["cgroup"]) as empty:
            row.programs.setdefault("data", []).append(
                timed({"data": empty}, count, lambda: exchange(*ends, count))["data"]
            )
        attach_us, detach_us = both_ways_us(hook.attach, hook.detach)
        rows.setdefault("attach the data hook", Row()).us.append(attach_us)
        rows.setdefault("detach the data hook", Row()).us.append(detach_us)


@contextlib.contextmanager
def nothing_on(cgroup: int) -> Iterator[int]:
    """The shortest filter, attached like the data hook: what it seems to cost is the kernel's own clock."""
    code, license_ = ctypes.create_string_buffer(RETURN_1, len(RETURN_1)), ctypes.create_string_buffer(b"GPL")
    packed = struct.pack("=IIQQ", CGROUP_SKB, 2, ctypes.addressof(code), ctypes.addressof(license_))
    program = _call(PROG_LOAD, packed.ljust(68, b"\0") + struct.pack("=I", INGRESS))
    link = link_create(program, cgroup, INGRESS)
    try:
        yield program
    finally:
        os.close(link)
        os.close(program)


def both_ways_us(attach: Callable[[], None], detach: Callable[[], None]) -> tuple[float, float]:
    """One of each."""
    marks = [time.perf_counter_ns()]
    for step in (attach, detach):
        step()
        marks.append(time.perf_counter_ns())
    return (marks[1] - marks[0]) / 1000, (marks[2] - marks[1]) / 1000


# ---- all -------------------------------------------------------------------------------------------------------------


def figures(rows: Rows, each: str) -> list[Figure]:
    """The medians as a table. each: connection or exchange."""
    median = statistics.median
    empty = rows.get("a program that does nothing")
    floor_ns = median(ns for ns, _ in empty.programs["data"]) if empty else None
    found = []
    for variant, row in rows.items():
        if row.without_us:
            found.append(Figure(f"{variant}: time per {each}", median(row.us), "us", baseline=median(row.without_us)))
            ratios = [a / b for a, b in zip(row.us, row.without_us, strict=True)]
            found.append(Figure(f"{variant}: median of the rounds' ratios", median(ratios)))
        elif row.us:
            found.append(Figure(variant, median(row.us), "us"))
        for name, costs in row.programs.items():
            label = f"{variant}: {name} program, per run ({median(runs for _, runs in costs):.1f} runs per {each})"
            base_ns = None if row is empty else floor_ns
            found.append(Figure(label, median(ns for ns, _ in costs), "ns", baseline=base_ns))
    return found


def bench(*, quick: bool) -> list[Figure]:
    """As `python -m bench` calls it."""
    return run(*(1500, 3) if quick else (4000, 9))


def run(connections: int, rounds: int) -> list[Figure]:
    """In a network namespace of its own."""
    by_connection: Rows = {}
    by_exchange: Rows = {}
    with namespace(NETNS) as netns:
        for _ in range(rounds):
            connections_round(netns, connections, by_connection)
            packets_round(netns, connections * 5, by_exchange)
    by_connection["a program that does nothing"] = by_exchange["a program that does nothing"]
    connection_rows = figures(by_connection, "connection")[:-1]
    return [*connection_rows, *figures(by_exchange, "exchange")]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--connections", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    print(table(run(options.connections, options.rounds)))


if __name__ == "__main__":
    main()
