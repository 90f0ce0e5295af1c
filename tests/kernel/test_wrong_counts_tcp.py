"""Floods, full queues, storms, TCP's relatives and odd addresses: the count is that of /proc and ss all the time."""

import contextlib
import os
import socket
import threading
from pathlib import Path

import pytest

from memscaler.kernel.healing import Corrections
from memscaler.kernel.netns import entered
from tests.kernel.worlds import (
    RST,
    Child,
    Port,
    World,
    assert_eventually,
    connected,
    forge,
    forge_syns,
    inside,
    joined,
    live_by_ss,
    new_socket,
    reset,
    sysctl,
)

MPTCP = 262
TCP_FASTOPEN = 23
MSG_FASTOPEN = 0x20000000


def settles(port: Port, live: int) -> None:
    """As the counters, the set, /proc and ss say, before and after reconciling, which finds nothing to correct."""
    port.settles(live)
    assert live_by_ss(port.world.netns, port.number) == live
    if port.world.loses_nothing:
        assert port.world.ledger.reconcile(port.watch) == Corrections()
    port.settles(live)


@contextlib.contextmanager
def sysctls(netns: str, **values: str):
    """These of net.ipv4, and afterwards what was before."""
    before = {}
    with entered(netns):
        for name in values:
            before[name] = Path(f"/proc/sys/net/ipv4/{name}").read_text()
    for name, value in values.items():
        sysctl(netns, f"net.ipv4.{name}", value)
    try:
        yield
    finally:
        for name, value in before.items():
            sysctl(netns, f"net.ipv4.{name}", value)


def tcp_statistic(netns: str, name: str) -> int:
    with entered(netns):
        lines = Path("/proc/thread-self/net/netstat").read_text().splitlines()
    names, values = lines[0].split(), lines[1].split()
    return int(values[names.index(name)])


# ---- floods ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cookies", ["1", "2"])
def test_connections_amid_a_syn_flood(port: Port, cookies):
    """SYN cookies, when the queue is full (1) or always (2): the flood counts for nothing, each real connection once."""
    netns = port.world.netns
    with sysctls(netns, tcp_syncookies=cookies, tcp_max_syn_backlog="8"), contextlib.ExitStack() as kept:
        server = port.listen("0.0.0.0", backlog=8)
        before = {name: tcp_statistic(netns, name) for name in ("SyncookiesSent", "SyncookiesRecv")}
        forge_syns(netns, [(port.number, 1024 + number, b"") for number in range(64)])

        def flood():
            while True:
                for first in range(1024, 60000, 500):
                    forge_syns(netns, [(port.number, first + number, b"") for number in range(500)])

        child = Child.running(flood)
        kept.callback(child.kill)
        pairs = []
        for wanted in range(1, 21):
            pairs.append(port.pair(server))
            port.settles(wanted)
            if wanted % 5 == 0:
                settles(port, wanted)
        for wanted in range(19, 9, -1):
            for end in pairs.pop():
                end.close()
            port.settles(wanted)
        settles(port, 10)
        child.kill()
        # Cookies were really sent, and real connections made from them.
        assert all(tcp_statistic(netns, name) > value for name, value in before.items())
        assert port.world.ledger.counters.read(port.watch.slot).opened <= 20
        for pair in pairs:
            for end in pair:
                end.close()
        settles(port, 0)


@pytest.mark.parametrize("abort", ["0", "1"])
def test_accept_queue_overflow(port: Port, abort):
    """What does not fit into the queue is dropped, or reset: counted is what the server has, now and as it accepts."""
    netns = port.world.netns
    with sysctls(netns, tcp_abort_on_overflow=abort):
        server = port.listen(backlog=2)
        clients = []
        for _ in range(8):
            client = port.kept.enter_context(new_socket(netns))
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port.number))
            clients.append(client)
        settles(port, 3)
        assert tcp_statistic(netns, "ListenOverflows") > 0
        server.settimeout(15)
        accepted = []
        wanted = 3 if abort == "1" else 6  # with 0 the others come when there is room, by and by
        while len(accepted) < wanted:
            accepted.append(server.accept()[0])
            assert_eventually(lambda: port.live == port.in_set == port.by_proc >= len(accepted))
        server.close()
        for client in clients:
            client.close()
        for one in accepted:
            one.close()
        settles(port, 0)


