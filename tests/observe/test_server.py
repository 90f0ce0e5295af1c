"""The metrics over real HTTP."""

import socket
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
    assert b'href="/metrics"' in get(server, "/")[2]
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
