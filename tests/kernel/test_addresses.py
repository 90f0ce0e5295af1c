"""Whose connection it is: families, ignored clients, clients on the watched port (facts/ebpf.md section 11, 6 and 7)."""

import socket
from collections.abc import Iterator

import pytest

from memscaler.core.errors import ConfigError
from tests.kernel.worlds import HOOKS, Port, World, assert_eventually, connected, listener, new_socket

FAMILIES = {
    "v4": ("127.0.0.1", "127.0.0.1"),
    "v6": ("::1", "::1"),
    "mapped": ("::", "127.0.0.1"),
    "dual": ("::", "::1"),
}

pytestmark = pytest.mark.parametrize("world", HOOKS, indirect=True, scope="module")


@pytest.mark.parametrize("family", FAMILIES)
def test_families(port: Port, family):
    """IPv4, IPv6, and IPv4 on a dual-stack listener."""
    bound, reached = FAMILIES[family]
    client, accepted = port.pair(port.listen(bound), reached)
    port.settles(1)
    assert port.world.ledger.reconcile(port.watch).added == 0  # the hooks and sock_diag name it the same
    client.close()
    accepted.close()
    port.settles(0)


@pytest.mark.parametrize(("family", "prefix"), [("v4", "127.0.0.0/24"), ("mapped", "127.0.0.1"), ("v6", "::1/128")])
def test_ignored_clients(world: World, family, prefix):
    """An ignored client never enters the set, not through reconciling either, and does not ring."""
    port = Port(world, ignore=[prefix])
    bound, reached = FAMILIES[family]
    world.ledger.counters.arm(port.watch.slot)
    client, accepted = port.pair(port.listen(bound), reached)
    port.settles(0, by_proc=1)
    world.ledger.reconcile(port.watch)
    port.settles(0, by_proc=1)
    assert world.ledger.reading(port.watch).armed
    client.close()
    accepted.close()
    port.settles(0)
    assert world.ledger.counters.read(port.watch.slot).ignored == 1
    port.close()


def test_only_the_ignored_are_ignored(world: World):
    """Others on the same port count."""
    port = Port(world, ignore=["127.0.0.9", "fd00::/8"])
    server = port.listen("0.0.0.0")
    other = port.pair(server)
    port.kept.enter_context(connected(world.netns, port.number, source=("127.0.0.9", 0)))
    port.kept.enter_context(server.accept()[0])
    port.settles(1, by_proc=2)
    world.ledger.reconcile(port.watch)
    port.settles(1, by_proc=2)
    for end in other:
        end.close()
    port.settles(0, by_proc=1)
    port.close()


def test_client_on_the_watched_port(port: Port):
    """A client whose own port is the watched one is no connection of the server, and its end takes nothing away."""
    with listener(port.world.netns, port.number + 20000) as elsewhere:
        client = connected(port.world.netns, port.number + 20000, source=("127.0.0.1", port.number))
        accepted, _ = elsewhere.accept()
        port.settles(0, by_proc=1)
        port.world.ledger.reconcile(port.watch)
        port.settles(0, by_proc=1)
        client.close()
        accepted.close()
    port.settles(0)


def test_both_ends_on_the_watched_port(port: Port):
    """Such a connection counts once, also where it has to be found by sock_diag."""
    server = port.listen("127.0.0.1")
    client = port.kept.enter_context(connected(port.world.netns, port.number, source=("127.0.0.7", port.number)))
    accepted, _ = server.accept()
    port.settles(1, by_proc=2)
    port.world.ledger.reconcile(port.watch)
    port.settles(1, by_proc=2)
    client.close()
    accepted.close()
    port.settles(0)


def test_both_ends_on_the_watched_port_before_the_attachment(world: World):
    """Found open at the start, it counts once as well."""
    port = Port(world, watched=False)
    server = port.listen("127.0.0.1")
    port.kept.enter_context(connected(world.netns, port.number, source=("127.0.0.7", port.number)))
    port.kept.enter_context(server.accept()[0])
    server.close()  # now neither end has a listener behind it
    port.begin()
    port.settles(1, by_proc=2)
    port.close()
    port.settles(0)


def test_self_connect(port: Port):
    """A socket connected to itself comes and goes without a trace."""
    sock = port.kept.enter_context(new_socket(port.world.netns))
    sock.bind(("127.0.0.1", port.number))
    sock.connect(("127.0.0.1", port.number))
    assert port.by_proc == 1
    port.world.ledger.reconcile(port.watch)
    sock.close()
    port.settles(0)


@pytest.fixture
def elsewhere(port: Port) -> Iterator[socket.socket]:
    with listener(port.world.netns, port.number + 20000) as sock:
        yield sock


def test_accepted_socket_used_again_as_client(port: Port, elsewhere: socket.socket):
    """connect(AF_UNSPEC) ends the connection; what the same socket does afterwards as a client does not count."""
    client, accepted = port.pair(port.listen())
    port.settles(1)
    disconnect(accepted)
    port.settles(0)
    accepted.connect(("127.0.0.1", port.number + 20000))
    far, _ = elsewhere.accept()
    port.settles(0, by_proc=1 if accepted.getsockname()[1] == port.number else 0)
    for end in (accepted, far, client):
        end.close()
    port.settles(0)


def disconnect(sock: socket.socket) -> None:
    """connect(fd, AF_UNSPEC), which Python's socket module does not offer."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.connect(sock.fileno(), bytes(16), 16) == 0


def test_same_port_twice(world: World):
    """One slot per port and namespace."""
    port = Port(world)
    with pytest.raises(ConfigError, match="watched twice"):
        Port(world, number=port.number)


def test_identity_used_again_at_once(port: Port):
    """The same four numbers, opened again and again, are one connection at a time."""
    server = port.listen()
    for _ in range(20):
        client = connected(port.world.netns, port.number, source=("127.0.0.1", port.number + 20000))
        accepted, _ = server.accept()
        assert_eventually(lambda: port.live == 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        accepted.close()
    port.settles(0)
