"""HTTP with servers and their keepers: one request on a connection of its own, all of it within a deadline.

A connection to a watched port is announced to the governor before it is made, so that it wakes no GPU, leaves no stage
and counts as no client. What answers is not believed to be anything: sizes are bounded, and every oddity is an OSError.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import ipaddress
import json
import os
import re
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memscaler.kernel.netns import entered
from memscaler.kernel.processes import start_time
from memscaler.kernel.scopes import own_netns
from memscaler.kernel.sock_diag import SockDiag
from memscaler.sleep.drivers.protocol import Announce, Later, Memo, NotAnnounced, Target

LONGEST_PROBE_S = 5.0
POLL_S = 0.2
_MOST_BYTES = 1 << 20
_RESET = struct.pack("ii", 1, 0)
_PORTS_TRIED = 4
_DIES_S = 1.0
_V4_PREFIX = bytes(10) + b"\xff\xff"
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # looked for, not bound


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered."""

    status: int
    text: str = ""

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300  # noqa: PLR2004

    def document(self) -> dict[str, Any]:
        """An object of JSON; {} if it is none."""
        try:
            document = json.loads(self.text)
        except (ValueError, RecursionError):
            return {}
        return document if isinstance(document, dict) else {}


@dataclass(frozen=True, slots=True)
class Door:
    """Where a server listens. key: of its watch. pid, started: who listens, 0 if that is not known.

    netns: inode of its network namespace, which is that of `pid`; 0 is our own.
    """

    key: str
    port: int
    host: str
    pid: int = 0
    started: int = 0
    netns: int = 0

    def memo(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def of(cls, memo: Memo) -> Door:
        """The door that was put into a memo. Raise KeyError or TypeError for what is none."""
        return cls(**{name: memo["door"][name] for name in cls.__slots__})

    @property
    def gone(self) -> bool:
        """Its process has ended; another one of the same pid is another process."""
        return self.pid != 0 and start_time(self.pid) != self.started

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """In its network namespace. Raise OSError if there is none any more."""
        with entered(f"/proc/{self.pid}/ns/net", self.netns) if self.netns else contextlib.nullcontext():
            yield

    def is_going(self) -> bool:
        """It has ended, or is about to: its sockets go before it does."""
        end_s = time.monotonic() + _DIES_S
        while not self.gone:
            if self.pid == 0 or time.monotonic() > end_s:
                return False
            time.sleep(POLL_S / 4)
        return True

    def listens(self) -> bool:
        """Asked of the kernel: nobody connects. Raise OSError."""
        return bool(_listeners(self.pid if self.netns else 0, self.netns, self.port))


def door_of(server: Target) -> Door:
    """Where it listens now. Raise Later if nobody does."""
    pid = min(server.pids, default=0)
    started = start_time(pid) if pid else 0
    if pid and started is None:
        raise Later(f"{server} has just ended")
    try:
        inode = Path(f"/proc/{pid}/ns/net").stat().st_ino if pid else own_netns()
        netns = 0 if inode == own_netns() else inode
        if server.scope and not pid:
            raise Later(f"nobody listens on port {server.key}")
        rows = _listeners(pid if netns else 0, netns, server.port)
    except OSError as error:
        raise Later(f"{server} cannot be looked at: {error.strerror or error}") from error
    if not rows:
        raise Later(f"nobody listens on port {server.key}")
    hosts = sorted(rows, key=lambda host: (host not in _ANY, ":" in host))  # what listens everywhere is best
    return Door(server.key, server.port, _ANY.get(hosts[0], hosts[0]), pid, started or 0, netns)


def _listeners(pid: int, netns: int, port: int) -> list[str]:
    diag = SockDiag(f"/proc/{pid}/ns/net", inode=netns) if netns else SockDiag()
    try:
        return [_text(row.local) for row in diag.listeners(port)]
    finally:
        diag.close()


def _text(address: bytes) -> str:
    if address.startswith(_V4_PREFIX):
        return str(ipaddress.IPv4Address(address[-4:]))
    return str(ipaddress.IPv6Address(address))


class Talk:
    """Asks servers, announced."""

    def __init__(self, announce: Announce) -> None:
        self._announce = announce

    def get(self, door: Door, path: str, until_s: float, *, at_any_rate: bool = False) -> Answer:
        """A short question. Raise OSError (TimeoutError too), NotAnnounced."""
        until_s = min(until_s, time.monotonic() + LONGEST_PROBE_S)
        return self.ask(door, "GET", path, until_s, at_any_rate=at_any_rate)

    def ask(
        self,
        door: Door,
        method: str,
        path: str,
        until_s: float,
        body: Mapping[str, object] | None = None,
        *,
        at_any_rate: bool = False,
    ) -> Answer:
        """at_any_rate: also if it cannot be announced; then it counts as a client. Raise OSError, NotAnnounced."""
        for attempt in range(_PORTS_TRIED):
            try:
                return self._once(door, method, path, until_s, body)
            except NotAnnounced:
                if attempt + 1 == _PORTS_TRIED and not at_any_rate:
                    raise
        return self._once(door, method, path, until_s, body, announced=False)

    def _once(
        self,
        door: Door,
        method: str,
        path: str,
        until_s: float,
        body: Mapping[str, object] | None,
        *,
        announced: bool = True,
    ) -> Answer:
        with contextlib.ExitStack() as stack:
            with door.inside():
                sock = socket.socket(socket.AF_INET6 if ":" in door.host else socket.AF_INET)
            stack.callback(sock.close)
            sock.bind((door.host, 0))
            if announced:
                local = (door.host, int(sock.getsockname()[1]))
                stack.enter_context(self._announce(door.key, local, (door.host, door.port)))
            # Should the server not answer: reset, or its end would stay, and look like a client's.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.settimeout(_left_s(until_s))
            sock.connect((door.host, door.port))
            return _exchange(sock, _host(door), method, path, until_s, body)


def ask_unix(path: Path, method: str, route: str, until_s: float, body: Mapping[str, object] | None = None) -> Answer:
    """A question through a Unix socket. Raise OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_left_s(until_s))
        sock.connect(os.fspath(path))
        return _exchange(sock, "localhost", method, route, until_s, body)


def _host(door: Door) -> str:
    return f"[{door.host}]:{door.port}" if ":" in door.host else f"{door.host}:{door.port}"


def _left_s(until_s: float) -> float:
    left_s = until_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("no time is left")
    return left_s


def _exchange(
    sock: socket.socket,
    host: str,
    method: str,
    path: str,
    until_s: float,
    body: Mapping[str, object] | None,
) -> Answer:
    """HTTP/1.0: the answer ends where it says, else with the connection."""
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.0\r\nHost: {host}\r\nUser-Agent: memscaler\r\nAccept: */*\r\n"
    if method != "GET":
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    sock.sendall(head.encode() + b"\r\n" + data)
    received = _read(sock, until_s)
    if not received:
        raise ConnectionError("it closes the connection without an answer")
    try:
        answer = http.client.HTTPResponse(_Received(received))  # type: ignore[arg-type]  # no socket
        answer.begin()
        return Answer(answer.status, answer.read().decode(errors="replace"))
    except http.client.HTTPException as error:
        raise ConnectionError("what answers does not speak HTTP") from error


def _read(sock: socket.socket, until_s: float) -> bytes:
    """Raise TimeoutError when the time is over, also for one that drips."""
    received = bytearray()
    while len(received) < _MOST_BYTES and not _is_whole(received):
        sock.settimeout(_left_s(until_s))
        data = sock.recv(65536)
        if not data:
            break
        received += data
    return bytes(received)


def _is_whole(received: bytearray) -> bool:
    """Whether all is there of an answer that says how long it is: who sent it may leave the connection open."""
    head, end, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"(?mi)^content-length:[ \t]*(\d{1,18})[ \t]*\r?$", head) if end else None
    return length is not None and len(body) >= int(length[1])


class _Received:
    """What http.client wants of a socket: a file to read from."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def why(error: BaseException) -> str:
    """What went wrong with a question, in words for the middle of a sentence."""
    if isinstance(error, NotAnnounced):
        return "the governor could not announce our connection"
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
