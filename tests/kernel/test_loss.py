"""Rivals that make a tracepoint program lose events, or take callbacks away: facts/ebpf.md section 11, 13 and 14."""

import contextlib

import pytest

from tests.kernel.rivals import (
    SOCKOPS,
    TRACER,
    busy,
    handle_packets_in_interrupts,
    open_and_close,
    rival,
    rps_available,
)
from tests.kernel.worlds import Port, world_of

PROCESSES, EACH = 3, 2000


@pytest.mark.skipif(not rps_available(), reason="one CPU, or no packet steering: nothing is lost here")
@pytest.mark.parametrize("hooks", ["both", "tracepoint"])
def test_lost_events(hooks, record_property):
    """Beside a tracer and busy CPUs the two hooks together lose no open; one look at sock_diag heals what is lost."""
    with world_of(hooks) as world:
        handle_packets_in_interrupts(world.netns)
        port = Port(world)
        server = port.listen("127.0.100.1", backlog=256)
        with contextlib.ExitStack() as kept:
            kept.enter_context(rival(TRACER))
            kept.enter_context(busy())
            held = [port.pair(server, "127.0.100.1") for _ in range(200)]
            open_and_close(world.netns, port.number, PROCESSES, EACH)
            for client, accepted in held[:100]:
                client.close()
                accepted.close()
            slot = world.ledger.counters.read(port.watch.slot)
            drift = port.live - port.by_proc
            world.ledger.reconcile(port.watch)
            assert port.live == port.by_proc == 100
        port.settles(100)
        total = PROCESSES * EACH + 200
        seen = max(slot.seen_by_sockops, slot.seen_by_tracepoint)
        lost = {"opens": total - seen, "by the tracepoint": total - slot.seen_by_tracepoint, "drift": drift}
        record_property("lost", lost | world.attached.recursion_misses())
        print(hooks, total, lost, world.attached.recursion_misses())
        if hooks == "both":
            assert seen == total
        assert world.attached.recursion_misses()["tracepoint"] > 0
        assert slot.seen_by_tracepoint < total
        port.close()
        world.ledger.reconcile(port.watch)
        port.settles(0)


def test_rival_sockops_program():
    """Another sockops program that overwrites the callback flags takes nothing from ours, which needs none."""
    with world_of("both") as world, contextlib.ExitStack() as kept:
        port = Port(world)
        server = port.listen()
        before = port.pair(server)
        kept.enter_context(rival(SOCKOPS))
        after = port.pair(server)
        port.settles(2)
        assert world.ledger.counters.read(port.watch.slot).seen_by_sockops == 2
        for end in (*before, *after):
            end.close()
        port.settles(0)
