"""Connections older than the attachment, and starting in the middle of churn: facts/ebpf.md section 11, case 12."""

import contextlib
import random

import pytest

from memscaler.kernel.healing import Corrections
from tests.kernel.worlds import Child, Port, World, assert_eventually, connected, listener, reset


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_open_before(world: World, address):
    """What is open at the start is counted, and its end is noticed by the hooks."""
    port = Port(world, watched=False)
    server = port.listen(address)
    pairs = [port.pair(server, address) for _ in range(30)]
    pairs[0][0].close()  # CLOSE_WAIT counts as well
    port.begin()
    port.settles(30)
    assert port.watch.seeded == 30
    assert port.watch.added == 0  # older than the attachment is not missed
    for client, accepted in pairs:
        accepted.close()
        client.close()
    port.settles(0)
    assert port.watch.healed == 0
    port.close()


def test_open_before_without_a_listener(world: World):
    """A server that has closed its listener and still serves counts."""
    port = Port(world, watched=False)
    server = port.listen()
    port.pair(server)
    server.close()
    port.begin()
    port.settles(1)
    port.close()
    port.settles(0)


def churn(netns: str, port: int, seed: int) -> None:
    """Open and close for ever, some connections at a time."""
    chance = random.Random(seed)
    with listener(netns, port, f"127.0.{seed}.1") as server:
        pairs: list[tuple] = []
        while True:
            if len(pairs) < 8:
                client = connected(netns, port, f"127.0.{seed}.1")
                pairs.append((client, server.accept()[0]))
            else:
                ends = list(pairs.pop(chance.randrange(len(pairs))))
                chance.shuffle(ends)
                for end in ends:
                    reset(end)


def missed(world: World) -> int:
    """State changes that the kernel did not hand to the tracepoint so far."""
    return world.ledger.attachment.recursion_misses()["tracepoint"]


def test_seeding_during_churn(world: World):
    """Forty starts in the middle of churn leave no stale entry, and miss none: afterwards nothing is corrected.

    Nothing but what the kernel did not hand to the tracepoint, which it tells (some kernels: 7.x, emulated): that heals.
    """
    ledger = world.ledger
    seeded = 0
    for _ in range(40):
        port = Port(world, watched=False)
        with contextlib.ExitStack() as kept:
            for seed in (1, 2):
                child = Child.running(lambda seed=seed, number=port.number: churn(world.netns, number, seed))
                kept.callback(child.kill)
            misses = missed(world)
            assert_eventually(lambda port=port: port.by_proc > 0, lambda: "nothing opens")
            watch = ledger.watch(port.number, world.diag)
        seeded += watch.seeded
        assert_eventually(
            lambda watch=watch, misses=misses: ledger.reading(watch).live == 0 or missed(world) > misses,
            lambda watch=watch, port=port: f"{watch}, {ledger.reading(watch)}, by /proc {port.by_proc}",
        )
        assert port.by_proc == 0
        if missed(world) > misses:
            assert_eventually(lambda watch=watch: ledger.reconcile(watch) == Corrections())
        assert ledger.reading(watch).live == 0
        assert ledger.live_in_set()[watch.slot] == 0
        assert ledger.reconcile(watch) == Corrections()
    assert seeded > 40