def test_storm_of_resets(port: Port):
    """Clients that reset at once, in the queue or just accepted, and forged resets: the one that stays is never lost."""
    netns = port.world.netns
    server = port.listen("127.0.0.1", backlog=64)
    stays, stays_accepted = port.pair(server)
    port.settles(1)
    lowest, over = [1], threading.Event()

    def storm():
        with entered(netns):
            for _ in range(400):
                client = socket.socket()
                client.setblocking(False)
                client.connect_ex(("127.0.0.1", port.number))
                reset(client)
        os._exit(0)

    def blind():
        for first in range(0, 2**32, 2**25):
            forge(netns, [(port.number, stays.getsockname()[1], b"")], RST, first, ("127.0.0.1", "127.0.0.1"))
        os._exit(0)

    # First the children: a fork among threads is asking for trouble.
    children = [Child.running(work) for work in (storm, storm, storm, blind)]
    accepting = threading.Thread(target=close_what_comes, args=(server, over))
    accepting.start()
    try:
        while [child for child in children if not child.poll()]:
            lowest.append(port.live)
    finally:
        over.set()
        accepting.join()
        for child in children:
            child.kill()
    stays.send(b"x")
    assert stays_accepted.recv(1) == b"x"
    port.world.ledger.reconcile(port.watch)  # the tracepoint alone may have lost something
    port.settles(1)
    assert min(lowest) >= 1
    stays_accepted.close()
    settles(port, 0)


def close_what_comes(server: socket.socket, over: threading.Event) -> None:
    server.settimeout(0.1)
    while True:
        try:
            server.accept()[0].close()
        except TimeoutError:
            if over.is_set():
                return


def test_simultaneous_close(port: Port):
    """Both ends close before they hear of each other (CLOSING): over at once, and only once."""
    netns = port.world.netns
    server = port.listen()
    pairs = [port.pair(server) for _ in range(3)]
    stays = port.pair(server)
    port.settles(4)
    inside(netns, "ip", "link", "set", "lo", "down")
    try:
        for pair in pairs:
            for end in pair:
                end.close()
        port.settles(1)
    finally:
        inside(netns, "ip", "link", "set", "lo", "up")

    def states() -> str:
        return inside(netns, "ss", "-Htan", f"( sport = :{port.number} or dport = :{port.number} )")

    # Only where both ends closed first do both have to wait.
    assert_eventually(lambda: states().count("TIME-WAIT") == 6, states)
    settles(port, 1)
    for end in stays:
        end.close()
    settles(port, 0)


# ---- TCP Fast Open -----------------------------------------------------------------------------------------------


@pytest.fixture
def fast_open(world: World):
    """Ports of listeners that take data in the SYN, with or without ignored clients."""
    sysctl(world.netns, "net.ipv4.tcp_fastopen", "1543")  # client and server, neither needs a cookie
    with contextlib.ExitStack() as kept:

        def made(*ignore: str) -> tuple[Port, socket.socket]:
            port = Port(world, ignore=ignore)
            kept.callback(port.close)
            server = port.listen("0.0.0.0")
            server.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 16)
            server.settimeout(15)
            return port, server

        yield made


def fast_client(port: Port, source: str = "127.0.0.1") -> socket.socket:
    client = port.kept.enter_context(new_socket(port.world.netns))
    client.bind((source, 0))
    client.sendto(b"hello", MSG_FASTOPEN, ("127.0.0.1", port.number))
    return client


@pytest.mark.parametrize("how", ["reset by the client", "closed by the server", "server resets", "never read"])
def test_fast_open_aborted_before_the_handshake(fast_open, how):
    """Accepted from the SYN alone, and gone before any ACK: live (both hooks) until then, nothing afterwards."""
    port, server = fast_open()
    netns, both = port.world.netns, port.world.loses_nothing
    forge_syns(netns, [(port.number, 4444, b"hello!")])
    accepted = port.kept.enter_context(server.accept()[0])
    port.settles(int(both), by_proc=0)  # SYN_RECV in /proc: nobody but a hook can tell it from a half-open one
    port.world.ledger.reconcile(port.watch)
    port.settles(int(both), by_proc=0)
    match how:
        case "reset by the client":
            forge(netns, [(port.number, 4444, b"")], RST, 1 + 1 + len(b"hello!"))
        case "closed by the server":
            accepted.recv(6)
            accepted.close()
        case "server resets":
            reset(accepted)
        case _:
            accepted.close()
    settles(port, 0)


