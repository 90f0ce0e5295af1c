"""A gateway whose server comes and goes under clients of all kinds: nobody gets a wrong byte, and nothing leaks.

MEMSCALER_SOAK_S: seconds, as in test_soak.py. MEMSCALER_SOAK_SEED: the seed that a failed run has printed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import socket
import struct
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.gateway.gateways import Server, free_port, read_head, running
from tests.governor import eventually

SECONDS = float(os.environ.get("MEMSCALER_SOAK_S", "30")) / 2
RESET = struct.pack("ii", 1, 0)


def body_of(path):
    """What the server says to it: of another size for each."""
    digest = hashlib.sha256(path).digest()
    return digest * (1 + digest[0] * digest[1] // 8)


def serve(connection):
    while head := read_head(connection):
        path = head.split(b" ", 2)[1]
        body = b"{}" if path == b"/health" else body_of(path)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        if b"HTTP/1.0" in head:
            return


class Clients:
    """Threads that ask, wait, go, and say nothing."""

    def __init__(self, gateway, seed):
        self.gateway, self.seen = gateway, Counter()
        self.wrong = []
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(random.Random(f"{seed}-{nth}"),)) for nth in range(8)]
        for thread in self._threads:
            thread.start()

    def _run(self, rng):
        while not self._end.is_set():
            with contextlib.suppress(ConnectionError, TimeoutError), self.gateway.connect(20) as client:
                self._one(rng, client)

    def _one(self, rng, client):
        match rng.randrange(10):
            case 0:
                time.sleep(rng.random() / 10)
                self.seen["silent"] += 1
            case 1:
                client.sendall(b"GET /gone HTTP/1.1\r\n\r\n")
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                self.seen["gone"] += 1
            case 2:
                client.sendall(b"GET /health HTTP/1.1\r\n\r\n")
                assert read_head(client)[9:12] in (b"200", b"503", b"")
                self.seen["poller"] += 1
            case _:
                for _ in range(rng.randint(1, 5)):
                    self._ask(b"/%d" % rng.randrange(10**6), client)

    def _ask(self, path, client):
        client.sendall(b"GET " + path + b" HTTP/1.1\r\n\r\n")
        head = read_head(client)
        self.seen[head[9:12].decode() or "closed"] += 1
        if not head.startswith(b"HTTP/1.1 200 "):
            raise ConnectionError
        wanted, got = body_of(path), b""
        while len(got) < len(wanted):
            part = client.recv(len(wanted) - len(got))
            if not part:
                raise ConnectionError
            got += part
        if got != wanted:
            self.wrong.append(path)

    def end(self):
        self._end.set()
        for thread in self._threads:
            thread.join(60)


@pytest.mark.timeout(SECONDS * 2 + 240)
def test_gateway(tmp_path):
    """Starts, stops and reloads, one seed."""
    seed = os.environ.get("MEMSCALER_SOAK_SEED") or str(random.SystemRandom().randrange(10**6))
    print(f"MEMSCALER_SOAK_SEED={seed}")
    rng, port = random.Random(seed), free_port()
    told = ["--listen", "127.0.0.1:0", "--to", f"127.0.0.1:{port}", "--no-wake-path", "/health", "--wait", "10s"]
    with running(tmp_path, *told, "--metrics", "127.0.0.1:0") as gateway:
        clients = Clients(gateway, seed)
        end_s = time.monotonic() + SECONDS
        stops = 0
        while time.monotonic() < end_s:
            with Server(serve, port):
                time.sleep(rng.uniform(0.2, 3))
                if rng.random() < 0.3:
                    gateway.process.send_signal(signal.SIGHUP)
            stops += 1
            time.sleep(rng.uniform(0, 2))
        with Server(serve, port):
            time.sleep(1)
            clients.end()
            eventually(lambda: gateway.metric("connections") == 0, within_s=60)
        print(f"{stops} stops, {gateway.rss_kb()} kB, {dict(clients.seen)}")
        assert not clients.wrong
        assert clients.seen["200"] > 50
        assert gateway.metric("waiting_clients") == 0
        assert len(list(Path(f"/proc/{gateway.process.pid}/fd").iterdir())) < 20
        assert gateway.rss_kb() < 80_000
