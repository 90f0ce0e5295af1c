"""A tiny model, and a llama-server on the PATH: a program of its own that becomes our engine, as a package's would."""

import os
import sys
from pathlib import Path

import pytest

from demo import model as tiny
from memscaler.servers.programs import ENGINE
from tests.serve.served import serving


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Readable for every user."""
    folder = tmp_path_factory.mktemp("model")
    path = folder / "tiny.gguf"
    tiny.write(path)
    for each in (folder, *folder.parents):
        if each.owner() == "root" and not each.stat().st_mode & 0o001:
            each.chmod(each.stat().st_mode | 0o011)
    return path


@pytest.fixture
def programs(tmp_path):
    """A folder for the PATH, with llama-server in it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program(folder / "llama-server", f'exec {sys.executable} -P {ENGINE} "$@" -t 1 --no-warmup')
    return folder


HEALTHY = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"data": [{"id": "mine"}]}')
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def for_everybody(programs):
    """A llama-server that every user can run: ours, its library and its model may be in root's home. It only listens."""
    (programs / "healthy.py").write_text(HEALTHY)
    program(programs / "llama-server", f'exec /usr/bin/python3 {programs}/healthy.py "$@"')


def program(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def serve(tmp_path, model, programs):
    """Starts `memscaler serve` with this model on simulated boards."""

    def start(*arguments, boards="a40", env=None, **more):
        environment = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "MEMSCALER_METRICS": "off",
            "TMPDIR": str(tmp_path),  # for the logs that are kept
            **(env or {}),
        }
        for name in ("SUDO_UID", "SUDO_GID", "SUDO_USER", "SUDO_COMMAND"):
            if name not in (env or {}):
                environment.pop(name, None)
        words = ["--model", str(more.pop("model", model)), "--simulate", boards, "--runtime-dir", str(tmp_path / "run")]
        if "--port" not in arguments:
            words += ["--port", "0"]
        return serving(tmp_path, [*words, *arguments], environment, **more)

    return start


@pytest.fixture
def slow(programs):
    """A llama-server that loads for ever, as it says: 503 from its health page. It heeds SIGTERM."""
    program(programs / "llama-server", f'exec {sys.executable} {Path(__file__).with_name("loading.py")} heeds "$@"')


@pytest.fixture
def stubborn(programs):
    """The same, and nothing but SIGKILL ends it."""
    program(programs / "llama-server", f'exec {sys.executable} {Path(__file__).with_name("loading.py")} ignores "$@"')
