"""Answers of sock_diag that no kernel gives: rows or OSError, in bounded time and memory; and who may answer at all."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memscaler.kernel.netns import Namespace
from memscaler.kernel.sock_diag import Row, SockDiag
from tests.fuzz.cases import case, fuzzed, mutated

HEADER = struct.Struct("=IHHII")
DIAG, ERROR, DONE, MULTI = 20, 2, 3, 2
SEQUENCES = (1, 1, 1, 1, 2, 0)


def message(kind: int, body: bytes, *, flags: int = MULTI, sequence: int = 1, length: int | None = None) -> bytes:
    size = HEADER.size + len(body)
    return HEADER.pack(size if length is None else length, kind, flags, sequence, 0) + body + bytes(-size % 4)


def row(port: int = 8080, attributes: bytes = b"") -> bytes:
    """Struct inet_diag_msg of a connection over IPv4."""
    ends = struct.pack(">HH", port, 40000) + b"\x7f\0\0\1" + bytes(12) + b"\x7f\0\0\1" + bytes(12)
    return (
        struct.pack("=BBBB", 2, 1, 0, 0)
        + ends
        + struct.pack("=III", 0, 7, 0)
        + struct.pack("=IIIII", 0, 0, 0, 0, 99)
        + attributes
    )


INFO = struct.pack("=HH", 4 + 232, 2) + bytes(232)
END = message(DONE, bytes(4))
SEEDS = [
    message(DIAG, row()) + END,
    message(DIAG, row(attributes=INFO)) + message(DIAG, row(attributes=INFO)) + END,
    message(ERROR, struct.pack("=i", -2) + bytes(16)),
    message(DIAG, row(), flags=MULTI | 0x10) + END,
    END,
    b"",
]
WORDS = [
    bytes(4),
    b"\xff" * 4,
    b"\x10\0\0\0",
    b"\x0f\0\0\0",
    struct.pack("=HH", 0, 2),
    struct.pack("=HH", 0xFFFF, 2),
    HEADER.pack(0, DIAG, 2, 1, 0),
]


class Answers:
    """In the place of the netlink socket: what it says for each receive, then nothing in time."""

    def __init__(self, datagrams: Sequence[bytes]) -> None:
        self.datagrams = list(datagrams)
        self.blocking = True

    def settimeout(self, seconds: float) -> None:
        self.blocking = seconds > 0

    def send(self, _: bytes) -> None:
        """The question does not matter."""

    def recv(self, size: int) -> bytes:
        if self.datagrams:
            return self.datagrams.pop(0)[:size]
        raise TimeoutError if self.blocking else BlockingIOError


def asking(datagrams: Sequence[bytes]) -> SockDiag:
    diag = SockDiag.__new__(SockDiag)
    diag._socket = Answers(datagrams)  # type: ignore[assignment]
    diag.namespace = Namespace(0)
    diag._sequence = 0
    diag._unfinished = False
    return diag


@fuzzed(0.10)
@given(
    datagrams=st.lists(
        mutated(SEEDS, WORDS)
        | st.builds(
            lambda data, nth: data + message(DIAG, row(), sequence=nth),
            st.binary(max_size=40),
            st.sampled_from(SEQUENCES),
        ),
        max_size=4,
    ),
    question=st.sampled_from(["connections", "said", "listeners", "again"]),
)
@example(datagrams=[HEADER.pack(0, DIAG, MULTI, 1, 0) + row()], question="connections")
@example(datagrams=[HEADER.pack(0, DIAG, MULTI, 77, 0)], question="connections")
@example(datagrams=[HEADER.pack(5, DIAG, MULTI, 1, 0)], question="connections")
@example(datagrams=[b"\x10\0\0\0"], question="connections")
@example(datagrams=[message(DIAG, b"")], question="connections")
@example(datagrams=[message(ERROR, b"")], question="listeners")
@example(datagrams=[message(ERROR, bytes(4))], question="listeners")
@example(datagrams=[message(ERROR, struct.pack("=i", -(2**31)))], question="listeners")
@example(datagrams=[message(DIAG, row(attributes=struct.pack("=HH", 500, 2)))], question="said")
@example(datagrams=[message(DIAG, row(), length=1 << 31)], question="said")
@example(datagrams=[END] * 2, question="connections")
def test_answers(datagrams, question):
    """Rows that were in there, or OSError."""
    sent = sum(map(len, datagrams))
    with case("sock_diag"):
        diag = asking(datagrams)
        for _ in range(3):  # what is left over from one question does not upset the next
            try:
                match question:
                    case "connections":
                        rows = diag.connections(8080)
                    case "said":
                        rows = diag.connections(8080, said=True)
                    case "listeners":
                        rows = diag.listeners()
                    case _:
                        again = diag.again(Row(1, 8080, 1, b"\0" * 10 + b"\xff\xff\x7f\0\0\1", bytes(16), 0, 1, 0, 0))
                        rows = [] if again is None else [again]
            except OSError:
                continue
            assert len(rows) <= sent // HEADER.size
            assert all(isinstance(each, Row) and len(each.local) == len(each.peer) == 16 for each in rows)


def test_only_the_kernel_answers():
    """Whoever rules a container's network may send to any netlink socket there: not to ours."""
    if os.geteuid() != 0:
        pytest.fail("needs root")
    diag = SockDiag()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as rival:
        diag.listeners()
        with pytest.raises(ConnectionRefusedError):
            rival.sendto(message(DIAG, row(), sequence=2), (diag._socket.getsockname()[0], 0))
    assert all(each.local_port != 8080 or each.inode != 99 for each in diag.listeners())
    diag.close()
