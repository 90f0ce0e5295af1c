"""Server-sent events, and what the server does while pages are open, over real sockets."""

import dataclasses
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import Future
from contextlib import ExitStack, suppress

import pytest

from memscaler.observe import pages, stream
from memscaler.observe.server import MOST_CONNECTIONS, MetricsServer
from memscaler.observe.stream import MOST_VIEWERS
from memscaler.observe.view import view
from tests.governor import eventually


class Governor:
    """Answers with a snapshot, and counts how often it was asked. answers False: it stands still."""

    def __init__(self, snapshot) -> None:
        self.snapshot = snapshot
        self.asked = 0
        self.answers = True

    def fresh(self) -> Future:
        self.asked += 1
        future: Future = Future()
        if self.answers:
            future.set_result(self.snapshot)
        return future


@pytest.fixture
def governor(snapshot):
    return Governor(snapshot)


@pytest.fixture
def server(governor):
    started = MetricsServer("127.0.0.1", 0, governor.fresh)
    started.start()
    yield started
    started.stop()


@pytest.fixture
def seldom(monkeypatch):
    """Whoever is told something within a test is told because something changed."""
    monkeypatch.setattr(stream, "EVERY_S", 600.0)


class Page:
    """A client that reads events."""

    def __init__(self, server: MetricsServer) -> None:
        self._socket = socket.create_connection(server.address, timeout=15)
        self._socket.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self._file = self._socket.makefile("rb")

    def next(self) -> tuple[str, str]:
        """The next event and its data; ("", "") at the end."""
        event = ""
        with suppress(ConnectionError):
            for line in self._file:
                if line.startswith(b"event: "):
                    event = line[7:-1].decode()
                if line.startswith(b"data: "):
                    return event, line[6:-1].decode()
        return "", ""

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()


def get(server, path, **headers):
    """Status, headers and body."""
    url = "http://{}:{}".format(*server.address) + path
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


@pytest.mark.usefixtures("seldom")
def test_a_change_is_told_at_once(server, governor, snapshot):
    """The first view is whole; after a change comes the next one, with new power only."""
    gpu = dataclasses.replace(snapshot.gpus[0], power=((snapshot.at_ns - 10**9, 80.0),))
    governor.snapshot = dataclasses.replace(snapshot, gpus=(gpu,))
    with Page(server) as page:
        event, first = page.next()
        assert (event, json.loads(first)["whole"]) == ("now", True)
        assert json.loads(first)["plots"][gpu.identity.uuid]["power"] == [[snapshot.at_ns / 10**9 - 1, 80.0]]
        now_ns = snapshot.at_ns + 2 * 10**9
        gpu = dataclasses.replace(gpu, state="awake", power=(*gpu.power, (now_ns, 90.0)))
        governor.snapshot = dataclasses.replace(snapshot, at_ns=now_ns, gpus=(gpu,))
        server.changed()
        told = json.loads(page.next()[1])
        assert not told["whole"]
        assert told["lists"]["gpus"][0]["fields"]["state"] == "awake"
        assert told["plots"][gpu.identity.uuid]["power"] == [[now_ns / 10**9, 90.0]]


def test_while_somebody_looks_it_goes_on(server, monkeypatch):
    """Without any change there is a view every now and then."""
    monkeypatch.setattr(stream, "EVERY_S", 0.05)
    with Page(server) as page:
        assert [page.next()[0] for _ in range(3)] == ["now"] * 3


def test_nobody_looks(server, governor, monkeypatch):
    """Then a change costs nothing, and when the last one has gone nobody is asked any more."""
    monkeypatch.setattr(stream, "EVERY_S", 0.05)
    server.changed()
    time.sleep(0.2)
    assert governor.asked == 0
    with Page(server) as page:
        page.next()

    def rests() -> bool:
        before = governor.asked
        time.sleep(0.5)
        return governor.asked == before

    eventually(rests, what="silence")


@pytest.mark.usefixtures("seldom")
def test_many_changes_are_told_together(server, governor, monkeypatch):
    """A client that wakes eight GPUs does not make the governor answer eight times."""
    monkeypatch.setattr(stream, "SETTLE_S", 1.0)
    with Page(server) as page:
        page.next()
        for _ in range(20):
            server.changed()
            time.sleep(0.01)
        page.next()
        assert governor.asked <= 3


def test_changes_that_nobody_can_hear(governor):
    """Before the start and after the end a change is no error."""
    server = MetricsServer("127.0.0.1", 0, governor.fresh)
    server.changed()
    server.start()
    with Page(server) as page:
        page.next()
        server.stop()
        server.changed()


@pytest.mark.usefixtures("seldom")
def test_a_scrape_gets_through(server):
    """With every place taken, and more connections that say nothing than there may be, the metrics are there."""
    with ExitStack() as open_ones:
        watching = [open_ones.enter_context(Page(server)) for _ in range(MOST_VIEWERS)]
        assert {page.next()[0] for page in watching} == {"now"}
        for _ in range(2 * MOST_CONNECTIONS):
            open_ones.enter_context(socket.create_connection(server.address, timeout=10))
        assert get(server, "/metrics")[0] == 200
        server.changed()
        assert {page.next()[0] for page in watching} == {"now"}, "pages were dropped for connections that say nothing"


