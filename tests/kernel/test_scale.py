"""More connections than the set has room for: 66,000 at once on one port, and back to none.

About 15 s. MEMSCALER_SOAK (any value): also with the tracepoint alone.
"""

import contextlib
import os
import resource
import socket
import time

import pytest

from memscaler.kernel.netns import entered
from tests.kernel.worlds import Port, assert_eventually, listener, live_by_ss, sysctl, world_of

SET_SIZE = 65536  # the default
SPARE_DESCRIPTORS = 256
TOTAL = 66_000
HOOKS = ["both", "tracepoint"] if "MEMSCALER_SOAK" in os.environ else ["both"]


def crowd(netns: str, port: int, number: int, count: int):
    """One process: `count` connections from its own address to its own listener, which stays."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    address, kept = f"127.1.{number}.1", []
    server = listener(netns, port, address)
    with entered(netns):
        for _ in range(count):
            client = socket.socket()
            client.connect((address, port))
            kept += [client, server.accept()[0]]
    return server, kept


@pytest.mark.timeout(300)
@pytest.mark.parametrize("hooks", HOOKS)
def test_more_than_the_set_holds(hooks, record_property):
    """Never fewer than there are unless it says so; after one look exactly as many as sock_diag, /proc and ss say."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    per_child = min((hard - SPARE_DESCRIPTORS) // 2, 20_000)
    shares = [min(per_child, TOTAL - first) for first in range(0, TOTAL, per_child)]
    with world_of(hooks) as world, contextlib.closing(Port(world)) as port:
        sysctl(world.netns, "net.ipv4.ip_local_port_range", "1024 65000")
        ledger = world.ledger
        started = time.monotonic()
        children = [
            port.child(lambda number=number, share=share: crowd(world.netns, port.number, number, share))
            for number, share in enumerate(shares)
        ]
        took = {"open": time.monotonic() - started}
        # All are open now. The counters know as many as the set has room for, and say so.
        assert port.live > 0
        assert port.live >= SET_SIZE or not world.loses_nothing
        assert ledger.overflowed(port.watch) or port.live == TOTAL
        for turn in ("first reconcile", "second reconcile"):
            at = time.monotonic()
            ledger.reconcile(port.watch)
            took[turn] = time.monotonic() - at
            assert port.live == TOTAL
        assert len(world.diag.connections(port.number)) == port.by_proc == TOTAL
        assert port.in_set == SET_SIZE
        # One process leaves: its connections are those in the set or not, nobody knows. Never too few, then exact.
        children.pop().kill()
        left = TOTAL - shares[-1]
        assert_eventually(lambda: port.by_proc == left, within_s=60)
        assert port.live >= left
        at = time.monotonic()
        ledger.reconcile(port.watch)
        took["third reconcile"] = time.monotonic() - at
        assert port.live == left
        assert live_by_ss(world.netns, port.number) == left
        # There is room again, for all that are open.
        ledger.reconcile(port.watch)
        assert (port.live, port.in_set, ledger.overflowed(port.watch)) == (left, left, False)
        at = time.monotonic()
        for child in children:
            child.kill()
        took["close"] = time.monotonic() - at
        assert_eventually(lambda: port.by_proc == 0, within_s=60)
        ledger.reconcile(port.watch)
        port.settles(0)
        record_property("seconds", took)
        print(hooks, TOTAL, {what: round(seconds, 2) for what, seconds in took.items()})
