"""The ledger's source against /proc, and when a dump goes wrong."""

import contextlib
import errno
import socket
import struct
from pathlib import Path

import pytest

from memscaler.kernel import sock_diag
from memscaler.kernel.netns import entered
from memscaler.kernel.sock_diag import LIVE, SockDiag
from tests.kernel.worlds import connected, listener, live_by_proc, open_descriptors

HEADER = struct.Struct("=IHHII")


@pytest.fixture
def many(netns):
    """600 connections to 127.0.0.1:7000 and 30 to [::1]:7000."""
    with contextlib.ExitStack() as kept:
        for address, count in (("127.0.0.1", 600), ("::1", 30)):
            server = kept.enter_context(listener(netns, 7000, address, backlog=1000))
            for _ in range(count):
                kept.enter_context(connected(netns, 7000, address))
                kept.enter_context(server.accept()[0])
        yield


@pytest.mark.usefixtures("many")
def test_rows_are_those_of_proc(netns, diag):
    """The same sockets, with the same ports and addresses, in one dump of several messages."""
    rows = [row for row in diag.connections(7000) if row.state in LIVE]
    assert len(rows) == live_by_proc(netns)[7000] == 630
    with entered(netns), Path("/proc/thread-self/net/tcp").open() as file:
        listed = {line.split()[2] for line in file if line.split()[1].endswith(":1B58")}
    named = {
        f"{struct.unpack('=I', row.peer[12:])[0]:08X}:{row.peer_port:04X}"
        for row in rows
        if row.peer[10:12] == b"\xff\xff"
    }
    assert named == {name for name in listed if not name.endswith(":0000")}
    assert sum(row.peer == bytes(15) + b"\1" for row in rows) == 30
    assert all(row.inode for row in rows)


@pytest.mark.usefixtures("many")
def test_listeners(diag):
    """One row per listening socket."""
    assert sorted(row.local[-1] for row in diag.listeners(7000)) == [1, 1]
    assert diag.listeners(7001) == []


@pytest.mark.usefixtures("many")
def test_dump_after_one_that_was_cut_short(diag):
    """An exception in the middle of a dump (a signal, a timeout) does not spoil the next one."""
    whole = len(diag.connections(7000))
    real = diag._socket

    class Cut:
        """Passes the request on, and fails at the second read."""

        reads = 0

        def send(self, data):
            return real.send(data)

        def recv(self, size, flags=0):
            self.reads += 1
            if self.reads == 2:
                raise TimeoutError
            return real.recv(size, flags)

    diag._socket = Cut()
    with pytest.raises(TimeoutError):
        diag.connections(7000)
    diag._socket = real
    assert len(diag.connections(7000)) == whole


class Scripted:
    """A kernel that answers each request with the next of its dumps: lists of (kind, flags, payload)."""

    def __init__(self, *dumps):
        self.dumps = list(dumps)
        self.sequence = 0

    def send(self, data):
        self.sequence = HEADER.unpack_from(data)[3]

    def recv(self, _size, _flags=0):
        messages = self.dumps.pop(0)
        return b"".join(
            HEADER.pack(HEADER.size + len(payload), kind, flags, self.sequence, 0) + payload
            for kind, flags, payload in messages
        )

    def close(self):
        pass


def row(port):
    return struct.pack("=BBBB", socket.AF_INET, 1, 0, 0) + struct.pack(">HH", 7000, port) + bytes(64)


DONE = (3, 0, bytes(4))


def scripted(*dumps):
    diag = SockDiag()
    diag.close()
    diag._socket = Scripted(*dumps)
    return diag


def test_interrupted_dump_is_repeated():
    """A dump during which the kernel's table changed is thrown away (NLM_F_DUMP_INTR)."""
    interrupted = [(20, 0x10, row(1)), DONE]
    diag = scripted(interrupted, [(20, 0, row(2)), DONE], [DONE])
    assert [each.peer_port for each in diag.connections(7000)] == [2]


def test_dump_that_is_always_interrupted():
    """After some attempts the last one is taken: the caller compares two dumps anyway."""
    diag = scripted(*[[(20, 0x10, row(1)), DONE]] * 5, [DONE])
    assert len(diag.connections(7000)) == 1


def test_error_of_the_kernel():
    """An error message becomes an OSError of that number."""
    diag = scripted([(2, 0, struct.pack("=i", -errno.EPERM) + bytes(16))])
    with pytest.raises(PermissionError):
        diag.connections(7000)


def test_closing_gives_the_descriptor_back(netns):
    """No descriptor stays behind, nor does this thread stay in the other namespace."""
    home = Path("/proc/thread-self/ns/net").readlink()
    before = open_descriptors()
    SockDiag(netns).close()
    assert open_descriptors() == before
    assert Path("/proc/thread-self/ns/net").readlink() == home


def test_namespace_that_is_not_there():
    """A wrong path is an OSError, and the thread stays where it was."""
    home = Path("/proc/thread-self/ns/net").readlink()
    with pytest.raises(FileNotFoundError):
        SockDiag("/run/netns/ms-no-such-namespace")
    with pytest.raises(OSError, match="setns"):
        SockDiag("/dev/null")
    assert Path("/proc/thread-self/ns/net").readlink() == home


def test_timeout_is_bounded():
    """A kernel that does not answer is an error within seconds."""
    assert sock_diag._REPLY_TIMEOUT_S <= 2
