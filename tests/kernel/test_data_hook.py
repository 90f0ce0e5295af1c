"""The third hook on the real kernel: data on a silent connection rings, nothing else does, and nothing is ever lost."""

import contextlib
import hashlib
import itertools
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from bench.bpf_cost import kernel_statistics
from memscaler.core.watch import Quiet, WatchSettings
from memscaler.kernel.bpf import program_info
from memscaler.kernel.netns import entered
from memscaler.kernel.sock_diag import SockDiag
from memscaler.kernel.traffic import PING_BYTES
from tests.kernel.rivals import TRACER, busy, handle_packets_in_interrupts, rival, rps_available
from tests.kernel.worlds import Port, assert_eventually, inside, namespace, world_of

RINGS = int(os.environ.get("MEMSCALER_SOAK_WAKES", "1000"))
SETTLED_S = 0.1  # a ring that comes, comes before send() returns, or from another CPU's interrupt just after
ADDRESSES = [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "127.0.0.1"), ("::", "::1")]


class SilentPort(Port):
    """A port on which silent connections do not count."""

    settings = WatchSettings()

    def __init__(self, world, netns="", number=0):
        super().__init__(world, diag=SockDiag(netns or world.netns), number=number)

    def begin(self):
        self.watch = self.world.ledger.watch(self.number, self.diag, self.settings)

    @property
    def slot(self):
        return self.world.ledger.counters.read(self.watch.slot)

    @property
    def armed(self):
        return self.world.ledger.counters.is_armed(self.watch.slot)

    def end(self):
        """Close everything and watch no more."""
        self.close()
        self.world.ledger.data_hook.detach()
        self.settles(0)
        self.world.ledger.unwatch(self.watch.slot)

    def arm(self):
        self.world.ledger.counters.arm(self.watch.slot)

    def listen_to(self, *servers):
        """Ring for data on these and on no others."""
        self.world.ledger.data_hook.attach()
        self.world.ledger.data_hook.listen_to(self.watch.slot, map(cookie, servers))

    def quiet_pair(self, server, address="127.0.0.1"):
        """(client, served) that have spoken with each other."""
        client, served = self.pair(server, address)
        time.sleep(0.02)
        exchange(client, served)
        return client, served

    def becomes_silent(self):
        """Look until nobody works."""

        def silent():
            self.world.ledger.silence.listen_in([self.watch.slot])
            return self.live == 0

        assert_eventually(silent)


def cookie(sock):
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 57, 8), "little")  # SO_COOKIE


def exchange(client, served, size=100):
    client.sendall(b"q" * size)
    assert len(served.recv(size, socket.MSG_WAITALL)) == size
    time.sleep(0.01)
    served.sendall(b"a" * size)
    assert len(client.recv(size, socket.MSG_WAITALL)) == size


@pytest.fixture(scope="module")
def world():
    with world_of("both") as made:
        assert made.attached.hears_data
        yield made


@pytest.fixture
def port(world):
    made = SilentPort(world)
    try:
        yield made
    finally:
        made.end()


# ---- what rings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("listens", "address"), ADDRESSES)
def test_first_byte_rings_once(port, listens, address):
    """Over IPv4, IPv6 and IPv4 within IPv6; until it is armed again nothing rings any more."""
    client, served = port.quiet_pair(port.listen(listens), address)
    port.listen_to(served)
    port.arm()
    for turn in range(1, 4):
        assert port.armed
        before_ns = time.monotonic_ns()
        client.sendall(b"x")
        assert_eventually(lambda: not port.armed)
        assert before_ns <= port.slot.rang_ns <= time.monotonic_ns()
        client.sendall(b"y" * 3000)
        assert len(served.recv(3001, socket.MSG_WAITALL)) == 3001
        time.sleep(SETTLED_S)
        assert (port.slot.rings, port.slot.data_rings) == (turn, turn)
        port.arm()


def test_large_segments_ring(port):
    """Segments of 64 kB, as generic receive offload makes them too."""
    client, served = port.quiet_pair(port.listen())
    port.listen_to(served)
    port.arm()
    taker = threading.Thread(target=lambda: served.recv(1 << 20, socket.MSG_WAITALL))
    taker.start()
    client.sendall(bytes(1 << 20))
    taker.join()
    assert_eventually(lambda: not port.armed)
    assert port.slot.data_rings == 1


