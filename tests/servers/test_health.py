"""Looks at a server's health."""

import asyncio
import http.server
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from memscaler.config.servers import Server
from memscaler.servers import health
from memscaler.servers.decide import Verdict
from memscaler.servers.health import Door
from memscaler.servers.loading import Loading
from tests.asked import short_folder


def look_at(answer, path="/health", slowly=0.0):
    """What is said of a server that answers so; and what it was asked."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            connection, _ = listener.accept()
            with connection:
                if path:
                    asked.append(connection.recv(4096))
                try:
                    for at in range(0, len(answer), 1 if slowly else max(len(answer), 1)):
                        connection.sendall(answer[at : at + 1] if slowly else answer)
                        time.sleep(slowly)
                except OSError:
                    pass  # it does not listen any more

        thread = threading.Thread(target=serve)
        thread.start()
        said = asyncio.run(health.look(Door("127.0.0.1", listener.getsockname()[1], path)))
        thread.join()
    return said, b"".join(asked)


LOADING = b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}'


@pytest.mark.parametrize(
    ("answer", "verdict", "text"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n{}", Verdict.READY, ""),
        (b"HTTP/1.0 204 No Content\r\n\r\n", Verdict.READY, ""),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n" + LOADING, Verdict.LOADING, "loading model"),
        (
            b"HTTP/1.1 503 x\r\n\r\n" + b'{"error":{"message":"a\\nb\\u001b' + b"x" * 500 + b'"}}',
            Verdict.LOADING,
            "a b",
        ),
        (b"HTTP/1.1 503 x\r\n\r\n[]", Verdict.LOADING, "loading (503)"),
        (b"HTTP/1.1 503 x\r\n\r\n\xff", Verdict.LOADING, "loading (503)"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", Verdict.SILENT, "status 404"),
        (b"HTTP/1.1 301 Moved\r\nLocation: http://elsewhere/\r\n\r\n", Verdict.SILENT, "status 301"),
        (b"SSH-2.0-OpenSSH\r\n", Verdict.SILENT, "does not speak HTTP"),
        (b"HTTP/1.1\r\n\r\n", Verdict.SILENT, "does not speak HTTP"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", Verdict.SILENT, "does not speak HTTP"),
        (b"\0" * 1_000_000, Verdict.SILENT, "does not speak HTTP"),
        (b"", Verdict.SILENT, "does not speak HTTP"),
    ],
)
def test_what_is_made_of_an_answer(answer, verdict, text):
    """2xx is ready, 503 loads, anything else is told and not believed; never an exception."""
    said, asked = look_at(answer)
    assert said.verdict is verdict
    assert text in said.text
    assert len(said.text) < 120
    assert said.text.isprintable()
    assert asked.startswith(b"GET /health HTTP/1.1\r\n")


def test_the_deadline_is_for_the_whole_answer(monkeypatch):
    """One byte at a time does not prolong it."""
    monkeypatch.setattr(health, "DEADLINE_S", 0.5)
    begun = time.monotonic()
    said, _ = look_at(b"HTTP/1.1 200 OK", slowly=0.1)
    assert said.verdict is Verdict.SILENT
    assert "within 0.5 s" in said.text
    assert time.monotonic() - begun < 10


def test_without_a_path_whoever_listens_is_ready():
    """Nothing is asked."""
    said, asked = look_at(b"", path="")
    assert said.verdict is Verdict.READY
    assert asked == b""


@pytest.mark.parametrize(
    ("words", "variables", "host"),
    [
        (("--host", "0.0.0.0"), (), "127.0.0.1"),
        (("--host=::",), (), "::1"),
        (("--host", "192.0.2.7"), (), "192.0.2.7"),
        (("--host", "/run/a.sock"), (), "127.0.0.1"),
        (("--host", "127.0.0.2,::1"), (), "127.0.0.2"),
        ((), (("LLAMA_ARG_HOST", "192.0.2.8"),), "192.0.2.8"),
        ((), (), "127.0.0.1"),
    ],
)
def test_where_it_is_asked(words, variables, host):
    """Where the description makes it listen."""
    server = Server(name="a", command=("llama-server", *words), port=1, environment=variables)
    assert health.door_of(server) == Door(host, 1, "/health")


def test_how_far_loading_is():
    """By what the process has read of its model, split files counted together; nothing is said without a model."""
    import os

    with short_folder() as folder:
        for name in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf"):
            with (folder / name).open("wb") as file:
                file.truncate(1_500_000_000)
        loading = Loading(os.getpid(), folder / "m-00001-of-00002.gguf")
        with (folder / "m-00001-of-00002.gguf").open("rb") as file:
            while file.read(1 << 24):
                pass
        told = loading.told("loading model")
        assert told.startswith("loading model, ")
        assert told.endswith(" % of 3.0 GB read")
        assert 50 <= int(told.split()[2]) <= 99
        assert Loading(os.getpid(), Path("/no/such")).told("loading") == "loading"
        assert Loading(os.getpid(), folder).told("loading") == "loading"


def test_nobody_is_taken_for_a_server_that_is_ready():
    """Nobody listens, and the kernel gives the question the port that it asks: TCP connects it to itself."""
    code = """
import asyncio, ctypes, os, subprocess
assert ctypes.CDLL(None).unshare(0x40000000) == 0  # a network of its own
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
open("/proc/sys/net/ipv4/ip_local_port_range", "w").write("40000 40001")
from memscaler.servers.health import Door, look
answers = [asyncio.run(look(Door("127.0.0.1", port, ""))) for port in (40000, 40001) for _ in range(4)]
print({(each.verdict.value, each.text) for each in answers})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "'ready'" not in done.stdout
    assert "nobody listens on port 40000 yet" in done.stdout


def test_a_server_with_a_certificate(tmp_path):
    """It is asked in TLS; nobody need have signed it. Its command line says so, or its variables."""
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=example"]
    subprocess.run([*words, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Healthy) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        command = ("llama-server", "--ssl-key-file", str(key), "--ssl-cert-file", str(certificate))
        door = health.door_of(Server(name="a", command=command, port=port))
        assert door == Door("127.0.0.1", port, encrypted=True)
        assert asyncio.run(health.look(door)).verdict is Verdict.READY
        said = asyncio.run(health.look(Door("127.0.0.1", port)))
        assert said.verdict is Verdict.SILENT
        server.shutdown()
    variables = (("LLAMA_ARG_SSL_KEY_FILE", "k"), ("LLAMA_ARG_SSL_CERT_FILE", "c"))
    assert health.door_of(Server(name="a", command=("x",), environment=variables, port=1)).encrypted
    assert not health.door_of(Server(name="a", command=("x", "--ssl-key-file", "k"), port=1)).encrypted


def test_a_certificate_that_is_not_spoken():
    """A server that was to speak TLS and does not: it is not ready."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        said = asyncio.run(health.look(Door("127.0.0.1", server.server_address[1], encrypted=True)))
        assert said.verdict is Verdict.SILENT
        server.shutdown()


class Healthy(http.server.BaseHTTPRequestHandler):
    """200."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass
