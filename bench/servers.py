"""Real servers to be asked: llama.cpp on the demo's tiny model, and nginx where it is installed."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from demo import model
from demo.llama import Llama
from tests.governor import eventually, listener, port_of

NGINX = """
daemon off;
master_process off;
pid nginx.pid;
error_log stderr;
events { worker_connections 1024; }
http {
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server { listen 127.0.0.1:%d; location / { return 200 "ok\\n"; } }
}
"""


@dataclass(frozen=True, slots=True)
class Server:
    """One that answers requests on loopback."""

    name: str
    port: int
    pid: int


def request(path: str, body: dict[str, object] | None = None, *, keep: bool) -> bytes:
    """As a client sends it."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = [
        f"{'GET' if body is None else 'POST'} {path} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Connection: {'keep-alive' if keep else 'close'}",
        *([f"Content-Type: application/json\r\nContent-Length: {len(content)}"] if content else []),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


@contextlib.contextmanager
def llama() -> Iterator[Server]:
    """llama.cpp."""
    with tempfile.TemporaryDirectory(prefix="memscaler-bench-") as folder:
        path = Path(folder) / "tiny.gguf"
        model.write(path)
        with Llama(path, Path(folder) / "log") as server:
            server.wait_listening()
            yield Server("llama.cpp", server.port, server._process.pid)  # noqa: SLF001  # demo's, and not worth an API


@contextlib.contextmanager
def nginx() -> Iterator[Server]:
    """One process of it. Raise FileNotFoundError if it is not installed."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        raise FileNotFoundError("nginx")
    with listener() as free:
        port = port_of(free)
    with tempfile.TemporaryDirectory(prefix="memscaler-bench-") as folder:
        config = Path(folder) / "nginx.conf"
        config.write_text(NGINX % port)
        process = subprocess.Popen([program, "-p", folder, "-c", str(config)])
        try:
            eventually(lambda: _listens(port), what="nginx listens")
            yield Server("nginx", port, process.pid)
        finally:
            process.terminate()
            process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
