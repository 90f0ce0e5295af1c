"""The gateway as a process: its end, a new configuration, too few descriptors, loops, and what it tells."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.gateway.gateways import Server, Web, everything, free_port, get, read_head, running
from tests.governor import REPOSITORY, eventually

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def command(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "memscaler", "gateway", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    return done.returncode, done.stdout + done.stderr


def to(server, *arguments):
    return ["--listen", "127.0.0.1:0", "--to", f"127.0.0.1:{server.port}", "--metrics", "127.0.0.1:0", *arguments]


def slow(connection):
    read_head(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
    for byte in b"slow":
        time.sleep(0.4)
        connection.sendall(bytes([byte]))


def test_sigterm_lets_answers_end(tmp_path):
    """Nobody new; the one under way is finished; then it ends, with 0."""
    with Server(slow) as server, running(tmp_path, *to(server, "--ready", "off")) as gateway:
        with gateway.connect() as client:
            client.sendall(GET)
            assert b" 200 " in read_head(client)
            gateway.process.send_signal(signal.SIGTERM)
            eventually(lambda: gateway.events("gateway.stopping"))
            with pytest.raises(ConnectionRefusedError):
                gateway.connect()
            assert client.recv(4) + client.recv(4) + client.recv(4) + client.recv(4) == b"slow"
        assert gateway.process.wait(20) == 0


def test_sigterm_tells_those_who_wait(tmp_path):
    """A 503, and no connection is simply cut."""
    told = ["--listen", "127.0.0.1:0", "--to", f"127.0.0.1:{free_port()}"]
    with running(tmp_path, *told) as gateway, gateway.connect() as client:
        client.sendall(GET)
        eventually(lambda: any(event.get("state") == "waking" for event in gateway.events("backend.changed")))
        gateway.process.send_signal(signal.SIGTERM)
        answer = everything(client)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After" in answer
        assert gateway.process.wait(20) == 0


def test_idle_connections_do_not_delay_the_end_for_long(tmp_path):
    """Kept open by a client's pool, with nothing under way; and a second signal ends at once whatever is."""
    with Server(Web()) as server, running(tmp_path, *to(server)) as gateway, gateway.connect() as client:
        client.sendall(GET)
        read_head(client)
        began = time.monotonic()
        assert gateway.stop(within_s=25) == 0
        assert time.monotonic() - began < 15
    tcp = ("--protocol", "tcp")
    with Server(Web()) as server, running(tmp_path, *to(server, *tcp)) as gateway, gateway.connect() as client:
        client.sendall(GET)
        read_head(client)
        gateway.process.send_signal(signal.SIGTERM)
        eventually(lambda: gateway.events("gateway.stopping"))
        assert not gateway.ended()
        assert gateway.stop() == 0


def test_a_new_configuration_drops_no_connection(tmp_path):
    """Another backend for who comes, the old one for who is there; doors that come, and that go."""
    config = tmp_path / "config.toml"
    ports = [free_port(), free_port()]

    def write(*pairs):
        tables = [f'[[gateway]]\nlisten = "127.0.0.1:{listen}"\nto = "127.0.0.1:{to}"\n' for listen, to in pairs]
        config.write_text("".join(tables))

    def echo(name):
        def serve(connection):
            while head := read_head(connection):
                del head
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + name)

        return serve

    def ask(client):
        client.sendall(GET)
        read_head(client)
        return client.recv(1)

    with Server(echo(b"a")) as one, Server(echo(b"b")) as other:
        write((ports[0], one.port))
        with (
            running(tmp_path, "--config", str(config)) as gateway,
            socket.create_connection(("127.0.0.1", ports[0]), 20) as client,
        ):
            assert ask(client) == b"a"
            write((ports[0], other.port), (ports[1], one.port))
            gateway.process.send_signal(signal.SIGHUP)
            eventually(lambda: gateway.events("gateway.reloaded"))
            assert ask(client) == b"a"
            for port, name in zip(ports, (b"b", b"a"), strict=True):
                with socket.create_connection(("127.0.0.1", port), 20) as another:
                    assert ask(another) == name
            config.write_text("[[gateway]]\nlisten = 'nonsense'\n")
            gateway.process.send_signal(signal.SIGHUP)
            eventually(lambda: gateway.events("reload.refused"))
            assert ask(client) == b"a"
            write((ports[1], one.port))
            gateway.process.send_signal(signal.SIGHUP)
            eventually(lambda: gateway.events("gateway.closed"))
            assert ask(client) == b"a"
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", ports[0]))