def test_options_in_headers_are_not_data(port):
    """Selective acknowledgements and timestamps make the TCP header longer, up to 60 bytes; the data after it counts."""
    client, served = port.quiet_pair(port.listen())
    port.listen_to(served)
    inside(port.world.netns, "sysctl", "-qw", "net.ipv4.tcp_timestamps=1")
    port.arm()
    for _ in range(5):
        served.sendall(b"a" * 10)  # the client acknowledges, with options
        assert len(client.recv(10, socket.MSG_WAITALL)) == 10
    time.sleep(SETTLED_S)
    assert port.armed
    client.sendall(b"x")
    assert_eventually(lambda: not port.armed)


# ---- what does not -------------------------------------------------------------------------------------------------


def test_unarmed_is_never_rung(port):
    """While the GPU is awake nobody is told."""
    client, served = port.quiet_pair(port.listen())
    port.listen_to(served)
    exchange(client, served)
    time.sleep(SETTLED_S)
    assert port.slot.data_rings == 0


def test_acknowledgements_and_window_updates_do_not_ring(port):
    """The client takes what has arrived, slowly: it says nothing."""
    client, served = port.quiet_pair(port.listen())
    port.listen_to(served)
    sent = served.send(bytes(60_000))
    time.sleep(SETTLED_S)
    port.arm()
    while sent:
        sent -= len(client.recv(min(sent, 30_000)))
    time.sleep(SETTLED_S)
    assert port.armed
    assert port.slot.data_rings == 0


def test_keep_alive_probes_do_not_ring(port):
    """The kernel of a silent client asks whether the server is still there."""
    client, served = port.quiet_pair(port.listen())
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
        client.setsockopt(socket.IPPROTO_TCP, option, 1)
    port.listen_to(served)
    port.arm()
    before = keep_alives(port.world.netns)
    assert_eventually(lambda: keep_alives(port.world.netns) >= before + 2)
    time.sleep(SETTLED_S)
    assert port.armed


def keep_alives(netns):
    """Probes sent in this namespace so far."""
    with entered(netns):
        lines = Path("/proc/thread-self/net/netstat").read_text().splitlines()
    names, values = next((a.split(), b.split()) for a, b in itertools.pairwise(lines) if a.startswith("TcpExt"))
    return int(values[names.index("TCPKeepAlive")])


@pytest.mark.parametrize("how", ["client closes", "server closes", "client resets", "half closed"])
def test_end_of_a_connection_does_not_ring(port, how):
    """Nobody wants anything any more."""
    client, served = port.quiet_pair(port.listen())
    port.listen_to(served)
    port.becomes_silent()
    port.arm()
    before = port.slot.last_activity_ns
    if how == "half closed":
        client.shutdown(socket.SHUT_WR)
    else:
        first, second = (served, client) if how == "server closes" else (client, served)
        if how == "client resets":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        first.close()
        second.close()
        assert_eventually(lambda: port.slot.closed == 1)
    time.sleep(SETTLED_S)
    assert port.armed
    assert port.slot.last_activity_ns == before
    assert port.live == 0


def test_only_those_listened_to_ring(port):
    """Not another connection of the same port, not one that is taken out again, not another port."""
    server = port.listen()
    pairs = [port.quiet_pair(server) for _ in range(3)]
    other = SilentPort(port.world)
    with other.kept:
        there = other.quiet_pair(other.listen())
        port.listen_to(pairs[0][1], pairs[1][1])
        other.listen_to(there[1])
        port.listen_to(pairs[1][1])
        for each in (port, other):
            each.arm()
        for client, _ in (pairs[0], pairs[2]):
            client.sendall(b"x")
        time.sleep(SETTLED_S)
        assert port.armed
        assert other.armed
        pairs[1][0].sendall(b"x")
        assert_eventually(lambda: not port.armed)
        assert other.armed
        there[0].sendall(b"x")
        assert_eventually(lambda: not other.armed)
    other.end()


def test_a_server_that_goes_on_answering_rings_and_its_pings_do_not(port):
    """An answer that paused looked like one that was over; its next token wakes the GPU."""
    client, served = port.quiet_pair(port.listen())
    port.listen_to(served)
    port.arm()
    for _ in range(3):
        served.sendall(b"x" * (PING_BYTES - 1))
        assert len(client.recv(5000)) == PING_BYTES - 1
    time.sleep(SETTLED_S)
    assert port.armed
    served.sendall(b"x" * PING_BYTES)
    assert_eventually(lambda: not port.armed)
    assert port.slot.data_rings == 1


