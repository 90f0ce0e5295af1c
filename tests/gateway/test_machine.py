"""Two machines as network namespaces: one sleeps, and is woken by magic packets that an independent listener has seen.

Asleep means: its link is down and its processes are frozen. A card beside it (card.py) listens to the wire, and when it
has seen the packet, the machine takes its time to come back.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from demo import model
from memscaler.kernel.netns import entered
from tests.gateway.gateways import Gateway, running
from tests.governor import REPOSITORY, eventually
from tests.kernel.worlds import inside, namespace

HERE, THERE, THERE_6 = "10.79.0.1", "10.79.0.2", "fd79::2"
MAC = "02:79:00:00:00:02"
PORT = 8080
WAKE_S = 1.5  # what the machine needs after a packet


class Machine:
    """The one that sleeps. Its card is heard by those that share its switch."""

    def __init__(self, path: str, switch: str, password: str = "") -> None:
        self.path, self.packets, self.wakes_s = path, [], WAKE_S
        self._switch, self.is_asleep = switch, False
        self._processes: list[subprocess.Popen[bytes]] = []
        command = ["nsenter", f"--net={switch}", sys.executable, str(Path(__file__).with_name("card.py"))]
        command += ["br0", MAC.replace(":", ""), *([password] if password else [])]
        self._card = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._card.stdout is not None
        assert self._card.stdout.readline() == b"listening\n"
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """A process on it."""
        made = subprocess.Popen(["nsenter", f"--net={self.path}", *command], stdout=subprocess.PIPE, cwd=REPOSITORY)
        self._processes.append(made)
        return made

    def sleep(self) -> None:
        for each in self._processes:
            each.send_signal(signal.SIGSTOP)
        inside(self.path, "ip", "link", "set", "eth0", "down")
        self.is_asleep = True

    def wake(self) -> None:
        inside(self.path, "ip", "link", "set", "eth0", "up")
        with contextlib.suppress(AssertionError):  # it goes with the link
            inside(self.path, "ip", "addr", "add", f"{THERE_6}/64", "dev", "eth0", "nodad")
        for each in self._processes:
            each.send_signal(signal.SIGCONT)
        self.is_asleep = False

    def _listen(self) -> None:
        assert self._card.stdout is not None
        for line in self._card.stdout:
            self.packets.append(line.decode().split()[1:])
            if self.is_asleep and self.wakes_s is not None:
                time.sleep(self.wakes_s)
                self.wake()

    def close(self) -> None:
        self._card.kill()
        for each in self._processes:
            each.send_signal(signal.SIGCONT)
            each.kill()
        for each in (self._card, *self._processes):
            each.wait()
            if each.stdout is not None:
                each.stdout.close()


@contextlib.contextmanager
def network(password: str = "") -> Iterator[tuple[str, Machine]]:
    """The namespace of the host that is always on, and the machine; between them a switch."""
    with namespace() as host, namespace() as there, namespace() as switch:
        inside(switch, "ip", "link", "add", "br0", "type", "bridge")
        inside(switch, "ip", "link", "set", "br0", "up")
        for number, where in ((1, host), (2, there)):
            name = where.rsplit("/", 1)[1]
            inside(switch, "ip", "link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
            inside(switch, "ip", "link", "set", f"port{number}", "master", "br0", "up")
            if number == 2:
                inside(where, "ip", "link", "set", "eth0", "address", MAC)
            inside(where, "ip", "addr", "add", f"10.79.0.{number}/24", "dev", "eth0")
            inside(where, "ip", "link", "set", "eth0", "up")
            inside(where, "ip", "addr", "add", f"fd79::{number}/64", "dev", "eth0", "nodad")
        machine = Machine(there, switch, password)
        try:
            yield host, machine
        finally:
            machine.close()


@contextlib.contextmanager
def gateway_in(host: str, folder: Path, *arguments: str, prefix: tuple[str, ...] = ()) -> Iterator[Gateway]:
    told = ["--listen", f"{HERE}:{PORT}", "--to", f"{THERE}:{PORT}", "--mac", MAC, *arguments]
    with running(folder, *told, prefix=("nsenter", f"--net={host}", *prefix)) as gateway:
        yield gateway


def serve_files(machine: Machine) -> None:
    """A small server on the machine."""
    code = (
        "import http.server, socket\n"
        "class Handler(http.server.BaseHTTPRequestHandler):\n"
        "  protocol_version = 'HTTP/1.1'\n"
        "  def do_GET(self):\n"
        "    self.send_response(200); self.send_header('Content-Length', '5'); self.end_headers()\n"
        "    self.wfile.write(b'hello')\n"
        "  def log_message(self, *_): pass\n"
        "class Server(http.server.ThreadingHTTPServer):\n"
        "  address_family = socket.AF_INET6\n"
        f"server = Server(('::', {PORT}), Handler); print('ready', flush=True); server.serve_forever()\n"
    )
    process = machine.start(sys.executable, "-c", code)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"


def connected(host: str, timeout_s: float = 60.0) -> socket.socket:
    """A client on the host itself."""
    with entered(host):
        client = socket.socket()
    client.settimeout(timeout_s)
    client.connect((HERE, PORT))
    return client


def ask(client: socket.socket) -> bytes:
    client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = b""
    while not answer.endswith(b"hello"):
        part = client.recv(4096)
        assert part, answer
        answer += part
    return answer


def test_a_sleeping_machine_is_woken_once_for_all(tmp_path: Path) -> None:
    """Twenty clients at once: one wake, few packets, everybody is answered."""
    with network() as (host, machine):
        serve_files(machine)
        with gateway_in(host, tmp_path) as gateway:
            with connected(host) as client:
                assert b"200" in ask(client)
            assert not machine.packets
            machine.sleep()
            clients = [connected(host) for _ in range(20)]
            with ThreadPoolExecutor(20) as pool:
                answers = list(pool.map(ask, clients))
            assert all(b" 200 " in answer for answer in answers)
            assert len(gateway.events("wake.done")) == 1
            sent = gateway.events("wake.packet_sent")
            assert 1 <= len(sent) <= 8
            eventually(lambda: len(machine.packets) >= len(sent))
            destination, _source, kind = machine.packets[0]
            assert (destination, kind) == ("f" * 12, "0800")  # a broadcast, UDP over IPv4
            for client in clients:
                client.close()


def test_nobody_needs_to_be_root(tmp_path: Path) -> None:
    """Packets leave a process without any rights, and by the right interface, with a SecureOn password too."""
    with network(password="0a0b0c0d0e0f") as (host, machine):
        inside(host, "ip", "link", "add", "other", "type", "veth", "peer", "name", "end")
        inside(host, "ip", "link", "set", "end", "up")
        inside(host, "ip", "link", "set", "other", "up")  # the default way leads elsewhere
        inside(host, "ip", "addr", "add", "192.0.2.1/24", "dev", "other")
        inside(host, "ip", "route", "add", "default", "via", "192.0.2.2")
        serve_files(machine)
        config = tmp_path / "config.toml"
        config.write_text(
            f'[[gateway]]\nlisten = "{HERE}:{PORT}"\nto = "{THERE}:{PORT}"\nmac = "{MAC}"\n'
            'secure_on = "0a:0b:0c:0d:0e:0f"\n'
        )
        tmp_path.chmod(0o755)
        for parent in tmp_path.parents:
            with contextlib.suppress(PermissionError):
                parent.chmod(parent.stat().st_mode | 0o055)
        machine.sleep()
        nobody = (
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--bounding-set=-all,+dac_read_search",  # of root's rights only to read: our python may be in root's home
            "--inh-caps=+dac_read_search",
            "--ambient-caps=+dac_read_search",
            "--no-new-privs",
        )
        prefix = ("nsenter", f"--net={host}", *nobody)
        with running(tmp_path, "--config", str(config), prefix=prefix), connected(host) as client:
            assert b" 200 " in ask(client)
            assert machine.packets


def test_an_open_connection_wakes_a_machine_that_fell_asleep(tmp_path: Path) -> None:
    """What is sent is not acknowledged: packets, and the same connection goes on."""
    with network() as (host, machine):
        serve_files(machine)
        with gateway_in(host, tmp_path, "--metrics", f"{HERE}:9824") as gateway, connected(host) as client:
            ask(client)
            machine.sleep()
            assert b" 200 " in ask(client)
            assert machine.packets
            assert len(gateway.events("relay.stalled")) == 1
            assert b" 200 " in ask(client)


def test_ipv6(tmp_path: Path) -> None:
    """A backend with an IPv6 address: the packet goes to all nodes of its link."""
    with network() as (host, machine):
        serve_files(machine)
        inside(host, "ip", "addr", "flush", "dev", "eth0", "scope", "global", "to", "10.79.0.0/24")
        machine.sleep()
        prefix = ("nsenter", f"--net={host}")
        told = ["--listen", f"[::]:{PORT}", "--to", f"[{THERE_6}]:{PORT}", "--mac", MAC]
        with running(tmp_path, *told, prefix=prefix):
            with entered(host):
                client = socket.socket()  # IPv4 to a gateway on ::
            client.settimeout(60)
            client.connect(("127.0.0.1", PORT))
            with client:
                assert b" 200 " in ask(client)
            assert machine.packets[0][0] == "333300000001"


def test_a_machine_that_does_not_wake(tmp_path: Path) -> None:
    """503 with the reason, and a pause before the next wake; then it works after all."""
    with network() as (host, machine):
        serve_files(machine)
        machine.sleep()
        machine.wakes_s = None
        config = tmp_path / "config.toml"
        config.write_text(
            f'[[gateway]]\nlisten = "{HERE}:{PORT}"\nto = "{THERE}:{PORT}"\nmac = "{MAC}"\n'
            'wake_timeout = "2s"\nwake_pause = "2s"\nconnect_timeout = "500ms"\n'
        )
        with running(tmp_path, "--config", str(config), prefix=("nsenter", f"--net={host}")) as gateway:
            for _ in range(2):  # the second one within the pause: at once, and no packet more
                with connected(host) as client:
                    client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                    answer = client.recv(4096)
                assert answer.startswith(b"HTTP/1.1 503 ")
                assert b"Retry-After: 15" in answer
                assert b"could not be woken" in answer
            assert len(gateway.events("wake.failed")) == 1
            machine.wakes_s = 0.0
            time.sleep(2.5)
            with connected(host) as client:
                assert b" 200 " in ask(client)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that a CPU computes in no time."""
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    model.write(path)
    return path


