"""A gateway that leads to itself: refused before it starts where that can be known, and answered at once where not."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import pytest

from memscaler.config.gateway_loops import is_here, is_ours, leads_back
from memscaler.config.values import Address
from tests.gateway.gateways import Server, Web, everything, free_port, get, read_head, running
from tests.gateway.test_process import GET, command
from tests.governor import eventually

# A name of this machine's own, which a test gives another meaning while the gateway runs.
# Not --propagation private: that is about the root, which is no mount in a chroot.
BIND = 'mount --make-rprivate / 2>/dev/null || true; mount --bind "$0" /etc/hosts && exec "$@"'
NAMED = ("unshare", "--mount", "--propagation", "unchanged", "sh", "-c", BIND)


def own_address() -> str:
    """Of an interface of this machine that is not loopback."""
    found = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout.split()
    if not found:  # a namespace of our own, with loopback alone
        subprocess.run(["ip", "address", "add", "198.18.7.1/32", "dev", "lo"], check=True)
        found = ["198.18.7.1"]
    return next(each for each in found if ":" not in each)


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "127.0.0.2", "0.0.0.0", "[::]", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_words_tell(host):
    """Other words for this machine, at the place where it listens: the configuration is wrong."""
    port = free_port()
    told = ("--listen", f"[::]:{port}", "--to", f"{host}:{port}")
    for more in ((), ("--check",)):
        status, text = command(*told, *more)
        assert status == 2
        assert "is where the gateway itself listens" in text


def test_leads_back():
    """By ports first, then by where it listens: everywhere, everywhere of IPv4, or at one address."""
    any4, any6, one = Address("0.0.0.0", 1), Address("::", 1), Address("127.0.0.1", 1)
    assert not leads_back(any4, Address("127.0.0.1", 2))
    assert not leads_back(Address("0.0.0.0", 0), Address("127.0.0.1", 0))
    assert leads_back(any4, Address("127.8.9.1", 1))
    assert not leads_back(any4, Address("::1", 1)), "nobody listens there"
    assert leads_back(any6, Address("::1", 1))
    assert leads_back(any6, Address("127.0.0.1", 1))
    assert leads_back(one, Address("0.0.0.0", 1))
    assert not leads_back(one, Address("127.0.0.2", 1))
    assert not leads_back(any4, Address("192.0.2.1", 1), is_ours)
    assert not leads_back(any4, Address("gpubox", 1))
    assert not is_here("127.example.org")


def test_an_address_of_an_interface():
    """It is ours, and one of a neighbour is not, also where addresses that nobody has may be bound."""
    address = own_address()
    assert is_ours(address)
    assert not is_ours("192.0.2.1")
    port = free_port()
    told = ["--listen", f"0.0.0.0:{port}", "--to", f"{address}:{port}"]
    status, text = command(*told, "--check")
    assert status == 1
    assert f"{address}:{port} is where the gateway itself listens" in text
    assert "write where the server itself listens" in text
    began = time.monotonic()
    status, text = command(*told, "--metrics", "off")
    assert status == 78
    assert "is where the gateway itself listens" in text
    assert time.monotonic() - began < 30
    code = "from memscaler.config.gateway_loops import is_ours; print(is_ours('192.0.2.1'), is_ours('127.0.0.1'))"
    inside = ["unshare", "--net", "sh", "-c", 'sysctl -qw net.ipv4.ip_nonlocal_bind=1; exec "$@"', "sh", sys.executable]
    said = subprocess.run([*inside, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False", "True"]


def test_a_name_of_this_machine(tmp_path):
    """As /etc/hosts of Debian has its own name, at 127.0.1.1."""
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.1.1 gpubox\n")
    port = free_port()
    told = ["gateway", "--listen", f"0.0.0.0:{port}", "--to", f"gpubox:{port}", "--check"]
    asked = [*NAMED, str(hosts), sys.executable, "-m", "memscaler", *told]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "is where the gateway itself listens" in done.stdout


def test_two_gateways_of_one_process(tmp_path):
    """One that leads to the other: its connections would count as coming back, so it is refused as well."""
    ports = free_port(), free_port()
    config = tmp_path / "config.toml"
    config.write_text(
        f'[[gateway]]\nlisten = "127.0.0.1:{ports[0]}"\nto = "127.0.0.1:{ports[1]}"\n'
        f'[[gateway]]\nname = "inner"\nlisten = "127.0.0.1:{ports[1]}"\nto = "127.0.0.1:9"\n'
    )
    for more in ((), ("--check",)):
        status, text = command("--config", str(config), "--metrics", "off", *more)
        assert status == 78
        assert "is where the gateway inner listens" in text
    done = subprocess.run(
        [sys.executable, "-m", "memscaler", "config", "check", str(config)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 78
    assert f"is where the gateway inner listens (127.0.0.1:{ports[1]})" in done.stdout + done.stderr


def test_two_gateways_of_one_process_by_a_name(tmp_path):
    """What a name means is known here only: the file is good, and the gateway refuses it."""
    ports = free_port(), free_port()
    hosts, config = tmp_path / "hosts", tmp_path / "config.toml"
    hosts.write_text("127.0.0.1 gpubox\n")
    config.write_text(
        f'[[gateway]]\nlisten = "127.0.0.1:{ports[0]}"\nto = "gpubox:{ports[1]}"\n'
        f'[[gateway]]\nname = "inner"\nlisten = "127.0.0.1:{ports[1]}"\nto = "127.0.0.1:9"\n'
    )
    for more in ((), ("--check",)):
        told = ["gateway", "--config", str(config), "--metrics", "off", *more]
        asked = [*NAMED, str(hosts), sys.executable, "-m", "memscaler", *told]
        done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == (1 if more else 78), done.stderr
        assert "is where the gateway inner listens" in done.stdout + done.stderr


@pytest.mark.parametrize("more", ["", 'ready = "off"', "hold = false"])
def test_a_name_that_leads_back_later(tmp_path, more):
    """Nobody is held for it: a 503 at once, for each who comes; and the log says it once."""
    hosts, port = tmp_path / "hosts", free_port()
    hosts.write_text("127.0.0.1 localhost\n")
    config = tmp_path / "config.toml"
    table = f'[[gateway]]\nlisten = "0.0.0.0:{port}"\nto = "gpubox:{port}"\nwait = "5m"\nwake_pause = "0s"\n{more}\n'
    config.write_text(table)
    with running(tmp_path, "--config", str(config), prefix=(*NAMED, str(hosts))) as gateway:
        with hosts.open("a") as file:
            file.write("127.0.1.1 gpubox\n")
        began = time.monotonic()
        while time.monotonic() - began < 5:  # with no pause between wakes: looks go on, and find it each time
            with socket.create_connection(("127.0.0.1", port), 20) as client:
                client.sendall(GET)
                head = read_head(client)
                assert head.startswith(b"HTTP/1.1 503 ")
                assert b"X-Memscaler-Gateway: loop" in head
            time.sleep(0.1)
        assert len(gateway.events("gateway.loop_found")) == 1
        assert len(gateway.events("backend.changed")) < 20
        assert not gateway.events("gateway.mistake")


def test_of_anything_else_than_http(tmp_path):
    """Closed at once."""
    hosts, port = tmp_path / "hosts", free_port()
    hosts.write_text("127.0.0.1 localhost\n")
    told = ["--listen", f"0.0.0.0:{port}", "--to", f"gpubox:{port}", "--wait", "5m", "--protocol", "tcp"]
    with running(tmp_path, *told, prefix=(*NAMED, str(hosts))) as gateway:
        with hosts.open("a") as file:
            file.write("127.0.1.1 gpubox\n")
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", port), 20) as client:
                client.sendall(GET)
                assert everything(client) == b""
        assert len(gateway.events("gateway.loop_found")) == 1


def test_it_recovers(tmp_path):
    """When the configuration leads elsewhere, its clients get there."""
    hosts, port = tmp_path / "hosts", free_port()
    hosts.write_text("127.0.0.1 localhost\n")
    config = tmp_path / "config.toml"
    text = f'[[gateway]]\nlisten = "0.0.0.0:{port}"\nto = "%s"\nwait = "5m"\n'
    config.write_text(text % f"gpubox:{port}")
    with Server(Web()) as server, running(tmp_path, "--config", str(config), prefix=(*NAMED, str(hosts))) as gateway:
        with hosts.open("a") as file:
            file.write("127.0.1.1 gpubox\n")
        assert get(gateway, "/")[0] == 503
        config.write_text(text % f"127.0.1.1:{port}")
        gateway.process.send_signal(1)
        eventually(lambda: gateway.events("reload.refused"))
        config.write_text(text % f"127.0.0.1:{server.port}")
        gateway.process.send_signal(1)
        eventually(lambda: gateway.events("gateway.reloaded"))
        assert get(gateway, "/")[0] == 200
