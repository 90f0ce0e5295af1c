"""The metrics over real HTTP."""

import http.client
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import Future

import pytest

from memscaler.core.errors import MemscalerError
from memscaler.observe import server as module
from memscaler.observe.metrics import render
from memscaler.observe.server import MetricsServer


@pytest.fixture
def serve():
    """Start servers, and stop them all."""
    started = []

    def start(fresh, host="127.0.0.1", port=0) -> MetricsServer:
        server = MetricsServer(host, port, fresh)
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.stop()


def done(snapshot) -> Future:
    """A snapshot that is there at once."""
    future: Future = Future()
    future.set_result(snapshot)
    return future


def get(server: MetricsServer, path: str, **headers: str):
    """Status, content type and body."""
    host, port = server.address
    url = f"http://[{host}]:{port}{path}" if ":" in host else f"http://{host}:{port}{path}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as response:
            return response.status, response.headers["Content-Type"], response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read()


def test_metrics(serve, snapshot):
    """A scrape gets what the snapshot renders to."""
    server = serve(lambda: done(snapshot))
    assert get(server, "/metrics") == (200, "text/plain; version=0.0.4; charset=utf-8", render(snapshot)[0])
    status, content_type, body = get(server, "/metrics", Accept="application/openmetrics-text")
    assert status == 200
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_index_and_unknown_pages(serve, snapshot):
    """The index leads to the metrics; anything else is not found."""
    server = serve(lambda: done(snapshot))
    assert b'href="metrics"' in get(server, "/")[2]
    assert get(server, "/nothing")[0] == 404


def test_the_snapshot_is_asked_for_at_each_scrape(serve, snapshot, empty):
    """Numbers are of this moment, never those of the scrape before."""
    answers = iter([snapshot, empty])
    server = serve(lambda: done(next(answers)))
    assert b"memscaler_dry_run 0.0" in get(server, "/metrics")[2]
    assert b"memscaler_dry_run 1.0" in get(server, "/metrics")[2]


def test_a_silent_governor_fails_the_scrape(serve, snapshot, monkeypatch):
    """No answer in time is an error, not stale numbers; a late answer disturbs nobody."""
    monkeypatch.setattr(module, "FRESH_TIMEOUT_S", 0.1)
    late: Future = Future()
    server = serve(lambda: late)
    assert get(server, "/metrics")[0] == 503
    late.set_result(snapshot)
    assert get(server, "/metrics")[0] == 200


def test_a_slow_scrape_does_not_hold_up_the_index(serve, monkeypatch):
    """One waiting client does not block another."""
    monkeypatch.setattr(module, "FRESH_TIMEOUT_S", 3)
    server = serve(Future)
    waiting = threading.Thread(target=get, args=(server, "/metrics"))
    waiting.start()
    began = time.monotonic()
    assert get(server, "/")[0] == 200
    assert time.monotonic() - began < 2
    waiting.join()


def test_a_taken_port_is_explained(serve, snapshot):
    """The message names the address and the way out."""
    first = serve(lambda: done(snapshot))
    with pytest.raises(
        MemscalerError, match=r"metrics cannot listen on 127\.0\.0\.1:\d+: Address already in use"
    ) as refusal:
        MetricsServer(*first.address, lambda: done(snapshot))
    assert "--metrics" in refusal.value.hint


def test_an_address_that_is_not_ours():
    """An unknown host is explained too."""
    with pytest.raises(MemscalerError, match=r"metrics cannot listen on 203\.0\.113\.1:1"):
        MetricsServer("203.0.113.1", 1, Future)


def test_ipv6(serve, snapshot):
    """Metrics may listen on IPv6."""
    assert get(serve(lambda: done(snapshot), host="::1"), "/metrics")[0] == 200


def test_stop_frees_the_port(serve, snapshot):
    """After stop nobody listens, and stopping twice does no harm."""
    server = serve(lambda: done(snapshot))
    address = server.address
    get(server, "/")
    server.stop()
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=1)


def test_stop_before_start(snapshot):
    """A server that never ran can be stopped."""
    MetricsServer("127.0.0.1", 0, lambda: done(snapshot)).stop()


