"""What `memscaler serve` says to whoever started it: the URL, the state, what was saved; little else."""

import os
import pty
import signal
import ssl
import subprocess
import urllib.request

import pytest

from memscaler.cli.client import Client
from tests.governor import eventually, governing
from tests.serve.conftest import program

pytestmark = pytest.mark.timeout(600)


def test_the_governors_lines_are_asked_for(serve):
    """Only its warnings and errors come by themselves, and the savings at the end."""
    with serve("--idle-after", "1s") as served:
        served.wait_ready()
        eventually(lambda: served.board.locks, within_s=20, what="parked")
        asked = Client(str(served.runtime_dir))
        eventually(lambda: asked.status()["gpus"][0]["parked_s"] > 0, within_s=20, what="it has counted")
        assert served.stop() == 130
        for line in served.said.splitlines():
            assert line.startswith("memscaler: "), line
        assert "memscaler: its GPUs were parked for " in served.said.splitlines()[-1]
        assert " Wh" in served.said.splitlines()[-1]
    with serve("--idle-after", "1s", "--log-level", "info") as served:
        served.wait_ready()
        served.stop()
        assert '"event": "memscaler.started"' in served.said
    with serve("--idle-after", "1s", env={"MEMSCALER_LOG_LEVEL": "info"}) as served:
        served.wait_ready()
        served.stop()
        assert '"event": "memscaler.started"' in served.said


def test_the_state_stands_on_a_terminal(serve):
    """In its last line, drawn anew when it is another one."""
    ours, theirs = pty.openpty()
    with serve("--idle-after", "1s", terminal=theirs, env={"TERM": "xterm"}) as served:
        os.close(theirs)
        said = b""
        while b"\r\x1b[Kgpu0 parked" not in said:
            said += os.read(ours, 4096)
        served.process.send_signal(signal.SIGINT)
        while b"its GPUs were parked for" not in said:
            said += os.read(ours, 4096)
        assert served.wait() == 130
        os.close(ours)


def test_what_has_left_the_group_ends_with_a_killed_keeper(serve, programs):
    """A session of its own, or a daemon: found by what it has inherited, also while its GPU's driver is slow."""
    (programs / "llama-server").rename(programs / "llama-server.real")
    away = "setsid sleep 1000 & (setsid sh -c 'trap \"\" TERM; sleep 1000 & wait; sleep 1000' &)"
    program(programs / "llama-server", f'{away}; {programs}/llama-server.real "$@"; true')
    with serve() as served:
        served.wait_ready()
        eventually(lambda: len(served.pids("sleep 1000")) >= 3, what="its children")
        os.kill(served.keeper, signal.SIGKILL)
        assert served.wait() == 1
        served.assert_nothing_is_left()


@pytest.fixture
def certificate(tmp_path):
    """Signed by nobody but itself: the words for llama-server."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=example"]
    subprocess.run([*words, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return ("--ssl-key-file", str(key), "--ssl-cert-file", str(certificate))


TLS = """
import http.server, ssl, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"data": [{"id": "secret"}]}')
def told(name):
    return sys.argv[sys.argv.index(name) + 1]
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(told("--port"))), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(told("--ssl-cert-file"), told("--ssl-key-file"))
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


def test_a_server_with_a_certificate(serve, programs, certificate):
    """It is asked over https, and the address says so."""
    (programs / "tls.py").write_text(TLS)
    program(programs / "llama-server", f'exec /usr/bin/python3 {programs}/tls.py "$@"')
    with serve("--", *certificate) as served:
        served.wait_ready()
        assert "Serving secret at https://127.0.0.1:" in served.told
        assert "curl --insecure https://" in served.told
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        address = served.address.replace("http:", "https:")
        assert urllib.request.urlopen(f"{address}/health", timeout=10, context=context).status == 200
        assert served.stop() == 130


def test_beside_a_governor_that_discovers_by_its_flag(serve, tmp_path):
    """The file says nothing of it; it is asked."""
    with (
        governing(tmp_path / "run", "a40", "--discover", by_connections=False),
        serve() as served,
    ):
        served.wait_ready()
        assert "does not watch port" not in served.said
        assert served.stop() == 130
