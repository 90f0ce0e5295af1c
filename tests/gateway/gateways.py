"""`memscaler gateway` as a process, and servers for it to pass to."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from tests.governor import REPOSITORY, eventually


class Gateway:
    """One. Its log is printed if a test fails inside `running`."""

    def __init__(
        self, folder: Path, *arguments: str, prefix: tuple[str, ...] = (), python: str = sys.executable
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log_path = folder / f"gateway-{time.monotonic_ns()}.log"
        command = [*prefix, python, "-m", "memscaler", "gateway", *arguments, "--log-format", "json"]
        command += ["--log-level", "debug"]
        if "--metrics" not in arguments:
            command += ["--metrics", "off"]
        if "--runtime-dir" not in arguments:
            command += ["--runtime-dir", str(folder)]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=REPOSITORY, env=environment
            )

    def events(self, name: str = "") -> list[dict[str, Any]]:
        """What the log says, or the events of one name."""
        found = []
        for line in self.log_path.read_text(errors="replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                event = json.loads(line)
                if not name or event["event"] == name:
                    found.append(event)
        return found

    def wait_started(self) -> None:
        eventually(lambda: self.events("gateway.started") or self.ended(), within_s=60, what="start")
        assert self.events("gateway.started"), self.log_path.read_text()

    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def address(self) -> tuple[str, int]:
        """Where the door opened last listens."""
        host, _, port = self.events("gateway.listening")[-1]["address"].rpartition(":")
        return host.strip("[]"), int(port)

    def connect(self, timeout_s: float = 30.0) -> socket.socket:
        return socket.create_connection(self.address, timeout=timeout_s)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of its series that have these labels."""
        address = self.events("metrics.served")[-1]["address"]
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        found = re.findall(rf"^memscaler_gateway_{name}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE)
        return sum(float(value) for series, value in found if all(each in series for each in wanted))

    def rss_kb(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", status)
        assert found
        return int(found[1])

    def stop(self, number: int = signal.SIGTERM, within_s: float = 20.0) -> int:
        if not self.ended():
            self.process.send_signal(number)
        return self.process.wait(within_s)


@contextlib.contextmanager
def running(folder: Path, *arguments: str, **more: Any) -> Iterator[Gateway]:
    """A started gateway that is gone afterwards. It makes no mistake."""
    gateway = Gateway(folder, *arguments, **more)
    try:
        gateway.wait_started()
        yield gateway
        assert not gateway.events("gateway.mistake"), gateway.log_path.read_text()
        assert "Traceback" not in gateway.log_path.read_text()
    except BaseException:
        print(gateway.log_path.read_text(errors="replace")[-8000:])
        raise
    finally:
        if not gateway.ended():
            gateway.process.kill()
        gateway.process.wait()


def free_port(host: str = "127.0.0.1") -> int:
    """One on which nobody listens."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class Server:
    """Threads that serve each connection with `serve(connection)`; connections are kept for a look at them."""

    def __init__(self, serve: Callable[[socket.socket], None], port: int = 0, host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=1024)
        self._serve = serve
        self.accepted = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self._serve(connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def read_head(connection: socket.socket) -> bytes:
    """As far as the empty line."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(1)
        if not part:
            break
        data += part
    return data


def everything(connection: socket.socket) -> bytes:
    """To the end; what came before a reset, too."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            data += part
    return data


class Web:
    """What a model server does over HTTP: /health, and a completion for everything else. Counts what it was asked."""

    def __init__(self) -> None:
        self.loading = False
        self.asked: list[str] = []

    def __call__(self, connection: socket.socket) -> None:
        while head := read_head(connection):
            path = head.split(b" ", 2)[1].decode()
            self.asked.append(path)
            is_short = b"HTTP/1.0" in head
            length = re.search(rb"(?i)content-length: *(\d+)", head)
            left = int(length[1]) if length else 0
            while left:
                left -= len(connection.recv(min(left, 1 << 16)))
            status = b"503 Service Unavailable" if self.loading else b"200 OK"
            body = b'{"error": "Loading model"}' if self.loading else json.dumps({"path": path}).encode()
            connection.sendall(
                b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                % (status, len(body), body)
            )
            if is_short:
                return


def get(
    gateway: Gateway, path: str, *, method: str = "GET", timeout_s: float = 30.0
) -> tuple[int, dict[str, str], bytes]:
    """Status, fields, body."""
    with gateway.connect(timeout_s) as client:
        client.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        head = read_head(client).decode()
        lines = head.split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        length = int(fields.get("content-length", "0")) if method != "HEAD" else 0
        body = b""
        while len(body) < length:
            body += client.recv(length - len(body))
        return int(lines[0].split()[1]) if head else 0, fields, body


class Governor:
    """Someone at a control socket: notes what it is asked, and does what the test says: why it refuses, if it does.

    A text is a refusal; a document is what the governor says of a server that does not come back.
    """

    def __init__(self, path: Path, wake: Callable[[list[str]], str | dict[str, Any] | None]) -> None:
        self.woken: list[list[str]] = []
        self.sleeping: list[dict[str, Any]] = []
        self._wake = wake
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        head = read_head(connection)
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        body = connection.recv(int(length[1])) if length and int(length[1]) else b"{}"
        document: dict[str, Any] = {"schema": 1, "sleep": {"servers": self.sleeping}}
        status = "200 OK"
        if head.startswith(b"POST /v1/wake "):
            servers = json.loads(body)["servers"]
            self.woken.append(servers)
            if error := self._wake(servers):
                document = {"error": error} if isinstance(error, str) else error
                status = "409 Conflict"
        text = json.dumps(document).encode()
        connection.sendall(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(text), text))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