@pytest.mark.parametrize("how", ["connected", "forged"])
def test_fast_open_of_ignored_clients(fast_open, how):
    """An ignored client's data in the SYN neither counts nor rings; another's does both."""
    port, server = fast_open("127.0.0.9", "10.98.0.9")
    ledger, slot = port.world.ledger, port.watch.slot
    ledger.counters.arm(slot)
    if how == "connected":
        client = fast_client(port, "127.0.0.9")
    else:
        forge_syns(port.world.netns, [(port.number, 4445, b"hello!")])
    ignored, _ = server.accept()
    assert ignored.recv(5) == b"hello"
    by_proc = int(how == "connected")
    port.settles(0, by_proc)
    assert ledger.reconcile(port.watch) == Corrections()
    port.settles(0, by_proc)
    assert ledger.counters.read(slot).rings == 0
    fast_client(port)
    counted, _ = server.accept()
    port.settles(1, 1 + by_proc)
    assert ledger.counters.read(slot).rings == 1
    reset(ignored)
    if how == "connected":
        reset(client)
    settles(port, 1)
    counted.close()
    settles(port, 0)


def test_fast_open_of_a_killed_server(fast_open):
    """Data in the SYN, in the queue or accepted, of a server that is killed."""
    port, server = fast_open()

    def serve():
        return server.accept(), server

    child = Child.running(serve)
    port.kept.callback(child.kill)
    server.close()
    clients = [fast_client(port) for _ in range(3)]
    port.settles(3)
    child.kill()
    port.settles(0)
    for client in clients:
        client.close()
    settles(port, 0)


# ---- MPTCP -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/sys/net/mptcp/enabled").exists(), reason="no MPTCP in this kernel")
def test_mptcp_subflows(port: Port):
    """Each subflow is a socket of its own for sock_diag, and so it is for us, as they come and go; TCP clients beside."""
    netns, address = port.world.netns, "10.97.0.1"
    with joined(netns) as other:
        for where in (netns, other):
            sysctl(where, "net.mptcp.enabled", "1")
            inside(where, "ip", "mptcp", "limits", "set", "subflow", "4", "add_addr_accepted", "4")
        for last in (3, 4):
            inside(other, "ip", "addr", "add", f"10.97.0.{last}/24", "dev", "ms-there")
            inside(other, "ip", "mptcp", "endpoint", "add", f"10.97.0.{last}", "dev", "ms-there", "subflow")
        server = port.listen("0.0.0.0", protocol=MPTCP)
        client = port.kept.enter_context(connected(other, port.number, address, protocol=MPTCP))
        accepted = port.kept.enter_context(server.accept()[0])
        client.send(b"x")
        assert accepted.recv(1) == b"x"
        accepted.send(b"x")
        assert client.recv(1) == b"x"
        settles(port, 3)
        plain = port.kept.enter_context(connected(other, port.number, address))
        plain_accepted = port.kept.enter_context(server.accept()[0])
        settles(port, 4)
        inside(other, "ip", "mptcp", "endpoint", "delete", "id", endpoint_of(other, "10.97.0.4"))
        settles(port, 3)
        plain.close()
        plain_accepted.close()
        settles(port, 2)
        client.close()
        accepted.close()
        settles(port, 0)


def endpoint_of(netns: str, address: str) -> str:
    (line,) = [line for line in inside(netns, "ip", "mptcp", "endpoint", "show").splitlines() if address in line]
    words = line.split()
    return words[words.index("id") + 1]


# ---- addresses ---------------------------------------------------------------------------------------------------


def connect_scoped(netns: str, address: str, port: int, link: str, source: tuple[str, int] | None = None):
    sock = new_socket(netns, socket.AF_INET6)
    sock.settimeout(15)
    with entered(netns):
        scope = socket.if_nametoindex(link)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if source:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode())
        sock.bind((*source, 0, scope))
    sock.connect((address, port, 0, scope))
    return sock


