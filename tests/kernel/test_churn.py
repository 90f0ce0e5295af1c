"""Thousands of connections of random life on eight watches: facts/ebpf.md section 11, case 17.

    MEMSCALER_SOAK=100000 pytest tests/kernel/test_churn.py -s

Each worker process opens and closes at random, in every way that is quick; now and then all are stopped, and while
nothing moves the counters, the set and /proc must agree for every watch.
"""

import os
import random
import signal
import socket
import time

import pytest

from memscaler.kernel.healing import Corrections
from tests.kernel.worlds import (
    RESET,
    Child,
    Port,
    assert_eventually,
    connected,
    inside,
    listener,
    live_by_proc,
    sysctl,
    world_of,
)

TOTAL = int(os.environ.get("MEMSCALER_SOAK", "5000"))
WORKERS, WATCHES, AT_ONCE = 4, 8, 60


def linger(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def orderly(first, second):
    first.close()
    second.close()


def by_reset(first, second):
    linger(first)
    orderly(first, second)


def with_unread_data(first, second):
    first.send(b"x")
    orderly(second, first)


def half_closed(first, second):
    first.shutdown(socket.SHUT_WR)
    second.send(b"x")
    orderly(second, first)


def both_half_closed(first, second):
    first.shutdown(socket.SHUT_WR)
    second.shutdown(socket.SHUT_WR)
    orderly(first, second)


def shut_down(first, second):
    first.shutdown(socket.SHUT_RDWR)
    orderly(first, second)


def disconnected(first, second):
    linger(second)
    orderly(second, first)


ENDINGS = [orderly, by_reset, with_unread_data, half_closed, both_half_closed, shut_down, disconnected]


class Worker:
    """One process's connections: its own addresses, so that what it accepts is what it connected."""

    def __init__(self, netns, ports, number):
        self.netns = netns
        self.chance = random.Random(number)
        self.addresses = [f"127.0.{number}.1", f"fd00::{number}"]
        self.servers = {(port, address): listener(netns, port, address) for port in ports for address in self.addresses}
        self.where = list(self.servers)
        self.pairs = []
        self.queued = {}

    def open(self):
        where = self.chance.choice(self.where)
        client = connected(self.netns, *where)
        if where in self.queued:  # the oldest unaccepted one comes first
            older = self.queued.pop(where)
            self.pairs.append((older, self.servers[where].accept()[0]))
            self.queued[where] = client
        elif self.chance.random() < 0.1:
            self.queued[where] = client
        else:
            self.pairs.append((client, self.servers[where].accept()[0]))

    def end(self):
        index = self.chance.randrange(len(self.pairs))
        self.pairs[index], self.pairs[-1] = self.pairs[-1], self.pairs[index]
        ends = list(self.pairs.pop())
        self.chance.shuffle(ends)
        self.chance.choice(ENDINGS)(*ends)

    def run(self, count):
        opened = 0
        while opened < count:
            if not self.pairs or (len(self.pairs) < AT_ONCE and self.chance.random() < 0.52):
                self.open()
                opened += 1
            else:
                self.end()


def compare(ledger, ports, netns):
    """Nothing moves: everything must agree soon, without reconciling."""
    seen = []

    def same():
        truth, in_set = live_by_proc(netns), ledger.live_in_set()
        seen[:] = [(port.live, in_set[port.watch.slot], truth.get(port.number, 0)) for port in ports]
        return all(len(set(three)) == 1 for three in seen)

    assert_eventually(same, lambda: str(seen))
    return sum(three[0] for three in seen)


@pytest.mark.timeout(120 + TOTAL // 200)
def test_churn():
    """After and in between, counters, set and /proc agree without any correction; every open was counted."""
    with world_of("both") as world:
        sysctl(world.netns, "net.ipv4.tcp_max_tw_buckets", "2000")
        name = world.netns.rsplit("/", 1)[1]
        for number in range(1, WORKERS + 1):
            inside(name, "ip", "addr", "add", f"fd00::{number}/128", "dev", "lo", "nodad")
        ports = [Port(world) for _ in range(WATCHES)]
        numbers = [port.number for port in ports]
        started = time.monotonic()
        workers = [
            Child.running(
                lambda number=number: Worker(world.netns, numbers, number).run(TOTAL // WORKERS) or os._exit(0)
            )
            for number in range(1, WORKERS + 1)
        ]
        samples = sample(world, ports, workers)
        for port in ports:
            port.settles(0)
        print(f"{TOTAL} connections in {time.monotonic() - started:.1f} s, live when sampled: {samples}")
        assert sum(world.ledger.counters.read(port.watch.slot).opened for port in ports) == TOTAL // WORKERS * WORKERS
        assert set(world.ledger.reconcile_all().values()) == {Corrections()}
        assert max(samples, default=1) > 0


def sample(world, ports, workers):
    """Stop the workers some times and compare; returns how many connections were live each time."""
    live = []
    for _ in range(max(8, TOTAL // 5000)):
        time.sleep(max(0.05, TOTAL / 1e6))
        running = [worker for worker in workers if not worker.poll()]
        if not running:
            break
        for worker in running:
            os.kill(worker.pid, signal.SIGSTOP)
        try:
            live.append(compare(world.ledger, ports, world.netns))
        finally:
            for worker in running:
                os.kill(worker.pid, signal.SIGCONT)
    for worker in workers:
        worker.wait()
    return live


@pytest.mark.parametrize("hooks", ["tracepoint", "no-btf"])
def test_churn_of_3000(hooks):
    """The same with fewer hooks: one reconciliation at the end leaves nothing to correct."""
    with world_of(hooks) as world:
        port = Port(world)
        with listener(world.netns, port.number) as server:
            chance, pairs = random.Random(3), []
            for _ in range(3000):
                client = connected(world.netns, port.number)
                pairs.append((client, server.accept()[0]))
                if len(pairs) > 30:
                    chance.choice(ENDINGS)(*pairs.pop(chance.randrange(len(pairs))))
            assert_eventually(lambda: port.by_proc == len(pairs))
            world.ledger.reconcile(port.watch)
            port.settles(len(pairs))
            for pair in pairs:
                orderly(*pair)
        world.ledger.reconcile(port.watch)
        port.settles(0)
