"""Every way for connections to begin and end: facts/ebpf.md section 11, cases 1 to 5 and 9."""

import os
import random
import select
import signal
import socket
import threading

import pytest

from memscaler.kernel.healing import Corrections
from memscaler.kernel.netns import entered
from tests.kernel.worlds import (
    HOOKS,
    Port,
    World,
    assert_eventually,
    connected,
    forge_syns,
    inside,
    listener,
    namespace,
    new_socket,
    reset,
)

pytestmark = pytest.mark.parametrize("world", HOOKS, indirect=True, scope="module")


def send(sender, receiver):
    sender.send(b"x" * 100)
    select.select([receiver], [], [], 5)


ACTIONS = {
    "client closes": lambda client, _: client.close(),
    "server closes": lambda _, server: server.close(),
    "client resets": lambda client, _: reset(client),
    "server resets": lambda _, server: reset(server),
    "client sends": send,
    "server sends": lambda client, server: send(server, client),
    "client half-closes": lambda client, _: client.shutdown(socket.SHUT_WR),
    "server half-closes": lambda _, server: server.shutdown(socket.SHUT_WR),
    "server shuts down": lambda _, server: server.shutdown(socket.SHUT_RDWR),
}
ORDERS = [
    [("client closes", 1), ("server closes", 0)],
    [("server closes", 0), ("client closes", 0)],
    [("client resets", 0), ("server closes", 0)],
    [("server resets", 0), ("client closes", 0)],
    [("client sends", 1), ("server closes", 0), ("client closes", 0)],
    [("server sends", 1), ("client closes", 0), ("server closes", 0)],
    [("client half-closes", 1), ("server sends", 1), ("server closes", 0), ("client closes", 0)],
    [("server half-closes", 0), ("client sends", 0), ("client closes", 0), ("server closes", 0)],
    [("client half-closes", 1), ("server half-closes", 0), ("client closes", 0), ("server closes", 0)],
    [("server shuts down", 0), ("server closes", 0), ("client closes", 0)],
    [("client half-closes", 1), ("server shuts down", 0), ("server closes", 0), ("client closes", 0)],
]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: ", ".join(step for step, _ in order))
def test_close_orders(port: Port, order):
    """A connection is live until the server is done with it, whoever begins the closing."""
    pair = port.pair(port.listen())
    port.settles(1)
    for step, live in order:
        ACTIONS[step](*pair)
        port.settles(live)


def test_fifty_connections_closed_in_random_order(port: Port):
    """The count follows each close."""
    server = port.listen()
    pairs = [port.pair(server) for _ in range(50)]
    port.settles(50)
    random.Random(5).shuffle(pairs)
    for left, pair in reversed(list(enumerate(pairs))):
        for end in random.sample(pair, 2):
            end.close()
        assert_eventually(lambda left=left: port.live == left)


def test_overlapping_connections_ring_once(port: Port):
    """Of twenty overlapping connections only the first rings an armed doorbell."""
    server = port.listen()
    slot = port.watch.slot
    port.world.ledger.counters.arm(slot)
    pairs = [port.pair(server) for _ in range(20)]
    port.settles(20)
    assert port.world.ledger.counters.read(slot).rings == 1
    for client, accepted in pairs:
        client.close()
        accepted.close()
    port.settles(0)
    assert port.world.ledger.counters.read(slot).opened == 20


def test_refused(port: Port):
    """A refused connection is none."""
    with pytest.raises(ConnectionRefusedError):
        port.connect()
    port.settles(0)
    assert port.world.ledger.counters.read(port.watch.slot).opened == 0


def test_syn_flood_and_half_open(port: Port):
    """SYNs that are never followed by an ACK are no connections, although sock_diag lists them."""
    port.listen("0.0.0.0")
    forge_syns(port.world.netns, [(port.number, 1024 + number, b"") for number in range(200)])
    assert_eventually(lambda: len(port.world.diag.connections(port.number)) >= 50)
    port.settles(0)
    assert port.world.ledger.reconcile(port.watch) == Corrections()
    port.settles(0)
    assert port.world.ledger.counters.read(port.watch.slot).opened == 0


