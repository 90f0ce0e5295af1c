"""Connections that end without anybody closing them: facts/ebpf.md section 11, case 8."""

import socket

import pytest

from tests.kernel.worlds import Port, assert_eventually, connected, inside


@pytest.mark.parametrize("end", ["sport", "dport"])
def test_killed_by_ss(port: Port, end):
    """`ss -K` on either end."""
    port.pair(port.listen())
    port.settles(1)
    name = port.world.netns.rsplit("/", 1)[1]
    inside(name, "ss", "-K", "-tn", "state", "established", f"{end} = :{port.number}")
    port.settles(0)


@pytest.fixture
def unplugged(port: Port):
    """(the server's end of a connection, what to call so that its packets are lost from then on)."""
    _, accepted = port.pair(port.listen())
    port.settles(1)
    name = port.world.netns.rsplit("/", 1)[1]
    yield accepted, lambda: inside(name, "ip", "link", "set", "lo", "down")
    inside(name, "ip", "link", "set", "lo", "up")


def test_user_timeout(port: Port, unplugged):
    """Unacknowledged data and TCP_USER_TIMEOUT end it."""
    accepted, unplug = unplugged
    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 300)
    unplug()
    accepted.send(b"x")
    port.settles(0)


def test_keepalive_expires(port: Port, unplugged):
    """So does keep-alive without an answer."""
    accepted, unplug = unplugged
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 1)):
        accepted.setsockopt(socket.IPPROTO_TCP, option, value)
    unplug()
    port.settles(0)


def test_lingering_states(port: Port):
    """FIN_WAIT2 with a client that holds on, and TIME_WAIT, are not live."""
    server = port.listen()
    holding, accepted = port.pair(server)
    accepted.close()
    port.settles(0)
    name = port.world.netns.rsplit("/", 1)[1]

    def states() -> str:
        return inside(name, "ss", "-H", "-tan", f"sport = :{port.number}")

    assert_eventually(lambda: "FIN-WAIT-2" in states(), states)
    holding.close()
    assert_eventually(lambda: "TIME-WAIT" in states(), states)
    port.world.ledger.reconcile(port.watch)
    port.settles(0)


def test_idle_connection_stays(port: Port):
    """Silence is no end: an open connection without traffic is live, and reconciling leaves it."""
    with connected_pair(port):
        for _ in range(3):
            port.world.ledger.reconcile(port.watch)
            port.settles(1)


def connected_pair(port: Port):
    server = port.listen()
    port.kept.enter_context(connected(port.world.netns, port.number))
    return server.accept()[0]
