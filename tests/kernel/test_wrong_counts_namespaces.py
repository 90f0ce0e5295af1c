"""Namespaces that are destroyed, and sockets that are served from another one than their own: no count may be wrong."""

import contextlib
import fcntl
import os
import random
import socket

import pytest

from memscaler.kernel.netns import entered
from memscaler.kernel.sock_diag import SockDiag
from tests.kernel.worlds import (
    Child,
    Port,
    World,
    assert_eventually,
    connected,
    inside,
    joined,
    listener,
    live_by_proc,
    namespace,
    reset,
    run,
    world_of,
)

SIOCGSKNS = 0x894C  # the namespace of a socket, as a descriptor


def namespace_of(diag: SockDiag) -> str:
    """A path to the namespace that this object holds, for when its name is gone."""
    return f"/proc/self/fd/{fcntl.ioctl(diag._socket, SIOCGSKNS)}"


def fill(sock: socket.socket) -> None:
    """More than is ever read."""
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(b"x" * 65536)


class Container:
    """A server and a client in a namespace of their own, both processes with data that the other does not read."""

    def __init__(self, kept: contextlib.ExitStack, hooks: str) -> None:
        self.world = kept.enter_context(world_of(hooks))
        self.port = Port(self.world)
        self.client_netns = kept.enter_context(joined(self.world.netns))
        ready, self._say = os.pipe()
        self.server = self._child(kept, self._serve)
        assert os.read(ready, 1) == b"s"
        self.client = self._child(kept, self._use)
        assert os.read(ready, 1) == b"c"
        os.close(ready)
        os.close(self._say)

    def _child(self, kept: contextlib.ExitStack, work) -> Child:
        child = Child.running(work)
        kept.callback(child.kill)
        return child

    def _serve(self):
        with listener(self.world.netns, self.port.number, "10.97.0.1") as server:
            os.write(self._say, b"s")
            pairs = [server.accept()[0] for _ in range(3)]
        for pair in pairs:
            fill(pair)
        return pairs

    def _use(self):
        clients = [connected(self.client_netns, self.port.number, "10.97.0.1") for _ in range(3)]
        for client in clients:
            fill(client)
        os.write(self._say, b"c")
        return clients


@pytest.mark.parametrize("hooks", ["both", "tracepoint"])
@pytest.mark.parametrize("link", ["link there", "link gone"])
def test_destroyed_with_everything_in_it(hooks, link):
    """Names deleted, link gone, all processes killed with unsent data: live while somebody holds it, then none.

    Our own diagnostic socket keeps the namespace in being, and goes on answering from inside it.
    """
    with contextlib.ExitStack() as kept:
        made = Container(kept, hooks)
        made.port.settles(3)
        truth = namespace_of(made.world.diag)
        kept.callback(os.close, int(truth.rsplit("/", 1)[1]))
        if link == "link gone":
            inside(made.world.netns, "ip", "link", "del", "ms-here")
        for netns in (made.client_netns, made.world.netns):
            run("ip", "netns", "del", netns.rsplit("/", 1)[1])
        made.world.netns = truth
        made.world.ledger.reconcile(made.port.watch)
        made.port.settles(3)
        made.client.kill()
        made.server.kill()
        made.port.settles(0, within_s=5.0)  # the sockets themselves take minutes without a link
        made.world.ledger.reconcile(made.port.watch)
        made.port.settles(0)


def test_destroyed_and_made_again_under_the_same_name(world: World):
    """A new namespace of the same name is another one: nothing in it counts for the old watch, nor disturbs it."""
    with namespace() as netns, contextlib.ExitStack() as kept:
        port = Port(world, diag=SockDiag(netns))
        server = kept.enter_context(listener(netns, port.number))
        client = kept.enter_context(connected(netns, port.number, source=("127.0.0.1", port.number + 20000)))
        accepted = kept.enter_context(server.accept()[0])
        name = netns.rsplit("/", 1)[1]
        run("ip", "netns", "del", name)
        run("ip", "netns", "add", name)
        inside(name, "ip", "link", "set", "lo", "up")
        again = kept.enter_context(listener(netns, port.number))
        for _ in range(3):  # under the very same addresses and ports
            twin = connected(netns, port.number, source=("127.0.0.1", port.number + 20000))
            assert live_by_proc(netns)[port.number] == 1
            twin_accepted, _ = again.accept()
            world.ledger.reconcile(port.watch)
            assert port.live == 1
            reset(twin)
            twin_accepted.close()
        assert port.live == 1
        client.close()
        accepted.close()
        assert_eventually(lambda: port.live == 0)
        world.ledger.reconcile(port.watch)
        assert (port.live, port.in_set) == (0, 0)


