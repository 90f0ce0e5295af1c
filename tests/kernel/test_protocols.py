"""TCP's relatives: facts/ebpf.md section 11, case 10."""

import socket
from pathlib import Path

import pytest

from tests.kernel.worlds import Port, forge_syns, new_socket, reset, sysctl

MPTCP = 262
TCP_FASTOPEN = 23
MSG_FASTOPEN = 0x20000000


@pytest.mark.skipif(not Path("/proc/sys/net/mptcp/enabled").exists(), reason="no MPTCP in this kernel")
@pytest.mark.parametrize("client_protocol", [MPTCP, 0], ids=["MPTCP client", "TCP client"])
def test_mptcp_counts_once(port: Port, client_protocol):
    """An MPTCP connection is one subflow and one master socket: it counts once."""
    sysctl(port.world.netns, "net.mptcp.enabled", "1")
    server = port.listen(protocol=MPTCP)
    client = port.connect(protocol=client_protocol)
    accepted, _ = server.accept()
    port.settles(1)
    client.send(b"x")
    accepted.recv(1)
    port.world.ledger.reconcile(port.watch)
    port.settles(1)
    client.close()
    accepted.close()
    port.settles(0)


@pytest.fixture
def fast_open(port: Port):
    """A listener that takes data in the SYN, on 0.0.0.0."""
    sysctl(port.world.netns, "net.ipv4.tcp_fastopen", "1543")  # client and server, neither needs a cookie
    server = port.listen("0.0.0.0")
    server.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 16)
    return server


def fast_client(port: Port) -> socket.socket:
    client = port.kept.enter_context(new_socket(port.world.netns))
    client.sendto(b"hello", MSG_FASTOPEN, ("127.0.0.1", port.number))
    return client


def test_fast_open(port: Port, fast_open):
    """Two connections with data in the SYN."""
    for _ in range(2):
        client = fast_client(port)
        accepted, _ = fast_open.accept()
        assert accepted.recv(5) == b"hello"
        port.settles(1)
        accepted.close()
        client.close()
        port.settles(0)


@pytest.mark.parametrize("end", ["server closes", "server resets", "client resets"])
def test_fast_open_that_ends_at_once(port: Port, fast_open, end):
    """Ends that may come before the handshake is over leave nothing behind."""
    for _ in range(5):
        client = fast_client(port)
        if end == "client resets":
            reset(client)
        accepted, _ = fast_open.accept()
        if end == "server resets":
            reset(accepted)
        accepted.close()
        client.close()
    port.settles(0)


def test_fast_open_before_the_handshake_is_over(port: Port, fast_open):
    """Accepted from the SYN alone: known to the sockops hook, kept by reconciling, gone when the server closes."""
    ledger, slot = port.world.ledger, port.watch.slot
    ledger.counters.arm(slot)
    forge_syns(port.world.netns, [(port.number, 4444, b"hello!")])
    fast_open.settimeout(5)
    accepted, _ = fast_open.accept()
    port.settles(int(port.world.loses_nothing), by_proc=0)  # the tracepoint sees nothing before ESTABLISHED
    assert ledger.counters.read(slot).rings == int(port.world.loses_nothing)
    ledger.reconcile(port.watch)
    port.settles(int(port.world.loses_nothing), by_proc=0)
    reset(accepted)
    port.settles(0)


def test_syn_cookies(port: Port):
    """With a cookie for every SYN the connection exists from the last ACK on."""
    sysctl(port.world.netns, "net.ipv4.tcp_syncookies", "2")
    try:
        client, accepted = port.pair(port.listen())
        port.settles(1)
        client.close()
        accepted.close()
        port.settles(0)
    finally:
        sysctl(port.world.netns, "net.ipv4.tcp_syncookies", "1")