@pytest.mark.usefixtures("seldom")
def test_one_page_too_many(server):
    """It is told so and when to come again; when another one has gone, it finds a place."""
    with ExitStack() as open_ones:
        watching = [open_ones.enter_context(Page(server)) for _ in range(MOST_VIEWERS)]
        assert {page.next()[0] for page in watching} == {"now"}
        with Page(server) as page:
            assert page.next()[0] == "full"
            assert page.next() == ("", "")
        watching[0].close()
        server.changed()

        def finds_a_place() -> bool:
            with Page(server) as page:
                return page.next()[0] == "now"

        eventually(finds_a_place)


def test_who_does_not_read_is_dropped(server, governor, snapshot, monkeypatch):
    """Others are served meanwhile, and the place is free again."""
    for name, value in (("EVERY_S", 0.0), ("SETTLE_S", 0.0), ("SLOW_S", 0.3), ("MOST_VIEWERS", 2)):
        monkeypatch.setattr(stream, name, value)
    governor.snapshot = dataclasses.replace(snapshot, waiting={f"port {number}": "x" * 50 for number in range(1000)})
    with Page(server), Page(server) as reader:
        reader.next()

        def has_room() -> bool:
            with Page(server) as third:
                return third.next()[0] == "now"

        def drop_is_over() -> bool:
            assert reader.next()[0] == "now"
            return has_room()

        eventually(drop_is_over, within_s=30, what="a free place")


def test_a_silent_governor_is_told(server, governor, monkeypatch):
    """The page says so, and goes on when there is an answer."""
    monkeypatch.setattr("memscaler.observe.server.FRESH_TIMEOUT_S", 0.05)
    monkeypatch.setattr(stream, "EVERY_S", 0.05)
    governor.answers = False
    with Page(server) as page:
        assert page.next()[0] == "silent"
        governor.answers = True
        eventually(lambda: page.next()[0] == "now")


def test_a_page_while_the_governor_is_silent(server, governor, monkeypatch):
    """It comes all the same, and says why it is empty."""
    monkeypatch.setattr("memscaler.observe.server.PAGE_TIMEOUT_S", 0.05)
    governor.answers = False
    status, _, body = get(server, "/")
    assert status == 200
    assert b"The governor does not answer just now." in body


@pytest.mark.usefixtures("seldom")
def test_stop_ends_the_streams(governor):
    """Open pages do not hold up the end."""
    server = MetricsServer("127.0.0.1", 0, governor.fresh)
    server.start()
    with Page(server) as page:
        page.next()
        began_s = time.monotonic()
        server.stop()
        assert time.monotonic() - began_s < 1.5
        assert page.next() == ("", "")
    assert not [thread for thread in threading.enumerate() if thread.name == "metrics"]


def test_a_page_from_elsewhere_takes_no_place(server):
    """A browser says where a request comes from; other sites' pages get no events, nor does anybody under a wrong name."""
    assert get(server, "/events", **{"Sec-Fetch-Site": "cross-site"})[0] == 403
    for path in ("/", "/events", "/page.js", "/page.css", "/icon.svg", "/metrics"):
        assert get(server, path, Host="evil.example")[0] == 403


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css", "/icon.svg", "/metrics", "/nothing"])
def test_headers(server, path):
    """No content is guessed, no script runs that is not ours, nothing is kept without asking."""
    headers = get(server, path)[1]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]


def test_what_a_browser_has_it_need_not_load_again(server):
    """The same ETag is answered with 304; the page itself is never kept."""
    status, headers, body = get(server, "/page.js")
    assert (status, headers["Cache-Control"]) == (200, "no-cache")
    assert body == (pages.FOLDER / "page.js").read_bytes()
    assert get(server, "/page.js", **{"If-None-Match": headers["ETag"]})[0] == 304
    assert get(server, "/page.js", **{"If-None-Match": '"other"'})[0] == 200
    assert get(server, "/")[1]["Cache-Control"] == "no-store"


def test_nothing_is_asked_from_elsewhere():
    """The page names no other address, and has no script or style inside."""
    html = pages.files()["index.html"].body.decode()
    assert "http" not in html.replace("http-equiv", "")
    assert "<style" not in html
    assert " style=" not in html
    assert html.count("<script") == html.count('<script type="module" src="page.js"></script>') == 1


def test_names_from_elsewhere_are_text(snapshot):
    """Whatever a server, a container or a driver calls itself, it is no markup and turns no text around."""
    evil = '"><script>alert(1)</script>\u202e\x1b data-field="gpu"'
    watch = dataclasses.replace(snapshot.watches[0], server=evil, scope=evil)
    gpu = dataclasses.replace(snapshot.gpus[1], identity=dataclasses.replace(snapshot.gpus[1].identity, name=evil))
    html = pages.page(view(dataclasses.replace(snapshot, gpus=(gpu,), watches=(watch,))))
    assert "<script>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "\u202e" not in html
    assert "\x1b" not in html


def test_process_ids_are_left_out(snapshot):
    """They are in sentences of discovery; everybody can read the page."""
    waiting = {"8080": "llama-server (pid 4711) listens on the Unix socket /run/x"}
    now = view(dataclasses.replace(snapshot, waiting=waiting))
    (note,) = [each for each in now.lists["notes"] if each.fields["about"].startswith("8080")]
    assert note.fields["text"] == "llama-server listens on the Unix socket /run/x"