def test_across_interfaces_and_namespaces(port):
    """Client and server in two namespaces, over a pair of network interfaces."""
    with namespace() as far:
        near = port.world.netns
        name = far.rsplit("/", 1)[-1]
        link = ("ip", "link", "add", "ms-hook0", "type", "veth", "peer", "name", "ms-hook1", "netns", name)
        inside(near, *link) if Path(f"/run/netns/{name}").exists() else None
        for netns, interface, address in ((near, "ms-hook0", "10.97.0.1/24"), (far, "ms-hook1", "10.97.0.2/24")):
            inside(netns, "ip", "addr", "add", address, "dev", interface)
            inside(netns, "ip", "link", "set", interface, "up")
        server = port.listen("10.97.0.1")
        with entered(far):
            client = port.kept.enter_context(socket.socket())
        client.connect(("10.97.0.1", port.number))
        served = port.kept.enter_context(server.accept()[0])
        time.sleep(0.02)
        exchange(client, served)
        port.listen_to(served)
        port.arm()
        client.sendall(b"x")
        assert_eventually(lambda: not port.armed)
        port.close()


# ---- what it costs, and what it must never do ----------------------------------------------------------------------


def test_detached_hook_does_not_run(port):
    """Attached and detached as often as one likes; in between the kernel does not even call it."""
    client, served = port.quiet_pair(port.listen())
    hook, program = port.world.ledger.data_hook, port.world.attached.fds["data_program"]

    def runs():
        before = program_info(program)["run_count"]
        for _ in range(20):
            exchange(client, served)
        return program_info(program)["run_count"] - before

    with kernel_statistics():
        for _ in range(3):
            hook.attach()
            hook.attach()
            assert hook.attached
            assert runs() >= 40
            hook.detach()
            hook.detach()
            assert not hook.attached
            assert runs() == 0
    port.listen_to(served)
    port.arm()
    client.sendall(b"x")
    assert_eventually(lambda: not port.armed)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_nothing_is_dropped_or_changed(port, address):
    """50 MB each way through the attached hook, while it is armed and rings."""
    client, served = port.quiet_pair(port.listen(address), address)
    port.listen_to(served)
    data = os.urandom(1 << 20) * 50
    want = hashlib.sha256(data).digest()
    got = {}

    def take(name, sock):
        digest, left = hashlib.sha256(), len(data)
        while left:
            piece = sock.recv(min(left, 1 << 20))
            assert piece
            digest.update(piece)
            left -= len(piece)
        got[name] = digest.digest()

    threads = [
        threading.Thread(target=take, args=("served", served)),
        threading.Thread(target=take, args=("client", client)),
        threading.Thread(target=client.sendall, args=(data,)),
        threading.Thread(target=served.sendall, args=(data,)),
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        port.arm()
        time.sleep(0.001)
    assert got == {"served": want, "client": want}
    assert port.slot.data_rings > 0
    assert port.slot.ring_failed == 0


@pytest.mark.skipif(not rps_available(), reason="one CPU, or no packet steering: nothing is lost here")
def test_no_ring_is_lost_beside_another_tracer(record_property):
    """Where the kernel skips a tracepoint program, it never skips this one: every request on a silent connection rings."""
    with world_of("both") as world:
        handle_packets_in_interrupts(world.netns)
        port = SilentPort(world)
        client, served = port.quiet_pair(port.listen())
        port.listen_to(served)
        with contextlib.ExitStack() as kept:
            kept.callback(port.end)
            kept.enter_context(rival(TRACER))
            kept.enter_context(busy())
            for turn in range(RINGS):
                port.arm()
                client.sendall(b"x" * (1 + turn % 1400))
                assert_eventually(lambda: not port.armed, lambda: f"ring {turn}", within_s=5)
                served.recv(2000)
            figures = {"rings": port.slot.data_rings, "misses": world.attached.recursion_misses()}
            record_property("figures", figures)
            print(figures)
            assert port.slot.data_rings == RINGS
            assert world.attached.recursion_misses()["data"] == 0


# ---- the ledger: from silent to listened to ------------------------------------------------------------------------


@pytest.fixture
def silent(port):
    """A port with one connection that has been silent for a second; (port, server, client, served)."""
    server = port.listen()
    client, served = port.quiet_pair(server)
    port.becomes_silent()
    return port, server, client, served


def listening(port, between=lambda: None):
    """As the governor does before a park: arm, look, listen. `between` runs when it has looked but does not listen."""
    ledger, hook = port.world.ledger, port.world.ledger.data_hook
    real = hook.attach

    def late():
        between()
        real()

    hook.attach = late
    try:
        port.arm()
        ledger.reconcile(port.watch)
        ledger.silence.listen_for_data([port.watch.slot])
    finally:
        del hook.attach
    return ledger.reading(port.watch)


def test_silent_connection_is_listened_to(silent):
    """Nobody is live, the hook is there, and the first byte rings."""
    port, _, client, _ = silent
    reading = listening(port)
    assert (reading.live, reading.armed) == (0, True)
    assert port.world.ledger.data_hook.attached
    assert port.world.ledger.open_connections(port.watch) == 1
    client.sendall(b"x")
    assert_eventually(lambda: not port.armed)
    assert port.world.ledger.reading(port.watch).last_touch_ns >= port.slot.rang_ns


def test_whoever_is_at_work_is_not_listened_to(silent):
    """An answer is owed: then there is nothing to park for."""
    port, _, client, served = silent
    time.sleep(0.02)  # not in the same tick as the last answer
    client.sendall(b"q" * 100)
    assert len(served.recv(100)) == 100
    time.sleep(0.02)
    assert listening(port).live == 1
    assert not port.world.ledger.data_hook.attached


@pytest.mark.parametrize("answers", [False, True])
def test_word_between_look_and_listening(silent, answers):
    """It rang nobody, and may be answered already: the connection is live all the same."""
    port, _, client, served = silent

    def speak():
        client.sendall(b"q" * 100)
        assert len(served.recv(100)) == 100
        if answers:
            served.sendall(b"a")
            assert client.recv(1) == b"a"

    assert listening(port, speak).live == 1


def test_end_between_look_and_listening(silent):
    """One connection less, and nobody is live."""
    port, _, client, served = silent

    def end():
        client.close()
        served.close()
        assert_eventually(lambda: port.slot.closed == 1)

    reading = listening(port, end)
    assert (reading.live, reading.armed) == (0, True)
    assert port.world.ledger.open_connections(port.watch) == 0


def test_open_between_look_and_listening(silent):
    """A new connection rings, as always."""
    port, server, _, _ = silent
    reading = listening(port, lambda: port.pair(server))
    assert reading.live >= 1  # the doubt may be about both
    assert not reading.armed


def test_another_takes_the_place_of_one_that_ended(silent):
    """As many as before, but not the same ones: nobody may take the new one for silent."""
    port, server, client, served = silent

    def change():
        client.close()
        served.close()
        assert_eventually(lambda: port.slot.closed == 1)
        port.pair(server)

    assert listening(port, change).live == 1


def test_end_of_silent_connections_while_parked(silent):
    """Each ends without a ring and without becoming anybody's work; the last word of the others still rings."""
    port, server, client, served = silent
    others = [port.quiet_pair(server) for _ in range(4)]
    port.becomes_silent()
    assert listening(port).live == 0
    before = port.slot.last_activity_ns
    for near, far in others:
        near.close()
        far.close()
    assert_eventually(lambda: port.slot.closed == 4)
    reading = port.world.ledger.reading(port.watch)
    assert (reading.live, reading.armed) == (0, True)
    assert port.slot.last_activity_ns == before
    port.world.ledger.silence.check_silence([port.watch.slot])
    assert port.live == 0
    client.sendall(b"x")
    assert_eventually(lambda: not port.armed)
    assert served.recv(1) == b"x"


def test_check_silence_finds_what_did_not_ring(silent):
    """Should a ring ever be lost, the next look at the sockets finds the word."""
    port, _, client, _ = silent
    assert listening(port).live == 0
    port.world.ledger.data_hook.detach()
    client.sendall(b"x")
    time.sleep(0.02)
    assert port.armed
    port.world.ledger.silence.check_silence([port.watch.slot])
    assert port.live == 1


def test_many_silent_connections(port):
    """Hundreds of pooled connections: each of them rings."""
    server = port.listen(backlog=1000)
    pairs = [port.pair(server) for _ in range(300)]
    time.sleep(0.02)
    for client, served in pairs:
        client.sendall(b"q" * 100)
        assert len(served.recv(100)) == 100
    time.sleep(0.01)
    for client, served in pairs:
        served.sendall(b"a" * 100)
        assert len(client.recv(100)) == 100
    port.becomes_silent()
    for client, served in (pairs[0], pairs[150], pairs[299]):
        assert listening(port).live == 0
        client.sendall(b"x")
        assert_eventually(lambda: not port.armed)
        port.world.ledger.data_hook.detach()
        assert served.recv(1) == b"x"
        time.sleep(0.01)
        served.sendall(b"y")
        port.becomes_silent()


def test_ignored_clients_are_not_listened_to(world):
    """They do not exist: neither silent nor heard."""

    class Ignoring(SilentPort):
        settings = WatchSettings(ignore=("127.0.0.1",))

    port = Ignoring(world)
    with port.kept:
        client, served = port.quiet_pair(port.listen())
        reading = listening(port)
        assert (reading.live, reading.armed) == (0, True)
        exchange(client, served)
        time.sleep(SETTLED_S)
        assert port.armed
        world.ledger.silence.check_silence([port.watch.slot])
        assert port.live == 0
    port.end()


def test_connections_count_where_silence_does_not(world):
    """Quiet = "no-connections": a silent connection is live."""

    class Plain(SilentPort):
        settings = WatchSettings(quiet=Quiet.NO_CONNECTIONS)

    port = Plain(world)
    with port.kept:
        port.quiet_pair(port.listen())
        for _ in range(3):
            time.sleep(0.5)
            assert listening(port).live == 1
    assert not world.ledger.data_hook.attached
    port.end()


# ---- our own questions ---------------------------------------------------------------------------------------------


def identity_of(port, client):
    from memscaler.kernel.records import IDENTITY, address

    here, there = address("127.0.0.1"), client.getsockname()[1]
    return IDENTITY.pack(port.watch.netns, port.number, there, 0, here, here)


def own_client(port):
    with entered(port.world.netns):
        client = socket.socket()
    client.bind(("127.0.0.1", 0))
    return client


def test_own_probe_is_nobody(port):
    """Announced beforehand it counts nowhere and rings nobody, also when it is there while one reconciles."""
    server = port.listen()
    port.arm()
    for _ in range(5):
        with own_client(port) as client, port.world.ledger.own.announced(identity_of(port, client)):
            client.connect(("127.0.0.1", port.number))
            with server.accept()[0] as served:
                exchange(client, served, 2000)
                port.world.ledger.reconcile(port.watch)
                assert port.live == 0
    port.world.ledger.reconcile(port.watch)
    slot = port.slot
    assert (slot.opened, slot.closed, slot.rings, slot.touches, slot.last_activity_ns) == (0, 0, 0, 0, 0)
    assert port.armed
    assert port.watch.seeded == 0


def test_own_probe_that_fails_leaves_nothing_behind(port):
    """Refused: the next client with the same port of its own is a client."""
    with own_client(port) as client:
        with (
            pytest.raises(ConnectionRefusedError),
            port.world.ledger.own.announced(identity_of(port, client)),
        ):
            client.connect(("127.0.0.1", port.number))
        source = client.getsockname()
    server = port.listen()
    port.arm()
    client = port.connect(source=source)
    assert_eventually(lambda: not port.armed)
    assert port.slot.opened == 1
    server.accept()[0].close()
    client.close()


def test_own_probe_whose_end_was_missed_leaves_nothing_behind(port):
    """The kernel skips the tracepoint now and then: a client that gets the same port later is a client."""
    server = port.listen()
    with own_client(port) as client:
        source = client.getsockname()
        with port.world.ledger.own.announced(identity_of(port, client)):
            pass  # as if nobody had seen this connection's end
    time.sleep(1.2)  # until then the socket may be in a dump
    port.world.ledger.reconcile(port.watch)
    port.arm()
    client = port.connect(source=source)
    assert_eventually(lambda: not port.armed, within_s=1)
    assert port.slot.opened == 1
    server.accept()[0].close()
    client.close()


def test_two_namespaces_with_the_same_port():
    """Data in one of them rings for its own watch."""
    with world_of("both") as world, namespace() as second:
        one = SilentPort(world)
        two = SilentPort(world, second, one.number)
        with contextlib.ExitStack() as kept:
            kept.enter_context(one.kept)
            client, served = one.quiet_pair(one.listen())
            with entered(second):
                there = kept.enter_context(socket.create_server(("127.0.0.1", two.number)))
                far = kept.enter_context(socket.create_connection(("127.0.0.1", two.number)))
            far_served = kept.enter_context(there.accept()[0])
            time.sleep(0.02)
            exchange(far, far_served)
            for each in (one, two):
                each.becomes_silent()
                assert listening(each).live == 0
            far.sendall(b"x")
            assert_eventually(lambda: not two.armed)
            assert one.armed
            client.sendall(b"x")
            assert_eventually(lambda: not one.armed)
            assert served.recv(1) == b"x"
