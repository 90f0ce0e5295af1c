"""Asks the servers of a GPU, before it is parked, whether they still work on a request.

A generation can outlive its connection (llama.cpp drains a stream whose client has gone), and a request that has just
been answered looks, to the kernel, like one whose answer has just begun. The server knows. Only servers that are known
to tell are asked, over connections that are announced to the hooks, so that our own question is nobody's work.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import re
import socket
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from memscaler.kernel.netns import entered
from memscaler.kernel.own_probes import OwnProbes
from memscaler.kernel.records import IDENTITY, address

TIMEOUT_S = 0.5
LEARN_S = 0.2
MOST_QUESTIONS = 5
AWAKE_S = 10.0
_RESET = struct.pack("ii", 1, 0)
_MOST_BYTES = 256 * 1024  # parsing more would hold the interpreter for milliseconds, perhaps those of a wake
# llama.cpp tools/server/README.md, vLLM docs/usage/metrics.md, SGLang docs/references/production_metrics.md
_GAUGES = re.compile(
    r"^(?:llamacpp:requests_(?:processing|deferred)|vllm:num_requests_(?:running|waiting)"
    r"|sglang:num_(?:running|queue)_reqs)(?:\{[^}\n]*\})?[ \t]+(\S+)",
    re.MULTILINE,
)
_SLEEPS = re.compile(r'"is_sleeping"\s*:\s*true')
TELLING = frozenset({"llama.cpp", "vllm", "sglang"})


@dataclass(frozen=True, slots=True)
class Server:
    """One that can be asked. netns_path: None for our own namespace; cookie as in the set of connections."""

    slot: int
    port: int
    kind: str
    address: str
    netns_path: str | None
    netns_inode: int
    cookie: int

    def __str__(self) -> str:
        return f"{self.kind} on port {self.port}"


@dataclass(frozen=True, slots=True)
class ServerSpoke:
    """Whether the server behind this watch tells if it works."""

    slot: int
    tells: bool


class ServerWord:
    """Asked by the actuators' threads; each asks about its own GPU."""

    def __init__(
        self, own: OwnProbes, servers_of: Callable[[str], Iterable[Server]], report: Callable[[object], None]
    ) -> None:
        self._own = own
        self._servers_of = servers_of
        self._report = report
        self._telling: frozenset[Server] = frozenset()
        self._asked: dict[Server, int] = {}
        self._awake_until_s: dict[Server, float] = {}

    def learn(self, gpus: Iterable[str]) -> None:
        """Find out which servers tell, of those that have not told yet: before anything depends on it.

        Takes LEARN_S and one answer; who was asked least is asked first, and nobody for ever: it is in their logs.
        """
        servers = {server for gpu in gpus for server in self._servers_of(gpu)}
        self._asked = {server: self._asked.get(server, 0) for server in servers}
        wanted = [server for server in servers - self._telling if self._asked[server] < MOST_QUESTIONS]
        end_s = time.monotonic() + LEARN_S
        for server in sorted(wanted, key=lambda each: self._asked[each]):
            if time.monotonic() > end_s:
                return
            self._asked[server] += 1
            with contextlib.suppress(Exception):  # whatever it answers
                self._heard(server, self._ask(server))

    def working(self, gpu: str) -> str:
        """Who says that it works, in words; "" if nobody does. Takes up to TIMEOUT_S for each server."""
        for server in self._servers_of(gpu):
            try:
                word = self._ask(server)
            except TimeoutError:
                return f"{server} does not answer whether it works"
            except Exception:  # noqa: BLE001  # it is gone, or speaks something else: nothing to learn
                word = None
            self._heard(server, word)
            if word:
                return f"{server} works on {word} request{'s' if word > 1 else ''}"
        return ""

    def _heard(self, server: Server, word: int | None) -> None:
        self._telling = self._telling - {server} if word is None else self._telling | {server}
        # SGLang counts anew only every 40 tokens: what it says is heard, but its silence proves nothing.
        self._report(ServerSpoke(server.slot, word is not None and server.kind != "sglang"))

    def _ask(self, server: Server) -> int | None:
        """Requests under way or waiting; None if it does not tell."""
        end_s = time.monotonic() + TIMEOUT_S
        # A llama.cpp server that sleeps (--sleep-idle-seconds) wakes for /metrics and /slots, but not for /props.
        # It does not fall asleep within seconds, and each question keeps its GPU awake for milliseconds.
        if server.kind == "llama.cpp" and time.monotonic() > self._awake_until_s.get(server, 0.0):
            if _SLEEPS.search(self._get(server, "/props", end_s)):
                return 0
            self._awake_until_s[server] = time.monotonic() + AWAKE_S
        text = self._get(server, "/metrics", end_s)
        gauges = _GAUGES.findall(text)
        if gauges:
            with contextlib.suppress(ValueError, OverflowError):
                return round(sum(map(float, gauges)))
        if server.kind != "llama.cpp":
            return None
        # /metrics is off; /slots is on by default
        with contextlib.suppress(ValueError, TypeError, AttributeError, LookupError, RecursionError):
            slots = json.loads(self._get(server, "/slots", end_s))
            return sum(bool(slot["is_processing"]) for slot in slots) if slots else None
        return None

    def _get(self, server: Server, path: str, end_s: float) -> str:
        """What it answers; "" if that is an error."""
        target = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(server.address, server.address)  # noqa: S104
        with contextlib.ExitStack() as stack:
            if server.netns_path is not None:
                with entered(server.netns_path, server.netns_inode):
                    sock = _socket(target)
            else:
                sock = _socket(target)
            stack.callback(sock.close)
            sock.bind((target, 0))
            mine = sock.getsockname()[1]
            packed = address(target)
            stack.enter_context(self._own.announced(IDENTITY.pack(server.cookie, server.port, mine, 0, packed, packed)))
            # Should the server not answer: reset, or its end would stay, and look like a client's.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.settimeout(max(0.01, end_s - time.monotonic()))
            sock.connect((target, server.port))
            # HTTP/1.0: the end of the connection is the end of the answer
            sock.sendall(f"GET {path} HTTP/1.0\r\nHost: {target}\r\nUser-Agent: memscaler\r\n\r\n".encode())
            answer = http.client.HTTPResponse(_Received(_read(sock, end_s)))  # type: ignore[arg-type]  # no socket
            answer.begin()
            body = answer.read()
            return body.decode(errors="replace") if answer.status == http.client.OK else ""


def _read(sock: socket.socket, end_s: float) -> bytes:
    """Everything until the other side closes. Raise TimeoutError when the time is over, also for one that drips."""
    received = bytearray()
    while len(received) < _MOST_BYTES:
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        sock.settimeout(left_s)
        data = sock.recv(65536)
        if not data:
            return bytes(received)
        received += data
    return bytes(received)


class _Received:
    """What http.client wants of a socket: a file to read from."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def _socket(target: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET)
