"""Containers whose ports are published, as docs/containers.md says: real namespaces, veth, nftables and a real relay."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.governor import Governor, eventually, governing
from tests.kernel.worlds import connected, inside, listener, namespace, sysctl

# What docker-proxy does: accepts on the host's side and connects to the container.
RELAY = """
import socket, sys, threading
def pump(a, b):
    while data := a.recv(65536):
        b.sendall(data)
    b.shutdown(socket.SHUT_WR)
server = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("ready", flush=True)
while True:
    client = server.accept()[0]
    inner = socket.create_connection((sys.argv[2], int(sys.argv[3])))
    for ends in ((client, inner), (inner, client)):
        threading.Thread(target=pump, args=ends, daemon=True).start()
"""


@contextlib.contextmanager
def joined() -> Iterator[tuple[str, str, str]]:
    """A client's machine 10.77.1.2, a host 10.77.1.1 and 10.77.2.1, a container 10.77.2.2: paths of their namespaces."""
    with namespace() as client, namespace() as host, namespace() as container:
        for number, where, link in ((1, client, "client"), (2, container, "inner")):
            name = where.rsplit("/", 1)[1]
            inside(host, "ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
            inside(host, "ip", "addr", "add", f"10.77.{number}.1/24", "dev", link)
            inside(host, "ip", "link", "set", link, "up")
            inside(where, "ip", "addr", "add", f"10.77.{number}.2/24", "dev", "eth0")
            inside(where, "ip", "link", "set", "eth0", "up")
            inside(where, "ip", "route", "add", "default", "via", f"10.77.{number}.1")
        sysctl(host, "net.ipv4.ip_forward", "1")
        yield client, host, container


def locked(governor: Governor) -> list[bool]:
    return [bool(board.locks) for board in governor.driver.boards]


def test_a_rewritten_connection_wakes_by_the_container(tmp_path: Path) -> None:
    """DNAT: a client of the published port is a connection of the container and of nobody else."""
    with joined() as (client, host, container), listener(container, 80, "0.0.0.0") as server:
        rule = "add table ip nat; add chain ip nat pre { type nat hook prerouting priority dstnat; }; "
        rule += "add rule ip nat pre tcp dport 8080 dnat to 10.77.2.2:80"
        inside(host, "nft", rule)
        ports = ["--port", f"80@netns:{container}:gpu0", "--port", f"8080@netns:{host}:gpu1"]
        with governing(tmp_path, "a40,p40", *ports, "--idle-after", "300ms") as governor:
            eventually(lambda: locked(governor) == [True, True])
            for _ in range(3):
                with connected(client, 8080, "10.77.1.1"):
                    eventually(lambda: not locked(governor)[0], within_s=1)
                    assert locked(governor)[1]  # why a watch of the published port would be of no use
                server.accept()[0].close()
                eventually(lambda: locked(governor) == [True, True])


def test_a_relayed_connection_wakes_by_the_container(tmp_path: Path) -> None:
    """A relay in user space (docker-proxy, rootlessport): both sides see a connection of their own."""
    with joined() as (client, host, container), listener(container, 80, "0.0.0.0") as server:
        command = ["nsenter", f"--net={host}", sys.executable, "-c", RELAY, "8080", "10.77.2.2", "80"]
        relay = subprocess.Popen(command, stdout=subprocess.PIPE)
        try:
            assert relay.stdout is not None
            assert relay.stdout.readline() == b"ready\n"
            ports = ["--port", f"80@netns:{container}:gpu0", "--port", f"8080@netns:{host}:gpu1"]
            with governing(tmp_path, "a40,p40", *ports, "--idle-after", "300ms") as governor:
                eventually(lambda: locked(governor) == [True, True])
                with connected(client, 8080, "10.77.1.1"):
                    eventually(lambda: locked(governor) == [False, False], within_s=1)
                    served = server.accept()[0]
                served.close()
                eventually(lambda: locked(governor) == [True, True])
        finally:
            relay.kill()
            relay.wait()
            if relay.stdout:
                relay.stdout.close()


def test_the_hosts_side_of_docker_proxy_is_refused(tmp_path: Path) -> None:
    """Where docker-proxy holds the named port, memscaler says what to watch instead, and its GPU stays awake."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = f'exec -a docker-proxy {sys.executable} -c "$0" {port} 127.0.0.1 1 -container-port 80'
    proxy = subprocess.Popen(["bash", "-c", script, RELAY], stdout=subprocess.PIPE)
    try:
        assert proxy.stdout is not None
        assert proxy.stdout.readline() == b"ready\n"
        with governing(tmp_path, "a40", "--port", f"{port}:gpu0", "--idle-after", "200ms") as governor:
            (waiting,) = governor.events("watch.waiting")
            assert "watch 80@container:NAME instead" in waiting["reason"]
            assert not governor.driver.call_log(["nvmlDeviceSetMemoryLockedClocks"])
    finally:
        proxy.kill()
        proxy.wait()
        if proxy.stdout:
            proxy.stdout.close()