def echo_for_ever(sock: socket.socket) -> None:
    while data := sock.recv(100):
        sock.send(data)
    sock.close()


def test_socket_passed_on_and_served_from_another_namespace(world: World):
    """A descriptor sent by SCM_RIGHTS: the connection stays one of the namespace where it was made."""
    with namespace() as elsewhere, contextlib.ExitStack() as kept:
        here = Port(world)
        kept.callback(here.close)
        there = Port(world, diag=SockDiag(elsewhere), number=here.number)
        ours, theirs = (kept.enter_context(end) for end in socket.socketpair())

        def serve():
            ours.close()
            with entered(elsewhere):
                _, (fd, *_), _, _ = socket.recv_fds(theirs, 1, 1)
                echo_for_ever(socket.socket(fileno=fd))

        child = Child.running(serve)  # before there is a connection: it has no copy of our ends
        kept.callback(child.kill)
        client, accepted = here.pair(here.listen())
        socket.send_fds(ours, [b"!"], [accepted.fileno()])
        accepted.close()
        for _ in range(3):
            client.send(b"hello")
            assert client.recv(5) == b"hello"
            world.ledger.reconcile_all()
            here.settles(1)
            assert there.live == live_by_proc(elsewhere).get(here.number, 0) == 0
        client.shutdown(socket.SHUT_WR)  # the far process sees the end and closes
        here.settles(0)
        world.ledger.reconcile_all()
        here.settles(0)
        assert there.live == 0


def test_accepted_by_a_process_in_another_namespace(world: World):
    """What is accepted belongs to the listener's namespace, wherever the accepting process lives by then."""
    with namespace() as elsewhere, contextlib.ExitStack() as kept:
        here = Port(world)
        there = Port(world, diag=SockDiag(elsewhere), number=here.number)
        server = listener(world.netns, here.number)

        def serve():
            with entered(elsewhere):
                while True:
                    echo_for_ever(server.accept()[0])

        child = Child.running(serve)
        kept.callback(child.kill)
        server.close()
        for turn in range(3):
            client = kept.enter_context(connected(world.netns, here.number))
            client.send(b"hello")
            assert client.recv(5) == b"hello"
            if turn:
                world.ledger.reconcile_all()
            here.settles(1)
            assert there.live == live_by_proc(elsewhere).get(here.number, 0) == 0
            client.close()
            here.settles(0)
        client = kept.enter_context(connected(world.netns, here.number))
        here.settles(1)
        child.kill()  # with the connection open, or in the queue
        here.settles(0)
        assert there.live == 0


def test_same_identities_in_two_namespaces(world: World):
    """The same addresses and ports in both, in random order: each namespace counts its own, after every step."""
    chance = random.Random(7)
    with namespace() as other, contextlib.ExitStack() as kept:
        here = Port(world)
        there = Port(world, diag=SockDiag(other), number=here.number)
        servers = {netns: kept.enter_context(listener(netns, here.number, "0.0.0.0")) for netns in (world.netns, other)}
        live: dict[tuple[str, int], tuple[socket.socket, socket.socket]] = {}
        for _ in range(60):
            where = chance.choice(list(servers)), here.number + 20000 + chance.randrange(4)
            if where in live:
                ends = list(live.pop(where))
                chance.shuffle(ends)
                for end in ends:
                    reset(end)
            else:
                client = connected(where[0], here.number, source=("127.0.0.1", where[1]))
                live[where] = (client, servers[where[0]].accept()[0])
            if chance.random() < 0.2:
                world.ledger.reconcile_all()
            wanted = [sum(netns == one for netns, _ in live) for one in servers]
            assert_eventually(
                lambda: [here.live, there.live] == wanted, lambda: f"{here.live}, {there.live}, not {wanted}"
            )
            assert [live_by_proc(netns).get(here.number, 0) for netns in servers] == wanted
        for ends in live.values():
            for end in ends:
                reset(end)
        here.settles(0)
        assert_eventually(lambda: there.live == there.in_set == 0)
