"""Servers and namespaces that come, move and go: what is watched follows within a second, and no GPU is parked unheard."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.governor import Governor, eventually, governing
from tests.kernel.worlds import connected, inside, listener, namespace

SOON_S = 3.0  # what is promised is one; these machines are shared
SERVER = """
import socketserver, sys
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        if self.request.recv(65536):
            self.request.sendall(b"HTTP/1.1 404 Not Found\\r\\nContent-Length: 0\\r\\n\\r\\n")
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address, daemon_threads = True, True
server = Server((sys.argv[2], int(sys.argv[1])), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


class Server:
    """A process that is called like a server and listens."""

    def __init__(self, name: str, port: int = 0, netns: str = "", address: str = "127.0.0.1") -> None:
        enter = [] if not netns else ["nsenter", f"--net={netns}"]
        script = f'exec -a "{name}" {sys.executable} -c "$0" {port} {address}'
        environment = {**os.environ, "PYTHONHOME": sys.base_prefix}  # which it cannot find by such a name
        command = [*enter, "bash", "-c", script, SERVER]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.pid = self.process.pid

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


@contextlib.contextmanager
def serving(*arguments: object, **more: object) -> Iterator[Server]:
    server = Server(*arguments, **more)  # type: ignore[arg-type]
    try:
        yield server
    finally:
        server.end()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def watched(governor: Governor) -> dict[int, list[str]]:
    """Port -> GPUs, by the log."""
    now: dict[int, list[str]] = {}
    for event in governor.events():
        if event["event"] in ("watch.started", "watch.changed"):
            now[event["port"]] = event["gpus"]
        elif event["event"] == "watch.ended":
            now.pop(event["port"], None)
    return now


def locked(governor: Governor) -> list[bool]:
    return [bool(board.locks) for board in governor.driver.boards]


def test_a_port_alone_waits_for_its_server_and_follows_it(tmp_path: Path) -> None:
    """`--port 8080`: no server at the start is no error; its GPU is found when it comes, and again when it has moved."""
    port = free_port()
    with governing(tmp_path, "a40,p40", "--port", str(port), "--idle-after", "300ms") as governor:
        (waiting,) = governor.events("watch.waiting")
        assert waiting["reason"] == "no process listens there yet"
        with serving("llama-server", port) as server:
            governor.driver.boards[1].add_process(server.pid)
            eventually(lambda: watched(governor) == {port: ["gpu1"]}, within_s=SOON_S)
            eventually(lambda: locked(governor) == [False, True])
        eventually(lambda: watched(governor) == {}, within_s=SOON_S)
        eventually(lambda: locked(governor) == [False, False])
        with serving("llama-server", port) as server:
            governor.driver.boards[0].add_process(server.pid)
            eventually(lambda: watched(governor) == {port: ["gpu0"]}, within_s=SOON_S)
            eventually(lambda: locked(governor) == [True, False])
            with socket.create_connection(("127.0.0.1", port)):
                eventually(lambda: not locked(governor)[0], within_s=1)
        assert governor.stop() == 0


def test_a_context_that_comes_late(tmp_path: Path) -> None:
    """A server listens first and loads its model later: its GPU is known a second after its context is there."""
    port = free_port()
    with (
        governing(tmp_path, "a40", "--port", str(port), "--idle-after", "200ms") as governor,
        serving("llama-server", port) as server,
    ):
        time.sleep(2.5)
        assert watched(governor) == {}
        governor.driver.boards[0].add_process(server.pid)
        eventually(lambda: watched(governor) == {port: ["gpu0"]}, within_s=SOON_S)
        eventually(lambda: locked(governor) == [True])


def test_a_server_that_takes_another_gpu_too(tmp_path: Path) -> None:
    """A GPU that a watched server begins to use wakes with it from then on; the first one stays what it is."""
    with (
        serving("llama-server") as server,
        governing(tmp_path, "a40,p40", "--discover", "--idle-after", "300ms") as governor,
    ):
        governor.driver.boards[0].add_process(server.pid)
        with serving("llama-server"):  # its listening makes the scout look
            eventually(lambda: watched(governor).get(server.port) == ["gpu0"], within_s=SOON_S)
        governor.driver.boards[1].add_process(server.pid)
        with serving("llama-server"):
            eventually(lambda: watched(governor).get(server.port) == ["gpu0", "gpu1"], within_s=SOON_S)
        eventually(lambda: locked(governor) == [True, True])
        with socket.create_connection(("127.0.0.1", server.port)):
            eventually(lambda: locked(governor) == [False, False], within_s=1)


def test_discovery_adds_and_drops_within_a_second(tmp_path: Path) -> None:
    """Servers of every kind come and go on random ports; what is no server is left alone."""
    with governing(tmp_path, "a40,p40", "--discover", "--idle-after", "200ms") as governor:
        boards = governor.driver.boards
        with serving("web-server") as other, serving("llama-server") as llama, serving("llama-server") as second:
            boards[0].add_process(other.pid)
            boards[0].add_process(llama.pid)
            boards[1].add_process(second.pid)
            started = time.monotonic()
            eventually(lambda: watched(governor) == {llama.port: ["gpu0"], second.port: ["gpu1"]}, within_s=SOON_S)
            print(f"found after {time.monotonic() - started:.2f} s")
            eventually(lambda: all(locked(governor)))
            os.kill(second.pid, signal.SIGKILL)
            ended = time.monotonic()
            eventually(lambda: second.port not in watched(governor), within_s=SOON_S)
            print(f"dropped after {time.monotonic() - ended:.2f} s")
            eventually(lambda: locked(governor) == [True, False])
        eventually(lambda: watched(governor) == {}, within_s=SOON_S)
        eventually(lambda: not any(locked(governor)))


def test_two_namespaces_with_the_same_port_on_two_gpus(tmp_path: Path) -> None:
    """Two containers that both listen on 8080, on two GPUs: each wakes its own."""
    with namespace() as a, namespace() as b, listener(a, 8080) as one, listener(b, 8080):
        ports = ["--port", f"8080@netns:{a}:gpu0", "--port", f"8080@netns:{b}:gpu1"]
        with governing(tmp_path, "a40,p40", *ports, "--idle-after", "300ms") as governor:
            eventually(lambda: locked(governor) == [True, True])
            with connected(a, 8080):
                eventually(lambda: locked(governor) == [False, True], within_s=1)
                time.sleep(0.5)
                assert locked(governor) == [False, True]
            one.accept()[0].close()
            eventually(lambda: locked(governor) == [True, True])
            with connected(b, 8080):
                eventually(lambda: locked(governor) == [True, False], within_s=1)


def test_a_namespace_that_comes_later(tmp_path: Path) -> None:
    """Its GPU stays awake until the namespace is there: nobody would hear a client. Then it is watched like any other."""
    name = f"ms-later-{os.getpid()}"
    with governing(tmp_path, "a40", "--port", f"8080@netns:{name}:gpu0", "--idle-after", "200ms") as governor:
        (waiting,) = governor.events("watch.waiting")
        assert waiting["gpus"] == ["gpu0"]
        time.sleep(1)
        assert not governor.driver.call_log(["nvmlDeviceSetMemoryLockedClocks"])
        subprocess.run(["ip", "netns", "add", name], check=True)
        try:
            inside(name, "ip", "link", "set", "lo", "up")
            with listener(f"/run/netns/{name}", 8080) as server:
                eventually(lambda: watched(governor) == {8080: ["gpu0"]}, within_s=SOON_S)
                eventually(lambda: locked(governor) == [True])
                with connected(f"/run/netns/{name}", 8080):
                    eventually(lambda: locked(governor) == [False], within_s=1)
                server.accept()[0].close()
                eventually(lambda: locked(governor) == [True])
                subprocess.run(["ip", "netns", "del", name], check=True)
            # the last socket is gone, and so is the name
            eventually(lambda: watched(governor) == {}, within_s=SOON_S)
            eventually(lambda: locked(governor) == [False])
        finally:
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


def test_a_server_in_another_namespace_is_discovered(tmp_path: Path) -> None:
    """`--discover` finds the server of a container; a client there wakes its GPU, one on the same port here does not."""
    with (
        namespace() as netns,
        governing(tmp_path, "a40", "--discover", "--idle-after", "200ms") as governor,
        serving("llama-server", 8080, netns) as server,
    ):
        governor.driver.boards[0].add_process(server.pid)
        eventually(lambda: watched(governor) == {8080: ["gpu0"]}, within_s=SOON_S)
        eventually(lambda: locked(governor) == [True])
        with connected(netns, 8080):
            eventually(lambda: locked(governor) == [False], within_s=1)


def test_open_connections_outlive_the_listener(tmp_path: Path) -> None:
    """A server that has closed its listener and still answers keeps its GPU; when the last client is gone it is dropped."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        governing(tmp_path, "a40", "--port", "1:gpu0") as first,
    ):
        first.driver.boards[0].add_process(os.getpid())
        first.stop()
        port = server.getsockname()[1]
        with governing(tmp_path, "a40", "--port", str(port), "--idle-after", "200ms") as governor:
            client = socket.create_connection(("127.0.0.1", port))
            accepted = server.accept()[0]
            server.close()
            time.sleep(1.5)
            assert watched(governor) == {port: ["gpu0"]}
            assert locked(governor) == [False]
            client.close()
            accepted.close()
            eventually(lambda: watched(governor) == {}, within_s=8)


@pytest.mark.parametrize("number", [65, 130])
def test_more_servers_than_can_be_watched(tmp_path: Path, number: int) -> None:
    """What does not fit is said, and does no harm; slots that have become free are used again."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    script = "import signal, sys\nprint('1', flush=True)\nsignal.pause()"
    fds = [each.fileno() for each in servers]
    command = f'exec -a "llama-server" {sys.executable} -c "$0"'
    owner = subprocess.Popen(["bash", "-c", command, script], pass_fds=fds, stdout=subprocess.PIPE)
    try:
        assert owner.stdout is not None
        owner.stdout.readline()
        for each in servers:
            each.close()
        with governing(tmp_path, "a40", "--discover", "--idle-after", "200ms") as governor:
            governor.driver.boards[0].add_process(owner.pid)
            with serving("llama-server"):
                eventually(lambda: len(watched(governor)) == 64, within_s=10)
            eventually(lambda: governor.events("watch.refused"))
            assert "more than 64" in governor.events("watch.refused")[0]["reason"]
            owner.kill()
            owner.wait()
            eventually(lambda: watched(governor) == {}, within_s=SOON_S)
            with serving("llama-server") as later:
                governor.driver.boards[0].add_process(later.pid)
                eventually(lambda: watched(governor) == {later.port: ["gpu0"]}, within_s=8)
    finally:
        owner.kill()
        owner.wait()
        if owner.stdout:
            owner.stdout.close()
