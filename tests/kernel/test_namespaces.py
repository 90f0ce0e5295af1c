"""One port in several network namespaces: facts/ebpf.md section 11, case 11."""

import contextlib

import pytest

from memscaler.core.errors import ConfigError
from memscaler.kernel.netns import cookie_of
from memscaler.kernel.sock_diag import SockDiag
from tests.kernel.worlds import Port, World, connected, listener, live_by_proc, namespace, run


def open_in(kept: contextlib.ExitStack, netns: str, number: int):
    server = kept.enter_context(listener(netns, number))
    client = kept.enter_context(connected(netns, number))
    accepted = kept.enter_context(server.accept()[0])
    return client, accepted


def test_two_namespaces_on_one_port_and_a_third(world: World):
    """Each is counted for itself, the third not at all."""
    with namespace() as other, namespace() as third, contextlib.ExitStack() as kept:
        diag = SockDiag(other)
        here = Port(world)
        there = Port(world, diag=diag, number=here.number)
        assert here.watch.netns != there.watch.netns
        pairs = [open_in(kept, netns, here.number) for netns in (world.netns, other, third)]
        pairs.append((kept.enter_context(connected(other, here.number)), pairs[1][1]))  # queued, not accepted
        here.settles(1)
        assert world.ledger.reading(there.watch).live == live_by_proc(other)[here.number] == 2
        world.ledger.reconcile_all()
        here.settles(1)
        assert world.ledger.reading(there.watch).live == 2
        for client, _ in pairs[1:]:
            client.close()
        kept.pop_all().close()
        here.settles(0)
        assert world.ledger.reading(there.watch).live == 0


def test_namespace_deleted_while_live(world: World):
    """The name may go; the connection and its count stay until it is closed."""
    with namespace() as other, contextlib.ExitStack() as kept:
        diag = SockDiag(other)
        port = Port(world, diag=diag)
        client, accepted = open_in(kept, other, port.number)
        assert world.ledger.reading(port.watch).live == 1
        run("ip", "netns", "del", other.rsplit("/", 1)[1])
        client.send(b"x")
        assert accepted.recv(1) == b"x"
        world.ledger.reconcile(port.watch)
        assert world.ledger.reading(port.watch).live == 1
        accepted.close()
        client.close()
        assert world.ledger.reading(port.watch).live == 0
        world.ledger.reconcile(port.watch)
        assert world.ledger.reading(port.watch).live == 0


def test_cookies_differ(world: World):
    """The cookie is one per namespace and the same through every socket in it."""
    with namespace() as other:
        cookies = []
        for netns in (world.netns, other, world.netns):
            with listener(netns, 0) as sock:
                cookies.append(cookie_of(sock))
        assert cookies[0] == cookies[2] == world.diag.namespace.cookie
        assert cookies[0] != cookies[1]


@pytest.mark.parametrize("world", ["no-btf"], indirect=True)
def test_scopes_without_namespaces(world: World):
    """Where namespaces are not told apart, a second watch of the port is refused."""
    with namespace() as other:
        diag = SockDiag(other)
        port = Port(world)
        with pytest.raises(ConfigError):
            Port(world, diag=diag, number=port.number)
        diag.close()
