"""Full maps and the doorbell: facts/ebpf.md section 11, cases 15 and 16, and what "armed" promises."""

import resource
import select
import statistics
import time

import pytest

from memscaler.kernel.doorbell import Doorbell
from tests.kernel.worlds import Port, World, assert_eventually, connected, world_of


@pytest.fixture(scope="module")
def world():
    with world_of("both") as made:
        yield made


@pytest.fixture
def doorbell(world: World):
    bell = Doorbell(world.attached.fds["doorbell"])
    bell.silence()
    yield bell
    bell.close()


def rang(doorbell: Doorbell, within_s: float = 0.2) -> bool:
    return bool(select.select([doorbell.fd], [], [], within_s)[0])


def test_full_set():
    """Opens beyond the size of the set are told, counted as live by reconciling, and forgotten when they end."""
    with world_of("both", max_connections=16) as small:
        port = Port(small)
        server = port.listen()
        pairs = [port.pair(server) for _ in range(24)]
        assert small.ledger.overflowed(port.watch)
        assert small.ledger.live_in_set()[port.watch.slot] == 16
        small.ledger.reconcile(port.watch)
        assert small.ledger.overflowed(port.watch)  # whoever has no entry ends unseen
        assert port.live == port.by_proc == 24
        for end in pairs.pop():
            end.close()
        small.ledger.reconcile(port.watch)
        assert port.live == port.by_proc == 23
        port.pair(server)
        assert small.ledger.overflowed(port.watch) or port.live == 24
        port.close()
        small.ledger.reconcile(port.watch)
        port.settles(0)
        assert not small.ledger.overflowed(port.watch)


def test_full_set_still_rings():
    """A connection that finds the set full rings the doorbell all the same."""
    with world_of("both", max_connections=16) as small:
        port = Port(small)
        server = port.listen()
        for _ in range(17):
            port.pair(server)
        bell = Doorbell(small.attached.fds["doorbell"])
        small.ledger.counters.arm(port.watch.slot)
        port.pair(server)
        assert rang(bell)
        bell.close()
        port.close()


def test_armed_rings_once(port: Port, doorbell: Doorbell):
    """One ring for many opens; armed again, one more."""
    server = port.listen()
    for turn in (1, 2):
        port.world.ledger.counters.arm(port.watch.slot)
        assert port.world.ledger.reading(port.watch).armed
        for _ in range(10):
            port.pair(server)
        assert rang(doorbell)
        assert not port.world.ledger.reading(port.watch).armed
        doorbell.silence()
        assert not rang(doorbell)
        assert port.world.ledger.counters.read(port.watch.slot).rings == turn


def test_unarmed_is_silent(port: Port, doorbell: Doorbell):
    """Without arming nothing ever wakes user space."""
    server = port.listen()
    for _ in range(100):
        client, accepted = port.pair(server)
        client.close()
        accepted.close()
    assert not rang(doorbell)
    assert port.world.ledger.counters.read(port.watch.slot).rings == 0


def test_closes_do_not_ring(port: Port, doorbell: Doorbell):
    """Armed while connections are open, their ends are no reason to look."""
    client, accepted = port.pair(port.listen())
    port.world.ledger.counters.arm(port.watch.slot)
    client.close()
    accepted.close()
    port.settles(0)
    assert not rang(doorbell)
    assert port.world.ledger.reading(port.watch).armed


def test_counted_before_it_rings(port: Port, doorbell: Doorbell):
    """Whoever hears the ring and looks at the counters finds the connection there."""
    server = port.listen()
    for _ in range(200):
        port.world.ledger.counters.arm(port.watch.slot)
        before = port.world.ledger.counters.read(port.watch.slot).opened
        client = connected(port.world.netns, port.number)
        assert rang(doorbell, 5.0)
        doorbell.silence()
        assert port.world.ledger.counters.read(port.watch.slot).opened == before + 1
        client.close()
        server.accept()[0].close()


def test_unread_doorbell(port: Port, doorbell: Doorbell):
    """A doorbell that nobody answers fills up, stays rung, loses no connection, and works again afterwards."""
    server = port.listen(backlog=1000)
    slot = port.watch.slot
    page = resource.getpagesize()
    for _ in range(page // 16 + 10):
        port.world.ledger.counters.arm(slot)
        client, accepted = port.pair(server)
        client.close()
        accepted.close()
    counters = port.world.ledger.counters.read(slot)
    assert counters.ring_failed >= 10
    assert counters.opened == counters.rings == page // 16 + 10
    assert rang(doorbell)
    doorbell.silence()
    assert not rang(doorbell)
    port.world.ledger.counters.arm(slot)
    port.pair(server)
    assert rang(doorbell)


def test_ring_comes_soon(port: Port, doorbell: Doorbell):
    """From the event in the kernel to this process in well under a millisecond (median of 200)."""
    server = port.listen()
    delays_us = []
    for _ in range(200):
        port.world.ledger.counters.arm(port.watch.slot)
        client = connected(port.world.netns, port.number)
        assert rang(doorbell, 5.0)
        heard_ns = time.monotonic_ns()
        doorbell.silence()
        delays_us.append((heard_ns - port.world.ledger.counters.read(port.watch.slot).rang_ns) / 1000)
        client.close()
        server.accept()[0].close()
    assert statistics.median(delays_us) < 1000


def test_since_and_activity_are_monotonic_time(port: Port):
    """The kernel's times are those of time.monotonic_ns."""
    before = time.monotonic_ns()
    client, accepted = port.pair(port.listen())
    opened_ns = port.world.ledger.reading(port.watch).last_activity_ns
    assert before <= opened_ns <= time.monotonic_ns()
    client.close()
    accepted.close()
    assert_eventually(lambda: port.world.ledger.reading(port.watch).last_activity_ns > opened_ns)
