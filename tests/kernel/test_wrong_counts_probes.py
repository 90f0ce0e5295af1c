"""Our own connections to a watched server, which count for nothing: what they leave behind must not hide a client."""

import contextlib
import socket

import pytest

from memscaler.kernel import records
from tests.kernel.worlds import Port, assert_eventually, connected, reset, world_of

LOOPBACK = records.prefix("127.0.0.1")[1]


@pytest.fixture(params=["both", "tracepoint"])
def port(request):
    with world_of(request.param) as world, contextlib.closing(Port(world)) as made:
        yield made


def identity(port: Port) -> bytes:
    return records.IDENTITY.pack(port.watch.netns, port.number, port.number + 20000, 0, LOOPBACK, LOOPBACK)


def connect(port: Port, server: socket.socket) -> list[socket.socket]:
    return [
        connected(port.world.netns, port.number, source=("127.0.0.1", port.number + 20000)),
        server.accept()[0],
    ]


def keep(port: Port, server: socket.socket) -> None:
    for end in connect(port, server):
        port.kept.enter_context(end)


def probe(port: Port, server: socket.socket, *, close_is_lost: bool = False) -> None:
    """One of ours comes and goes."""
    connections = port.world.ledger._connections
    with port.world.ledger.own.announced(identity(port)):
        ends = connect(port, server)
        entry = connections.get(identity(port))
        assert port.live == 0
        for end in ends:
            reset(end)
        assert_eventually(lambda: port.by_proc == 0)
        assert_eventually(lambda: connections.get(identity(port)) is None)
        if close_is_lost and entry is not None:
            connections.put(identity(port), entry)


def found_by_reconciling(port: Port):
    """The one client is counted, a second after the probe at the latest."""

    def found() -> bool:
        port.world.ledger.reconcile(port.watch)
        return (port.live, port.by_proc) == (1, 1)

    assert_eventually(found, within_s=5)


def test_client_after_a_probe(port: Port):
    """From the very address and port of a probe that is over."""
    server = port.listen()
    probe(port, server)
    ends = connect(port, server)
    port.settles(1)
    port.world.ledger.reconcile(port.watch)
    port.settles(1)
    for end in ends:
        reset(end)
    port.settles(0)


def test_client_after_a_probe_whose_close_was_lost(port: Port):
    """The probe's entry hides a client of the same identity for no longer than a second: then it is forgotten."""
    server = port.listen()
    probe(port, server, close_is_lost=True)
    port.world.ledger.reconcile(port.watch)  # the chance to forget it
    port.world.ledger.counters.arm(port.watch.slot)
    keep(port, server)
    found_by_reconciling(port)


def test_probe_under_the_identity_of_a_lost_close(port: Port):
    """A client's close was lost; our probe gets the same port: the counters must come down all the same."""
    server, connections = port.listen(), port.world.ledger._connections
    ends = connect(port, server)
    port.settles(1)
    entry = connections.get(identity(port))
    for end in ends:
        reset(end)
    port.settles(0)
    connections.put(identity(port), entry)
    port.watch.seeded += 1
    # Or it refuses to: then the probe has to be made from another port.
    with contextlib.suppress(FileExistsError), port.world.ledger.own.announced(identity(port)):
        for end in connect(port, server):
            reset(end)
    for _ in range(2):
        port.world.ledger.reconcile(port.watch)
    assert (port.live, port.by_proc) == (0, 0)


def test_lost_open_of_a_client_after_a_probe(port: Port):
    """Its open unseen, it has to be found by sock_diag."""
    server = port.listen()
    probe(port, server)
    keep(port, server)
    port.settles(1)
    port.world.ledger._connections.delete(identity(port))
    port.watch.healed += 1
    found_by_reconciling(port)