def test_link_local_and_dual_stack(port: Port):
    """fe80::%veth, global v6, v4-mapped and v4 on one dual-stack listener, all at once."""
    netns = port.world.netns
    with joined(netns) as other:
        for where, link, last in ((netns, "ms-here", 1), (other, "ms-there", 2)):
            inside(where, "ip", "addr", "add", f"fe80::{last}/64", "dev", link, "nodad")
            inside(where, "ip", "addr", "add", f"fd97::{last}/64", "dev", link, "nodad")
        server = port.listen("::")
        clients = []
        for address in ("fe80::1", "fd97::1", "::ffff:10.97.0.1", "10.97.0.1"):
            if address.startswith("fe80"):
                client = connect_scoped(other, address, port.number, "ms-there")
            else:
                client = connected(other, port.number, address)
            clients.append((port.kept.enter_context(client), port.kept.enter_context(server.accept()[0])))
            settles(port, len(clients))
        for left in (3, 2, 1, 0):
            for end in clients.pop(0):
                end.close()
            settles(port, left)


def test_link_local_seeded(world: World):
    """Open before the watch, found by sock_diag, ended by the hooks: they name a scoped address the same."""
    port = Port(world, watched=False)
    with joined(world.netns) as other, contextlib.closing(port):
        for where, link, last in ((world.netns, "ms-here", 1), (other, "ms-there", 2)):
            inside(where, "ip", "addr", "add", f"fe80::{last}/64", "dev", link, "nodad")
        server = port.listen("::")
        client = port.kept.enter_context(connect_scoped(other, "fe80::1", port.number, "ms-there"))
        accepted = port.kept.enter_context(server.accept()[0])
        port.begin()
        port.settles(1)
        client.close()
        accepted.close()
        port.settles(0)
        assert port.watch.healed == 0


def test_same_link_local_addresses_on_two_links(port: Port):
    """The same two fe80:: addresses and ports on two links are two connections: the watch is doubtful, never too low."""
    netns = port.world.netns
    with joined(netns) as first, joined_again(netns) as second:
        pairs = []
        server = port.listen("::")
        for where, ours, theirs in ((first, "ms-here", "ms-there"), (second, "ms-here2", "ms-there2")):
            inside(netns, "ip", "addr", "add", "fe80::1/64", "dev", ours, "nodad")
            inside(where, "ip", "addr", "add", "fe80::2/64", "dev", theirs, "nodad")
            client = connect_scoped(where, "fe80::1", port.number, theirs, ("fe80::2", 5555))
            pairs.append((port.kept.enter_context(client), port.kept.enter_context(server.accept()[0])))
        assert port.by_proc == 2
        port.world.ledger.reconcile(port.watch)
        assert port.live == 2
        assert port.world.ledger.overflowed(port.watch)
        for end in pairs[0]:
            end.close()
        assert_eventually(lambda: port.by_proc == 1)
        assert port.live >= 1  # 0: quiet by the counters, although a client is being served
        pairs[1][1].close()
        assert_eventually(lambda: port.by_proc == 0)
        port.world.ledger.reconcile(port.watch)
        assert not port.world.ledger.overflowed(port.watch)


@contextlib.contextmanager
def joined_again(netns: str):
    inside(netns, "ip", "link", "set", "ms-here", "down")
    inside(netns, "ip", "link", "set", "ms-here", "name", "ms-first")
    with joined(netns, "10.96.0.1/24", "10.96.0.2/24") as other:
        inside(netns, "ip", "link", "set", "ms-here", "down")
        inside(netns, "ip", "link", "set", "ms-here", "name", "ms-here2")
        inside(netns, "ip", "link", "set", "ms-first", "name", "ms-here")
        inside(other, "ip", "link", "set", "ms-there", "down")
        inside(other, "ip", "link", "set", "ms-there", "name", "ms-there2")
        for where, link in ((netns, "ms-here"), (netns, "ms-here2"), (other, "ms-there2")):
            inside(where, "ip", "link", "set", link, "up")
        try:
            yield other
        finally:
            inside(netns, "ip", "link", "del", "ms-here2")