def test_who_waits_goes_by_the_new_configuration(tmp_path):
    """A wrong address is mended while clients are held."""
    config = tmp_path / "config.toml"
    listen = free_port()
    text = f'[[gateway]]\nlisten = "127.0.0.1:{listen}"\nto = "127.0.0.1:%d"\n'
    config.write_text(text % free_port())
    with Server(Web()) as server, running(tmp_path, "--config", str(config)) as gateway, gateway.connect() as client:
        client.sendall(GET)
        eventually(lambda: any(event.get("state") == "waking" for event in gateway.events("backend.changed")))
        config.write_text(text % server.port)
        gateway.process.send_signal(signal.SIGHUP)
        assert b" 200 " in read_head(client)


def test_too_few_descriptors(tmp_path):
    """More clients than there are descriptors: they wait their turn, nobody is lost, and the door stays open."""
    limited = ("prlimit", "--nofile=168:168")  # 20 connections
    with Server(Web()) as server, running(tmp_path, *to(server), prefix=limited) as gateway:
        clients = [gateway.connect() for _ in range(60)]
        for client in clients:
            client.sendall(GET)
        for client in clients:
            assert b" 200 " in read_head(client)
            client.close()
        assert get(gateway, "/")[0] == 200
    very = ("prlimit", "--nofile=20:20")  # fewer than it thinks: accept and connect fail
    with Server(Web()) as server, running(tmp_path, *to(server), prefix=very) as gateway:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(gateway.connect()) for _ in range(20)]
            time.sleep(1)
            assert not gateway.ended()
        eventually(lambda: get(gateway, "/")[0] == 200)
        del clients


def test_where_it_cannot_listen(tmp_path):
    """A sentence, what to do, and exit code 1."""
    with Server(Web()) as server:
        status, text = command("--listen", f"127.0.0.1:{server.port}", "--to", "127.0.0.1:9", "--metrics", "off")
        assert status == 1
        assert f"cannot listen on 127.0.0.1:{server.port}" in text
    assert command("--listen", "127.0.0.1")[0] == 2
    assert command()[0] == 2
    del tmp_path


def test_whoever_holds_the_metrics_port_keeps_nobody_out(tmp_path):
    """As with the governor's: a second gateway of this machine goes on without."""
    with Server(Web()) as server, Server(Web()) as holder:
        told = [*to(server)[:4], "--metrics", f"127.0.0.1:{holder.port}"]
        with running(tmp_path, *told) as gateway:
            assert gateway.events("metrics.failed")
            assert get(gateway, "/")[0] == 200


def test_what_it_would_find(tmp_path):
    """--check connects, and wakes and changes nothing."""
    with Server(Web()) as server:
        told = ["--listen", "127.0.0.1:0", "--to", f"127.0.0.1:{server.port}", "--mac", "02:00:00:00:00:01"]
        status, text = command(*told, "--check", "--runtime-dir", str(tmp_path))
        assert status == 0
        assert "answers now" in text
        assert "packets go to everybody on lo" in text
        status, text = command(*told[:4], "--server", "llama", "--check", "--json", "--runtime-dir", str(tmp_path))
        document = json.loads(text)
        assert "brought back by nobody" in document["gateways"][0]["warnings"][0]


def test_the_metrics_are_well_formed(tmp_path):
    """For Prometheus; and what else is asked there is refused."""
    with Server(Web()) as server, running(tmp_path, *to(server)) as gateway:
        get(gateway, "/")
        address = gateway.events("metrics.served")[-1]["address"].rpartition(":")
        for said, status in ((b"GET / HTTP/1.1\r\n\r\n", b"404"), (b"POST /metrics HTTP/1.1\r\n\r\n", b"405")):
            with socket.create_connection((address[0], int(address[2])), 10) as client:
                client.sendall(said)
                assert everything(client).split()[1] == status
        with socket.create_connection((address[0], int(address[2])), 10) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            text = everything(client).partition(b"\r\n\r\n")[2]
        assert b'memscaler_gateway_backend_state{gateway="' in text
        promtool = shutil.which("promtool")
        if promtool:
            done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr


def test_systemd_is_told(tmp_path):
    """READY when its doors are open, RELOADING around a new configuration, STOPPING at the end."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard, Server(Web()) as server:
        heard.bind(path)
        heard.settimeout(20)
        prefix = ("env", f"NOTIFY_SOCKET={path}")
        with running(tmp_path, *to(server), prefix=prefix) as gateway:
            assert heard.recv(4096).startswith(b"READY=1")
            gateway.process.send_signal(signal.SIGHUP)
            assert heard.recv(4096).startswith(b"RELOADING=1")
            assert heard.recv(4096).startswith(b"READY=1")
            gateway.stop()
            assert heard.recv(4096) == b"STOPPING=1"