def get_as(server: MetricsServer, host: bytes) -> bytes:
    """What a request gets that names this host, or says these headers."""
    with socket.create_connection(server.address, timeout=10) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n" + host + b"Connection: close\r\n\r\n")
        return b"".join(iter(lambda: client.recv(65536), b""))


@pytest.fixture
def named(monkeypatch, tmp_path):
    """A machine called box, with an own file of hosts."""
    hosts = tmp_path / "hosts"
    hosts.write_text(
        "127.0.0.1 localhost\n# box evil.example\n127.0.1.1 box.example.org Box  # the old one\n10.0.0.9 other\n"
    )
    monkeypatch.setattr(module, "HOSTS", hosts)
    monkeypatch.setattr(socket, "gethostname", lambda: "box")
    return hosts


@pytest.mark.parametrize(
    "name",
    [
        "127.0.0.1",
        "127.0.0.1:9823",
        "10.1.2.3:80",
        "[::1]",
        "[::1]:9823",
        "localhost",
        "LOCALHOST:9823",
        "localhost.",
        "box",
        "box:9823",
        "Box.Example.org",
    ],
)
@pytest.mark.usefixtures("named")
def test_our_names(serve, snapshot, name):
    """Addresses, localhost and the names of this machine are served on a loopback address."""
    assert get_as(serve(lambda: done(snapshot)), f"Host: {name}\r\n".encode()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "host",
    [
        b"Host: evil.example\r\n",
        b"Host: evil.example:9823\r\n",
        b"Host: box.evil.example\r\n",
        b"Host: localhost.evil.example\r\n",
        b"Host: 127.0.0.1.evil.example\r\n",
        b"Host: evil.example:127.0.0.1\r\n",
        b"Host: other\r\n",
        b"Host: \r\n",
        b"Host: [evil.example]\r\n",
    ],
)
@pytest.mark.usefixtures("named")
def test_names_that_lead_here(serve, snapshot, host):
    """A page under another name that was made to lead to 127.0.0.1 gets one line, and learns nothing."""
    for ask in (serve(lambda: done(snapshot)), serve(Future)):
        answer = get_as(ask, host)
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert answer.endswith(b"\r\n\r\nthe Host of this request is no name of this machine\n")


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize("hosts", [b"", b"Host: localhost\r\nHost: evil.example\r\n"])
def test_no_host_or_two(serve, snapshot, hosts):
    """Whoever names none, or two, is not served."""
    assert get_as(serve(lambda: done(snapshot)), hosts).split()[1] in (b"400", b"403")


@pytest.mark.usefixtures("named")
def test_names_where_everybody_may_ask(serve, snapshot):
    """What listens for other machines is reached under names that we need not know."""
    server = serve(lambda: done(snapshot), host="0.0.0.0")
    assert get_as(server, b"Host: gpu.example.com:9823\r\n").startswith(b"HTTP/1.1 200 ")


@pytest.mark.usefixtures("named")
def test_names_on_ipv6(serve, snapshot):
    """::1 is a loopback address too."""
    server = serve(lambda: done(snapshot), host="::1")
    assert get_as(server, b"Host: evil.example\r\n").startswith(b"HTTP/1.1 403 ")
    assert get_as(server, b"Host: [::1]:9823\r\n").startswith(b"HTTP/1.1 200 ")


def test_nothing_can_be_changed(serve, snapshot):
    """GET and HEAD are all that there is."""
    host, port = serve(lambda: done(snapshot)).address
    for method, status in (("HEAD", 200), ("POST", 405), ("PUT", 405), ("DELETE", 405), ("OPTIONS", 405)):
        asked = http.client.HTTPConnection(host, port, timeout=10)
        asked.request(method, "/metrics")
        assert asked.getresponse().status == status
        asked.close()


def test_garbage_is_not_logged():
    """Nothing is written about what is no request: anybody could fill the log."""
    code = (
        "import socket\nfrom memscaler.observe.server import MetricsServer\n"
        "server = MetricsServer('127.0.0.1', 0, None)\nserver.start()\n"
        "client = socket.create_connection(server.address)\n"
        "client.sendall(b'GARBAGE\\r\\n\\r\\n')\nclient.recv(65536)\nserver.stop()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert (result.stdout, result.stderr) == ("", "")
