"""Where the counters cannot know: a full set, servers that stop listening, events lost at the worst moment."""

import contextlib
import random

import pytest

from tests.kernel.test_wrong_counts_machine import Interleaved
from tests.kernel.worlds import Port, assert_eventually, connected, live_by_ss, reset, world_of


@pytest.fixture(params=["both", "tracepoint"])
def small(request):
    """A set with room for eight connections, and a watched port."""
    with world_of(request.param, max_connections=8) as world, contextlib.closing(Port(world)) as port:
        yield port


def test_never_too_few_in_a_full_set(small: Port):
    """Opened and closed at random around the size of the set: never fewer than there are, unless it says overflowed."""
    chance = random.Random(11)
    server = small.listen()
    ledger, pairs = small.world.ledger, []
    for _ in range(150):
        if len(pairs) < 16 and (not pairs or chance.random() < 0.55):
            pairs.append(small.pair(server))
        else:
            for end in pairs.pop(chance.randrange(len(pairs))):
                reset(end)
        wanted = len(pairs)
        assert_eventually(lambda: small.by_proc == wanted)
        assert small.live >= wanted or ledger.overflowed(small.watch)
        assert small.live > 0 or wanted == 0
        if chance.random() < 0.3:
            ledger.reconcile(small.watch)
            assert small.live == wanted == live_by_ss(small.world.netns, small.number)
    while len(pairs) > 4:
        for end in pairs.pop():
            reset(end)
    assert_eventually(lambda: small.by_proc == 4)
    ledger.reconcile(small.watch)
    small.settles(4)  # with room for all, the set has all again
    assert not ledger.overflowed(small.watch)
    for pair in pairs:
        for end in pair:
            end.close()
    small.settles(0)  # and their ends are counted by the hooks


def test_two_watches_share_a_full_set():
    """One port's crowd takes the room of another: that one says so, and is right after a look."""
    with world_of("both", max_connections=8) as world, contextlib.ExitStack() as kept:
        crowd, other = (kept.enter_context(contextlib.closing(Port(world))) for _ in range(2))
        crowd_server, server = crowd.listen(), other.listen()
        for _ in range(12):
            crowd.pair(crowd_server)
        pairs = [other.pair(server) for _ in range(3)]
        assert world.ledger.overflowed(other.watch)
        world.ledger.reconcile_all()
        assert (crowd.live, other.live) == (crowd.by_proc, other.by_proc) == (12, 3)
        for pair in pairs:
            for end in pair:
                end.close()
        assert_eventually(lambda: other.by_proc == 0)
        world.ledger.reconcile_all()
        assert (crowd.live, other.live) == (12, 0)


def test_doubtful_while_some_have_no_entry(small: Port):
    """Their ends cannot be noticed: until all have an entry, the watch has to say that it may be wrong."""
    server = small.listen()
    pairs = [small.pair(server) for _ in range(12)]
    small.world.ledger.reconcile(small.watch)
    for pair in pairs:
        for end in pair:
            end.close()
    assert_eventually(lambda: small.by_proc == 0)
    assert small.live == 0 or small.world.ledger.overflowed(small.watch)


def test_crowd_of_a_server_that_stops_listening(small: Port):
    """A server that drains: its connections are its own, also those that found the set full."""
    server = small.listen()
    for _ in range(12):
        small.pair(server)
    small.world.ledger.reconcile(small.watch)
    assert small.live == small.by_proc == 12
    server.close()
    small.world.ledger.reconcile(small.watch)
    assert small.live == small.by_proc == 12 or small.world.ledger.overflowed(small.watch)


def test_lost_open_of_a_server_that_stops_listening():
    """The only connection, its open lost, its server draining: somebody is served, and it must not look quiet."""
    with world_of("tracepoint") as world, contextlib.closing(Port(world)) as port:
        server = port.listen()
        port.pair(server)
        port.settles(1)
        lose(port)
        server.close()
        world.ledger.reconcile(port.watch)
        world.ledger.reconcile(port.watch)
        assert port.live == port.by_proc == 1


def lose(port: Port) -> None:
    """Forget the one entry, as if no hook had seen its open."""
    ((key, _),) = port.world.ledger._connections.entries()
    port.world.ledger._connections.delete(key)
    port.watch.healed += 1


def test_reopened_unseen_after_the_set_was_read():
    """Closed, and opened again under the same identity but unseen, between the reading of the set and the first dump."""
    with world_of("tracepoint") as world, contextlib.closing(Port(world)) as port:
        server = port.listen()
        source = ("127.0.0.1", port.number + 20000)
        pair = [connected(world.netns, port.number, source=source), server.accept()[0]]
        port.settles(1)

        def act(moment):
            if moment == "before dump 1":
                for end in pair:
                    reset(end)
                assert_eventually(lambda: port.live == 0)
                port.kept.enter_context(connected(world.netns, port.number, source=source))
                port.kept.enter_context(server.accept()[0])
                assert_eventually(lambda: port.live == 1)
                lose(port)

        port.watch.diag = Interleaved(port.diag, act)
        world.ledger.reconcile(port.watch)
        port.watch.diag = port.diag
        assert port.live == port.by_proc == 1


def test_failing_while_stale_entries_are_removed(small: Port, monkeypatch: pytest.MonkeyPatch):
    """A map call that fails half way (EBUSY) must not leave the counters apart from the set for ever."""
    ledger = small.world.ledger
    server = small.listen()
    pairs = [small.pair(server) for _ in range(3)]
    small.settles(3)
    entries = dict(ledger._connections.entries())
    for pair in pairs:
        for end in pair:
            reset(end)
    small.settles(0)
    for key, value in entries.items():
        ledger._connections.put(key, value)
        small.watch.seeded += 1
    real, calls = ledger._connections.delete, []

    def busy(key):
        calls.append(key)
        if len(calls) == 2:
            raise OSError(16, "busy")
        return real(key)

    monkeypatch.setattr(ledger._connections, "delete", busy)
    with pytest.raises(OSError, match="busy"):
        ledger.reconcile(small.watch)
    monkeypatch.undo()
    for _ in range(2):
        ledger.reconcile(small.watch)
    assert (small.live, small.in_set, small.by_proc) == (0, 0, 0)
