"""What passes through a gateway: every byte, in both directions, as far as each side wants it, and every end."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import random
import resource
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from tests.gateway.gateways import Server, Web, everything, free_port, get, read_head, running
from tests.governor import eventually

RESET = struct.pack("ii", 1, 0)
MB = 1 << 20


@contextlib.contextmanager
def before(serve, folder, *arguments):
    """A gateway before a server."""
    with Server(serve) as server:
        told = ["--listen", "127.0.0.1:0", "--to", f"127.0.0.1:{server.port}", "--ready", "off"]
        with running(folder, *told, *arguments) as gateway:
            yield gateway, server


def test_every_byte_both_ways_at_once(tmp_path):
    """8 MB in pieces of all sizes, sent back as they come."""

    def echo(connection):
        while data := connection.recv(70_000):
            connection.sendall(data)

    with before(echo, tmp_path) as (gateway, _):
        sent, told = hashlib.sha256(), hashlib.sha256()
        with gateway.connect() as client:

            def send():
                source = random.Random(7)
                for _ in range(200):
                    data = source.randbytes(source.choice((1, 7, 1448, 16_384, 100_000)))
                    sent.update(data)
                    client.sendall(data)
                client.shutdown(socket.SHUT_WR)

            thread = threading.Thread(target=send)
            thread.start()
            while data := client.recv(1 << 16):
                told.update(data)
            thread.join()
        assert told.digest() == sent.digest()
        eventually(lambda: not gateway.ended() and len(list(Path(f"/proc/{gateway.process.pid}/fd").iterdir())) < 16)


@pytest.mark.parametrize("protocol", ["http", "tcp"])
def test_a_half_closed_client_gets_its_answer(tmp_path, protocol):
    """Its end is passed on; the answer comes later."""

    def answer_at_the_end(connection):
        data = everything(connection)
        time.sleep(0.5)
        connection.sendall(b"got %d" % len(data))

    with before(answer_at_the_end, tmp_path, "--protocol", protocol) as (gateway, _), gateway.connect() as client:
        client.sendall(b"x" * 100_000)
        client.shutdown(socket.SHUT_WR)
        assert everything(client) == b"got 100000"


def test_a_half_closed_server_gets_the_rest(tmp_path):
    """The same the other way round."""
    got = []

    def say_and_listen(connection):
        connection.sendall(b"bye")
        connection.shutdown(socket.SHUT_WR)
        got.append(everything(connection))

    with before(say_and_listen, tmp_path, "--protocol", "tcp") as (gateway, _), gateway.connect() as client:
        assert everything(client) == b"bye"
        client.sendall(b"still here")
        client.close()
        eventually(lambda: got)
        assert got == [b"still here"]


def test_a_reset_is_a_reset_after_what_came_before(tmp_path):
    """Half an answer must not look like a whole one."""

    def break_off(connection):
        read_head(connection)
        connection.sendall(b"x" * 300_000)
        time.sleep(0.3)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    with before(break_off, tmp_path) as (gateway, _), gateway.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        got = b""
        while len(got) < 300_000:
            got += client.recv(1 << 16)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_an_early_answer_arrives(tmp_path):
    """A server that refuses a long body answers and closes with it unread, which resets the connection."""

    def refuse(connection):
        connection.recv(10)
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")

    with before(refuse, tmp_path) as (gateway, _), gateway.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with contextlib.suppress(ConnectionError):
            client.sendall(b"x" * 200_000)
        assert everything(client).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_goes_takes_its_request_with_it(tmp_path):
    """The server hears of it while it computes."""
    heard = threading.Event()

    def compute(connection):
        read_head(connection)
        with contextlib.suppress(ConnectionError):
            connection.recv(1)
        heard.set()

    with before(compute, tmp_path) as (gateway, _):
        client = gateway.connect()
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        time.sleep(0.2)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.close()
        assert heard.wait(10)


def test_who_does_not_read_stops_who_sends(tmp_path):
    """In both directions, and the gateway keeps next to nothing of it."""
    stopped = threading.Event()
    sent = []

    def pour(connection):
        connection.settimeout(1)
        total = 0
        try:
            while total < 200 * MB:
                total += connection.send(bytes(MB))
        except TimeoutError:
            sent.append(total)
        stopped.wait(30)

    with before(pour, tmp_path, "--protocol", "tcp") as (gateway, _):
        before_kb = gateway.rss_kb()
        clients = [gateway.connect() for _ in range(8)]
        eventually(lambda: len(sent) == 8, within_s=60)
        assert max(sent) < 30 * MB  # what the kernel's buffers of three sockets hold
        assert gateway.rss_kb() - before_kb < 8 * 1024
        stopped.set()
        for client in clients:
            client.close()


def test_what_is_read_slowly_arrives_whole(tmp_path):
    """Also the part that the gateway had to keep."""

    def pour(connection):
        connection.sendall(bytes(range(256)) * 40_000)

    with before(pour, tmp_path, "--protocol", "tcp") as (gateway, _), gateway.connect() as client:
        time.sleep(0.5)
        data = everything(client)
        assert data == bytes(range(256)) * 40_000


def test_keep_alive_and_pipelining(tmp_path):
    """Requests on one connection are between client and server."""
    web = Web()
    with before(web, tmp_path) as (gateway, server), gateway.connect() as client:
        client.sendall(b"GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n")
        for path in (b"/a", b"/b"):
            read_head(client)
            assert path in client.recv(len(b'{"path": "/a"}'))
        time.sleep(0.2)
        client.sendall(b"GET /c HTTP/1.1\r\n\r\n")
        read_head(client)
        assert web.asked == ["/a", "/b", "/c"]
        assert server.accepted == 1


def test_a_websocket(tmp_path):
    """Upgraded, then frames both ways, which are no HTTP."""

    def upgrade(connection):
        head = read_head(connection)
        key = next(line.split(b": ")[1] for line in head.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key"))
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        while frame := connection.recv(4096):
            connection.sendall(frame)

    with before(upgrade, tmp_path) as (gateway, _), gateway.connect() as client:
        client.sendall(
            b"GET /ws HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in read_head(client)
        for nth in range(20):
            client.sendall(b"\x82\x03" + bytes([nth, 0, 255]))
            assert client.recv(5) == b"\x82\x03" + bytes([nth, 0, 255])


def test_a_stream_comes_as_it_is_made(tmp_path):
    """Token by token: none waits for the next."""
    go = threading.Semaphore(0)

    def stream(connection):
        read_head(connection)
        for nth in range(5):
            go.acquire()
            connection.sendall(b"data: %d\n\n" % nth)

    with before(stream, tmp_path) as (gateway, _), gateway.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        for nth in range(5):
            go.release()
            assert client.recv(100) == b"data: %d\n\n" % nth


def test_thousands_of_idle_connections(tmp_path):
    """Each costs few bytes, and the next one is served."""
    count = 3000
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def echo(connection):
        while data := connection.recv(100):
            connection.sendall(data)

    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)  # accepts by itself
    told = ["--listen", "127.0.0.1:0", "--to", f"127.0.0.1:{listener.getsockname()[1]}", "--protocol", "tcp"]
    many = ("prlimit", "--nofile=16384:16384")
    with listener, running(tmp_path, *told, "--metrics", "127.0.0.1:0", prefix=many) as gateway:
        first = gateway.connect()
        before_kb = gateway.rss_kb()
        idle = [gateway.connect() for _ in range(count)]
        eventually(lambda: gateway.metric("connections") == count + 1, within_s=60)
        each_kb = (gateway.rss_kb() - before_kb) / count
        print(f"{each_kb:.1f} kB for each idle connection")
        assert each_kb < 8
        for client in (*idle, first):
            client.close()
        listener.close()  # a server that never took them keeps them half-open otherwise: their ends were passed on
        eventually(lambda: gateway.metric("connections") == 0, within_s=60)
    with before(echo, tmp_path / "again", "--protocol", "tcp") as (gateway, _), gateway.connect() as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"


def test_a_server_that_closes_before_its_client(tmp_path):
    """The client hears of it at once, and may ask anew."""
    with before(Web(), tmp_path) as (gateway, _):
        with gateway.connect() as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert everything(client).endswith(b"}")
        assert get(gateway, "/again")[0] == 200


def test_nobody_behind_it_and_plain_tcp(tmp_path):
    """A client is held, and closed when its time is over."""
    told = ["--listen", "127.0.0.1:0", "--to", f"127.0.0.1:{free_port()}", "--protocol", "tcp", "--wait", "1s"]
    with running(tmp_path, *told) as gateway, gateway.connect() as client:
        client.sendall(b"hello")
        assert everything(client) == b""