def test_openai_never_sees_an_error(tmp_path: Path, tiny: Path) -> None:
    """A real llama.cpp server behind it, and the real client, which may not even try again."""
    with network() as (host, machine):
        process = machine.start(sys.executable, "-m", "tests.gateway.llama", str(tiny), THERE, str(PORT))
        assert process.stdout is not None
        assert process.stdout.readline()
        asked = (
            f"import openai, sys\n"
            f"client = openai.OpenAI(base_url='http://{HERE}:{PORT}/v1', api_key='x', max_retries=0, timeout=90)\n"
            "for line in sys.stdin:\n"
            "    parts = client.completions.create(model='m', prompt='Once', max_tokens=8, stream=True)\n"
            "    print('parts', len(list(parts)), flush=True)\n"
        )
        with gateway_in(host, tmp_path, "--no-wake-path", "/health") as gateway:
            command = ["nsenter", f"--net={host}", sys.executable, "-c", asked]
            client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            assert client.stdin is not None
            assert client.stdout is not None

            def complete() -> None:
                client.stdin.write(b"\n")  # type: ignore[union-attr]
                client.stdin.flush()  # type: ignore[union-attr]
                line = client.stdout.readline()  # type: ignore[union-attr]
                assert line.startswith(b"parts "), client.communicate()[1].decode()

            complete()
            machine.sleep()  # its connection, which is kept open for the next request, too
            complete()
            time.sleep(6)  # llama.cpp has closed it
            machine.sleep()
            with connected(host) as poller:  # meanwhile a health check, which wakes nothing
                poller.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                assert poller.recv(4096).startswith(b"HTTP/1.1 200 ")
            assert machine.is_asleep
            complete()
            assert len(gateway.events("wake.done")) >= 2
            client.stdin.close()
            assert client.wait(30) == 0
            client.stdout.close()
            client.stderr.close()  # type: ignore[union-attr]
