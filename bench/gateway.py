"""The gateway against a direct connection, HAProxy and nginx, in turns: added latency, throughput, new connections.

All four pass TCP on as it comes (nginx: its stream module; HAProxy: mode tcp; the gateway: protocol http and tcp are
the same while the backend is up), with one thread each. What is missing here is left out, and said. Figures are ratios
to the direct connection of the same round, for the machine is shared.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.figures import Figure, percentile
from tests.governor import REPOSITORY, eventually

MB = 1 << 20
WORD = b"x" * 200  # a token of a stream, as servers write it
NGINX_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")


def bench(*, quick: bool) -> list[Figure]:
    """Rounds of all."""
    rounds, turns, bulk_mb, opens = (3, 500, 256, 300) if quick else (7, 3000, 1024, 1500)
    found: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, _server() as backend, contextlib.ExitStack() as stack:
        ways = {"direct": backend, **_relays(Path(folder), backend, stack)}
        for _ in range(rounds):
            for way, port in ways.items():
                times_us = ping(port, turns)
                found.setdefault((way, "median"), []).append(statistics.median(times_us))
                found.setdefault((way, "p99"), []).append(percentile(times_us, 99))
                found.setdefault((way, "bulk"), []).append(bulk(port, bulk_mb))
                found.setdefault((way, "open"), []).append(open_and_ask(port, opens))
    units = {"median": "us", "p99": "us", "bulk": "MB/s", "open": "us"}
    names = {
        "median": "answer to 200 bytes, median",
        "p99": "answer to 200 bytes, p99",
        "bulk": "one stream",
        "open": "connect, ask, close",
    }
    return [
        Figure(
            f"{way}: {names[what]}",
            statistics.median(values),
            units[what],
            baseline=statistics.median(found["direct", what]),
        )
        for what in units
        for (way, each), values in found.items()
        if each == what
    ]


# ---- what is measured ----------------------------------------------------------------------------------------------


def ping(port: int, turns: int) -> list[float]:
    """Us from a small request to its small answer, on one connection."""
    with _connected(port) as client:
        client.sendall(b"e")
        times = []
        for _ in range(turns):
            began = time.perf_counter()
            client.sendall(WORD)
            got = 0
            while got < len(WORD):
                got += len(client.recv(4096))
            times.append((time.perf_counter() - began) * 1e6)
        return times


def bulk(port: int, size_mb: int) -> float:
    """MB/s of one answer."""
    buffer = bytearray(MB)
    with _connected(port) as client:
        began = time.perf_counter()
        client.sendall(b"b" + size_mb.to_bytes(4, "big"))
        got = 0
        while got < size_mb * MB:
            got += client.recv_into(buffer)
        return size_mb / (time.perf_counter() - began)


def open_and_ask(port: int, count: int) -> float:
    """Us for a connection with one small answer."""
    began = time.perf_counter()
    for _ in range(count):
        with _connected(port) as client:
            client.sendall(b"e" + WORD)
            got = 0
            while got < len(WORD):
                got += len(client.recv(4096))
    return (time.perf_counter() - began) / count * 1e6


def _connected(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=60)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


# ---- who is measured -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _server() -> Iterator[int]:
    """Echoes, or pours; a process for each connection's kind is not needed: threads would share one interpreter."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_serve, args=(listener,), daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
        listener.close()


def _serve(listener: socket.socket) -> None:
    blob = bytes(MB)
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, contextlib.suppress(OSError):
            kind = connection.recv(1)
            if kind == b"b":
                for _ in range(int.from_bytes(connection.recv(4), "big")):
                    connection.sendall(blob)
            while kind == b"e" and (data := connection.recv(1 << 16)):
                connection.sendall(data)


def _relays(folder: Path, backend: int, stack: contextlib.ExitStack) -> dict[str, int]:
    """Their ports."""
    found = {}
    starters = {"gateway": _gateway, "haproxy": _haproxy, "nginx": _nginx}
    for name, start in starters.items():
        port = _free_port()
        command = start(folder, port, backend)
        if command is None:
            print(f"{name}: not here, left out (apt-get install {name})", file=sys.stderr)
            continue
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        with (folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        stack.callback(_end, process)
        eventually(lambda port=port: _answers(port), within_s=60, what=f"{name}: {folder}/{name}.log")
        found[name] = port
    return found


def _gateway(folder: Path, port: int, backend: int) -> list[str] | None:
    told = ["--listen", f"127.0.0.1:{port}", "--to", f"127.0.0.1:{backend}", "--ready", "off", "--metrics", "off"]
    return [sys.executable, "-m", "memscaler", "gateway", *told, "--runtime-dir", str(folder)]


def _haproxy(folder: Path, port: int, backend: int) -> list[str] | None:
    program = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    config = folder / "haproxy.cfg"
    config.write_text(
        "global\n  nbthread 1\n  maxconn 2000\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n"
        f"  timeout server 1h\nlisten bench\n  bind 127.0.0.1:{port}\n  server one 127.0.0.1:{backend}\n"
    )
    return [program, "-db", "-f", str(config)] if program else None


def _nginx(folder: Path, port: int, backend: int) -> list[str] | None:
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    config = folder / "nginx.conf"
    module = f"load_module {NGINX_MODULE};\n" if NGINX_MODULE.exists() else ""
    config.write_text(
        f"{module}daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr;\n"
        f"events {{ worker_connections 2000; }}\nstream {{ server {{ listen 127.0.0.1:{port}; tcp_nodelay on; "
        f"proxy_pass 127.0.0.1:{backend}; }} }}\n"
    )
    return [program, "-c", str(config), "-e", "stderr"] if program and (module or _has_stream(program)) else None


def _has_stream(program: str) -> bool:
    told = subprocess.run([program, "-V"], capture_output=True, text=True, check=False).stderr
    return "--with-stream " in told


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), _connected(port) as client:
        client.sendall(b"ex")
        return client.recv(1) == b"x"
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