def test_backlog_overflow(port: Port):
    """What the server has not accepted yet counts as well, and goes with the listener."""
    server = port.listen(backlog=2)
    clients = []
    for _ in range(6):
        client = port.kept.enter_context(new_socket(port.world.netns))
        client.setblocking(False)
        client.connect_ex(("127.0.0.1", port.number))
        clients.append(client)
    port.settles(3)
    server.close()
    port.settles(0)


def test_client_gone_while_queued(port: Port):
    """A queued connection whose client has left stays until the server has looked at it."""
    server = port.listen()
    port.connect().close()
    port.settles(1)
    server.accept()[0].close()
    port.settles(0)


@pytest.mark.parametrize("unfinished", ["nothing", "unread", "unsent"])
def test_server_killed(port: Port, unfinished):
    """SIGKILL of the server drops its connections at once, whatever was in flight."""
    child = port.child(lambda: accept_in_background(listener(port.world.netns, port.number), unfinished))
    client = port.connect()
    port.settles(1)
    if unfinished == "unread":
        client.send(b"x" * 1000)
    child.kill()
    port.settles(0)


def accept_in_background(server, unfinished):
    """What the killed server does: a thread takes one connection, and perhaps fills its send buffer."""
    kept = []

    def work():
        accepted, _ = server.accept()
        kept.append(accepted)
        accepted.setblocking(False)
        try:
            while unfinished == "unsent":
                accepted.send(b"x" * 65536)
        except BlockingIOError:
            pass

    threading.Thread(target=work, daemon=True).start()
    return server, kept


def test_client_killed(port: Port):
    """A killed client leaves the server in CLOSE_WAIT until that closes."""
    server = port.listen()
    child = port.child(lambda: connected(port.world.netns, port.number))
    accepted, _ = server.accept()
    port.settles(1)
    child.kill()
    assert_eventually(lambda: accepted.recv(1) == b"")
    port.settles(1)
    accepted.close()
    port.settles(0)


def test_vanished_container(world: World):
    """With its link gone and unsent data no CLOSE ever comes for a killed server: it must be dropped within a second."""
    port = Port(world)
    with namespace() as outside:
        outside_name, inside_name = (path.rsplit("/", 1)[1] for path in (outside, world.netns))
        inside(inside_name, "ip", "link", "add", "ms0", "type", "veth", "peer", "name", "ms1", "netns", outside_name)
        for name, link, address in ((inside_name, "ms0", "10.99.0.1/24"), (outside_name, "ms1", "10.99.0.2/24")):
            inside(name, "ip", "addr", "add", address, "dev", link)
            inside(name, "ip", "link", "set", link, "up")
        child = port.child(lambda: accept_in_background(listener(world.netns, port.number, "10.99.0.1"), "unsent"))
        client = connected(outside, port.number, "10.99.0.1")
        port.settles(1)
        inside(outside_name, "ip", "link", "del", "ms1")
        child.kill()
        port.settles(0, within_s=1.0)
        client.close()
    port.close()


def test_descriptor_shared_by_fork(port: Port):
    """A connection held by two processes ends with the last of them."""
    client, accepted = port.pair(port.listen())
    child = port.child(lambda: accepted)
    accepted.close()
    port.settles(1)
    child.kill()  # it holds copies of the client's and the listener's descriptors as well
    port.settles(0)
    client.close()


def test_descriptor_passed_to_another_namespace(port: Port):
    """A socket stays in the namespace where it was made, whoever holds it."""
    ours, theirs = socket.socketpair()
    with namespace() as elsewhere, ours, theirs:
        client, accepted = port.pair(port.listen())

        def receive():
            with entered(elsewhere):
                return socket.recv_fds(theirs, 1, 1)

        socket.send_fds(ours, [b"!"], [accepted.fileno()])
        accepted.close()
        child = port.child(receive)
        port.settles(1)
        child.kill()
        port.settles(0)
        client.close()


def test_stopped_server_keeps_its_connections(port: Port):
    """SIGSTOP changes nothing: accepted or not, they are live."""
    child = port.child(lambda: listener(port.world.netns, port.number))
    os.kill(child.pid, signal.SIGSTOP)
    port.connect()
    port.settles(1)
    child.kill()
    port.settles(0)
