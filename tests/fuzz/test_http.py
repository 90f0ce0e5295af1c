"""Hostile HTTP against the real servers: they answer well or close, go on, leak nothing and let nobody in."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memscaler.core.snapshot import KernelSnapshot, Snapshot
from memscaler.daemon.control import ControlServer
from memscaler.daemon.http1 import BODY_BYTES, HEAD_BYTES
from memscaler.daemon.requests import READS, ROUTES, SOCKET
from memscaler.observe.server import MetricsServer
from tests.asked import AnsweringLoop, short_folder
from tests.fuzz.cases import case, fuzzed, json_like, mutated, open_files_and_threads
from tests.governor import eventually
from tests.observe.conftest import _bare, _full

ROOT, READER, NOBODY = (0, 0), (64001, 64000), (65534, 65534)
SETRESUID, SETRESGID = {"x86_64": (117, 119), "aarch64": (147, 149)}[platform.machine()]
GOOD = b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n"
SCRAPE = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
LINE = re.compile(rb"HTTP/[0-9]\.[0-9] ([1-5][0-9][0-9]) [ -~]*\r\n")
libc = ctypes.CDLL(None, use_errno=True)

FIELDS = [
    b"Content-Length: 0\r\n",
    b"Content-Length: 2\r\n",
    b"Content-Length: 18446744073709551617\r\n",
    b"Content-Length: -1\r\n",
    b"Content-Length: 999999999\r\n",
    b"Content-Length: +2\r\n",
    b"content-length:\t3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Expect: 100-continue\r\n",
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
    b"Connection: keep-alive\r\n",
    b"Accept: application/openmetrics-text; version=1.0.0; q=nan\r\n",
    b"Accept-Encoding: gzip, identity;q=0\r\n",
    b"Host: evil.example\r\n",
    b"Host: [::1]:80\r\n",
    b"Host: " + b"a" * 300 + b"\r\n",
    b" folded: yes\r\n",
    b": no name\r\n",
    b"no colon\r\n",
    b"\x00: \x00\r\n",
    b"X: " + b" " * 4000 + b"y\r\n",
    b"X: " + b"a" * HEAD_BYTES + b"\r\n",
]
WORDS = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"\x00",
    b" ",
    b"\t",
    b":",
    b"HTTP/1.1",
    b"HTTP/2.0",
    b"PRI * ",
    b"/../",
    b"%00",
]
WORDS += [
    b"5\r\nhello\r\n",
    b"0\r\n\r\n",
    b"ffffffffffffffff\r\n",
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"/v1/hold",
    b"/metrics",
    *FIELDS,
]
METHODS = [b"GET", b"POST", b"HEAD", b"PUT", b"OPTIONS", b"CONNECT", b"get", b"", b"X" * 40]
PATHS = [
    *(route.encode() for route in ROUTES),
    b"/",
    b"/metrics",
    b"*",
    b"http://localhost/metrics",
    b"/metrics?" + b"a=b&" * 80,
    b"/\xff",
]
BODIES = [
    b"",
    b"{}",
    b"[]",
    b"[" * 50_000,
    b'{"gpus": ["gpu0"], "for_s": 60, "reason": "x"}',
    b'{"for_s": 1e999}',
    b'{"for_s": NaN}',
    b'{"for_s": ' + b"9" * 5000 + b"}",
    b'{"tied": true}',
    b'{"reason": "\\ud800"}',
    b'{"gpus": [], "gpus": []}',
    b"\xff\xfe{}",
    b"{" + b'"a":{' * 9000,
    b" " * (BODY_BYTES - 2) + b"{}",
    b"x" * (BODY_BYTES + 1),
]


@dataclass(frozen=True, slots=True)
class Sending:
    """What one client does. cuts: where what it says is parted; slow: so many ms in between; leaves: without reading."""

    data: bytes
    who: tuple[int, int] = ROOT
    cuts: tuple[int, ...] = ()
    slow: bool = False
    leaves: bool = False

    def parts(self) -> Iterator[bytes]:
        """The data in pieces."""
        ends = sorted({cut % (len(self.data) + 1) for cut in self.cuts})
        for begin, end in zip([0, *ends], [*ends, len(self.data)], strict=True):
            yield self.data[begin:end]


def _request(method: bytes, path: bytes, version: bytes, fields: list[bytes], body: bytes, says: int) -> bytes:
    """says: what its Content-Length is off by; 99: there is none."""
    length = b"" if says == 99 else b"Content-Length: %d\r\n" % max(0, len(body) + says)
    return (
        method + b" " + path + b" " + version + b"\r\nHost: localhost\r\n" + b"".join(fields) + length + b"\r\n" + body
    )


bodies = st.sampled_from(BODIES) | st.builds(
    lambda keys: json.dumps(keys).encode(),
    st.dictionaries(
        st.sampled_from(["gpus", "for_s", "reason", "tied", "id", "x"]), json_like(["gpu0", 60]), max_size=3
    ),
)
requests = st.builds(
    _request,
    st.sampled_from(METHODS),
    st.sampled_from(PATHS),
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/9.9", b""]),
    st.lists(st.sampled_from(FIELDS), max_size=2),
    bodies,
    st.sampled_from([0, 0, 0, 1, -1, 99]),
)
SEEDS = [GOOD, SCRAPE, _request(b"POST", b"/v1/hold", b"HTTP/1.1", [], b'{"gpus": ["gpu0"], "for_s": 5}', 0)]
sendings = st.builds(
    Sending,
    requests | mutated(SEEDS, WORDS) | st.binary(max_size=60),
    st.sampled_from([ROOT, ROOT, READER, NOBODY]),
    st.lists(st.integers(0, 1 << 16), max_size=3).map(tuple),
    st.sampled_from([False] * 19 + [True]),
    st.sampled_from([False] * 9 + [True]),
)


@contextmanager
def being(who: tuple[int, int]) -> Iterator[None]:
    """This thread is somebody else to the kernel; no other thread is."""
    libc.syscall(SETRESGID, -1, who[1], -1)
    libc.syscall(SETRESUID, -1, who[0], -1)
    try:
        yield
    finally:
        libc.syscall(SETRESUID, -1, 0, -1)
        libc.syscall(SETRESGID, -1, 0, -1)


def spoken(client: socket.socket, sending: Sending) -> bytes:
    """Send it, say that this was all, and read the answer to its end."""
    client.settimeout(20)
    with client:
        with suppress(ConnectionError):
            for part in sending.parts():
                client.sendall(part)
                time.sleep(0.002 * sending.slow)
        if sending.leaves:
            return b""
        with suppress(OSError):
            client.shutdown(socket.SHUT_WR)
        return everything(client)


def everything(client: socket.socket) -> bytes:
    answer = b""
    with suppress(ConnectionError):
        while data := client.recv(1 << 16):
            answer += data
    return answer


def check_answers(answer: bytes, *, whole: bool = True) -> list[int]:
    """One well-formed answer after the other; the statuses. whole: none is broken off."""
    assert b"Traceback" not in answer
    assert b'File "' not in answer
    statuses = []
    while answer:
        line = LINE.match(answer)
        assert line is not None, answer[:200]
        head, end, rest = answer[line.end() - 2 :].partition(b"\r\n\r\n")
        assert end or not whole, answer[:200]
        fields = dict(field.lower().split(b":", 1) for field in head.split(b"\r\n") if field)
        assert len(fields) == len([field for field in head.split(b"\r\n") if field]), head
        status = int(line[1])
        statuses.append(status)
        length = int(fields.get(b"content-length", 0 if status < 200 else len(rest)))
        assert len(rest) >= length or not whole, answer[:200]
        answer = rest[length:] if not rest.startswith(b"HTTP/") else rest  # to HEAD there is no body
    return statuses


# ---- the control socket ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def control():
    """A real one that everybody may connect to, and who answers there."""
    with short_folder() as folder:
        loop = AnsweringLoop()
        server = ControlServer(folder / SOCKET, loop.put)
        server._readers = READER[1]
        (folder / SOCKET).chmod(0o666)
        server.start()
        yield folder / SOCKET, loop
        server.stop()
        loop.close()


def connected(path: Path, who: tuple[int, int]) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    with being(who):
        client.connect(str(path))
    return client


@fuzzed(0.07)
@given(sending=sendings)
@example(sending=Sending(GOOD))
@example(sending=Sending(b"", leaves=True))
@example(sending=Sending(_request(b"POST", b"/v1/hold", b"HTTP/1.1", [], b'{"tied": true}', 0)))
@example(sending=Sending(_request(b"POST", b"/v1/release", b"HTTP/1.1", [], b"{}", 0), READER))
@example(sending=Sending(_request(b"GET", b"/v1/status", b"HTTP/1.1", [], b"", 0), NOBODY))
@example(sending=Sending(_request(b"POST", b"/v1/hold", b"HTTP/1.1", [], b"[" * 60_000, 0)))
def hostile_to_control(path: Path, loop: AnsweringLoop, sending: Sending) -> None:
    with case("control"):
        answer = spoken(connected(path, sending.who), sending)
        statuses = check_answers(answer)
        assert len(statuses) <= 1
        assert 500 not in statuses, answer
        if statuses:
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["schema"] == 1
        if sending.who == NOBODY:
            assert set(statuses) <= {400, 403, 411, 431}
        for asked in loop.asked:
            allowed = asked.peer.uid == 0 or (asked.peer.uid == READER[0] and isinstance(asked.request, READS))
            assert allowed, asked
        loop.asked.clear()
        assert check_answers(spoken(connected(path, ROOT), Sending(GOOD))) == [200]


def test_control_socket(control, capfd):
    """Whatever comes: an answer or a close, the next one is served, and who may not ask reaches nobody."""
    if os.geteuid() != 0:
        pytest.fail("needs root")
    path, loop = control
    hostile_to_control.hypothesis.inner_test(path, loop, Sending(GOOD))
    before = open_files_and_threads()
    hostile_to_control(path, loop)
    eventually(lambda: open_files_and_threads() == before, what=f"{before}, not {open_files_and_threads()}")
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    assert "control.failed" not in out + err


# ---- the metrics ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def metrics():
    """A real server with a snapshot that has everything in it."""
    kernel = KernelSnapshot({"tracepoint": True}, {"tracepoint": 3}, 9)
    snapshot = Snapshot(1_000_000_000_000, 1.7e9, "1", "570.86.15", "box", False, (_full(), _bare()), (), kernel)

    def fresh() -> Future[Snapshot]:
        future: Future[Snapshot] = Future()
        future.set_result(snapshot)
        return future

    server = MetricsServer("127.0.0.1", 0, fresh)
    server.start()
    yield server.address
    server.stop()


def reached(address: tuple[str, int]) -> socket.socket:
    """From many addresses: the ports of one would run out."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.bind((f"127.0.{time.monotonic_ns() // 1000 % 200}.{1 + time.monotonic_ns() % 250}", 0))
    client.connect(address)
    return client


@fuzzed(0.06)
@given(sending=sendings)
@example(sending=Sending(SCRAPE))
@example(sending=Sending(SCRAPE * 3, cuts=(10, 70)))
@example(sending=Sending(b"", leaves=True))
@example(sending=Sending(_request(b"GET", b"/metrics", b"HTTP/1.1", [FIELDS[7]], b"5\r\nhello\r\n0\r\n\r\n", 99)))
def hostile_to_metrics(address: tuple[str, int], sending: Sending) -> None:
    with case("metrics"):
        statuses = check_answers(spoken(reached(address), sending), whole=False)
        assert 500 not in statuses
        client = reached(address)
        client.settimeout(20)
        with client:
            client.sendall(SCRAPE)
            answer = everything(client)
        assert check_answers(answer) == [200]
        assert b"\nmemscaler_up 1" in answer


def test_metrics_port(metrics, capfd):
    """Whatever comes: answers or a close, and the next scrape is served."""
    hostile_to_metrics.hypothesis.inner_test(metrics, Sending(SCRAPE))
    before = open_files_and_threads()
    hostile_to_metrics(metrics)
    eventually(lambda: open_files_and_threads() == before, what=f"{before}, not {open_files_and_threads()}")
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
