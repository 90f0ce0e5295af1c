"""Servers of LLM software as clients meet them: one that never closes, llama.cpp itself, and ones that lie about it.

Run as a program (`argv[0]` llama-server, as discovery knows it): `servers.py llama MODEL PORT [no-metrics] [no-slots]`
or `servers.py liar PORT MODE_FILE`; either ends with its standard input.
"""

from __future__ import annotations

import contextlib
import json
import os
import site
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, urlsplit

ROOT = Path(__file__).resolve().parents[2]


# ---- one that never closes -----------------------------------------------------------------------------------------


class Served:
    """One request, as the server saw it. locked_at_answer: whether the GPU was parked when the answer began."""

    def __init__(self) -> None:
        self.read_ns = time.monotonic_ns()
        self.answered_ns = self.done_ns = 0
        self.locked_at_answer: bool | None = None


class _Handler(BaseHTTPRequestHandler):
    """GET or POST /?after=S (before the answer) &pieces=N&pause=S (a stream of N chunks) &size=BYTES (of each)."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: KeepAlive

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        served = Served()
        wanted = {name: float(values[0]) for name, values in parse_qs(urlsplit(self.path).query).items()}
        time.sleep(wanted.get("after", 0))
        served.answered_ns, served.locked_at_answer = time.monotonic_ns(), self.server.is_parked()
        pieces, size = int(wanted.get("pieces", 1)), int(wanted.get("size", 100))
        self.send_response(200)
        self.send_header("Content-Length", str(pieces * size))
        self.end_headers()
        for number in range(pieces):
            if number:
                time.sleep(wanted.get("pause", 0))
            self.wfile.write(b"x" * size)
        served.done_ns = time.monotonic_ns()
        self.server.served.append(served)

    do_GET = do_POST = _answer  # noqa: N815  # the library's names

    def log_message(self, *_: object) -> None:
        pass


class KeepAlive(ThreadingHTTPServer):
    """HTTP/1.1 with connections that stay open for ever. is_parked: asked when an answer begins."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, 0), _Handler)
        self.port = int(self.server_address[1])
        self.served: list[Served] = []
        self.is_parked: Callable[[], bool] = lambda: False

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """A client that goes away is no news."""


# ---- processes that are called llama-server ------------------------------------------------------------------------


class LlamaServer:
    """A process that discovery takes for llama.cpp's server. It listens when this has been made."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.log = folder / f"llama-{time.monotonic_ns()}.log"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *site.getsitepackages()])}
        with self.log.open("wb") as errors:
            self.process = subprocess.Popen(
                ["llama-server", __file__, *words],
                executable=sys.executable,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
            )
        line = self.process.stdout.readline().decode().strip() if self.process.stdout else ""
        assert line, self.log.read_text(errors="replace")[-3000:]
        self.port = int(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def llama(folder: Path, model: Path, *, metrics: bool = True, slots: bool = True) -> LlamaServer:
    """llama.cpp itself."""
    return LlamaServer(folder, "llama", str(model), "metrics" if metrics else "", "slots" if slots else "")


class Liar(LlamaServer):
    """Answers each question about its work as `says` was last told; accepts everything else silently."""

    def __init__(self, folder: Path, mode: str) -> None:
        self._mode = folder / "mode"
        self._mode.write_text(mode)
        self._asked = folder / "asked"
        self._asked.write_text("")
        super().__init__(folder, "liar", str(self._mode), str(self._asked))

    def says(self, mode: str) -> None:
        self._mode.write_text(mode)

    @property
    def asked(self) -> list[str]:
        """The paths asked for so far."""
        return self._asked.read_text().split()


def _serve_llama(model: str, metrics: str, slots: str) -> None:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.n_ctx = 8192 * 2
    parameters.n_parallel = 2
    parameters.n_gpu_layers = 0
    parameters.cpuparams.n_threads = 1
    parameters.cpuparams_batch.n_threads = 1
    parameters.warmup = False
    parameters.endpoint_metrics = bool(metrics)
    parameters.endpoint_slots = bool(slots)
    server = xllamacpp.Server(parameters)
    print(urlsplit(server.listening_address).port, flush=True)
    sys.stdin.buffer.read()


METRICS = "# TYPE llamacpp:requests_processing gauge\nllamacpp:requests_processing {}\nllamacpp:requests_deferred {}\n"


def _reply(mode: str, path: str) -> Iterator[bytes]:  # noqa: C901  # a list of lies
    """What the liar sends, piece by piece."""
    kind, _, value = mode.partition(" ")
    plain = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
    if kind == "hang":
        time.sleep(30)
    elif kind == "status":
        yield f"HTTP/1.1 {value} No\r\nContent-Length: 2\r\n\r\n{{}}".encode()
    elif kind == "garbage":
        yield b"\xff\xfe\0garbage\r\n" * 50
    elif kind == "half":
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\nllamacpp:requests_proc"
    elif kind == "huge":
        yield plain
        yield from [b"# nothing to see here, go on\n" * 40_000] * 50
    elif kind == "trickle":
        yield plain
        for _ in range(1000):
            yield b"#"
            time.sleep(0.1)
    elif kind == "nonsense":
        yield plain + b"llamacpp:requests_processing NaN\n" + b'[{"is_processing": 7}, null, {}]' + b"\n"
    elif kind == "metrics":
        yield plain + METRICS.format(*value.split()).encode()
    elif kind == "slots" and path == "/metrics":
        yield b"HTTP/1.1 501 Not Implemented\r\nContent-Length: 0\r\n\r\n"
    elif kind == "slots":
        yield plain + json.dumps([{"id": 0, "is_processing": bool(int(each))} for each in value.split()]).encode()


def _lie(mode: Path, asked: Path) -> None:
    def answer(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                piece = client.recv(65536)
                if not piece:
                    return
                head += piece
            path = head.split()[1].decode()
            with asked.open("a") as file:
                file.write(path + "\n")
            for piece in _reply(mode.read_text(), path):
                client.sendall(piece)
            client.shutdown(socket.SHUT_WR)
            client.settimeout(1)
            client.recv(1)

    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        print(server.getsockname()[1], flush=True)
        threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(0)), daemon=True).start()
        while True:
            threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()


if __name__ == "__main__":
    if sys.argv[1] == "llama":
        _serve_llama(*sys.argv[2:5])
    else:
        _lie(Path(sys.argv[2]), Path(sys.argv[3]))
