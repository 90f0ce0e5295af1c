"""Detached work: a generation that nobody waits for any more keeps its GPU awake. Our own questions keep nobody awake."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import time
from pathlib import Path

import pytest

from demo import model
from tests.daemon import servers
from tests.daemon.servers import Liar
from tests.daemon.timeline import Timeline, now_ns
from tests.governor import connect, eventually, governing, listener, port_of

pytestmark = pytest.mark.usefixtures("quick_settings")
MS, SECOND = 1_000_000, 1_000_000_000


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    model.write(path)
    return path


@contextlib.contextmanager
def governed(tmp_path, port, *arguments, idle_after="300ms", **more):
    """(timeline, governor)."""
    ports = ["--port", f"{port}:gpu0", "--idle-after", idle_after]
    with governing(tmp_path, "a40", *ports, *arguments, by_connections=False, **more) as governor:
        yield Timeline(governor.driver), governor


def skipped(governor, word=""):
    """Why parks were thought better of."""
    return [event["reason"] for event in governor.events("gpu.park_skipped") if word in event["reason"]]


def value(text, name):
    """The sum of a metric over its labels."""
    found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
    assert found, name
    return sum(map(float, found))


# ---- what the GPU says ---------------------------------------------------------------------------------------------


def test_busy_gpu_is_not_parked_although_its_client_has_gone(tmp_path):
    """Until it is done; the log says why."""
    with listener() as server, governed(tmp_path, port_of(server)) as (timeline, governor):
        timeline.wait_parked()
        with connect(server) as client:
            served = server.accept()[0]
            client.sendall(bytes(2000))
            timeline.wait_awake()
            timeline.board.set_utilization(90)
        gone_ns = now_ns()
        served.close()
        eventually(lambda: skipped(governor, "utilisation is 90%"))
        time.sleep(1.5)
        assert timeline.parks(gone_ns) == []
        timeline.board.set_utilization(0)
        timeline.wait_parked()


def test_work_that_begins_while_parked_wakes(tmp_path, monkeypatch):
    """Nobody is connected, but the GPU works: the next sample finds it."""
    monkeypatch.setenv("MEMSCALER_SAMPLE_EVERY", "1s")
    with listener() as server, governed(tmp_path, port_of(server)) as (timeline, governor):
        timeline.wait_parked()
        timeline.board.set_utilization(50)
        timeline.wait_awake(10)
        eventually(lambda: any("the GPU works" in event["reason"] for event in governor.events("gpu.woken")))
        timeline.board.set_utilization(0)
        timeline.wait_parked()


# ---- what llama.cpp says -------------------------------------------------------------------------------------------


def processing(port):
    """Requests under way, asked over a connection that counts like anybody's."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/slots")
        return sum(slot["is_processing"] for slot in json.loads(connection.getresponse().read()))


@pytest.mark.parametrize("word", ["metrics", "slots"])
def test_llama_cpp_says_that_it_works(tmp_path, tiny_model, word):
    """A long answer of which only the beginning was sent looks like one that is over; llama.cpp knows better.

    Nobody reads the utilisation of this simulated GPU: it is 0.
    """
    with (
        servers.llama(tmp_path, tiny_model, metrics=word == "metrics") as server,
        governed(tmp_path, server.port, idle_after="200ms") as (timeline, governor),
    ):
        timeline.wait_parked()
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=100)
        wanted = {"prompt": "Once", "n_predict": 2500, "ignore_eos": True, "stream": True}
        connection.request("POST", "/completion", json.dumps(wanted), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        begun_ns = now_ns()
        answer.read()
        done_ns = now_ns()
        connection.close()
        assert timeline.parked_ns(begun_ns, done_ns) == 0
        timeline.wait_parked()
        print({"took s": (done_ns - begun_ns) / SECOND, "asked": skipped(governor, "llama.cpp on port")})


def test_llama_cpp_whose_client_has_gone(tmp_path, tiny_model):
    """As long as it says that it works on the request, nothing is parked; soon after, it is."""
    with servers.llama(tmp_path, tiny_model) as server, governed(tmp_path, server.port) as (timeline, _):
        timeline.wait_parked()
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            wanted = json.dumps({"prompt": "Once", "n_predict": 6000, "ignore_eos": True, "stream": False}).encode()
            client.sendall(b"POST /completion HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
            client.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(wanted), wanted))
            timeline.wait_awake()
            time.sleep(0.5)
            assert processing(server.port) == 1
        at_work_ns = now_ns()
        end = time.monotonic() + 60
        while processing(server.port) and time.monotonic() < end:
            at_work_ns = now_ns()
            time.sleep(0.1)
        assert [at for at in timeline.parks() if at < at_work_ns] == timeline.parks()[:1]
        timeline.wait_parked(30)


# ---- what others say, and do not say -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("metrics 1 0", "works on 1 request"),
        ("metrics 0 3", "works on 3 requests"),
        ("slots 0 1", "works on 1 request"),
        ("hang", "does not answer"),
        ("trickle", "does not answer"),
    ],
)
def test_whoever_works_or_does_not_answer_keeps_its_gpu_awake(tmp_path, mode, reason):
    """Until it says that it is done, the next time it is asked."""
    with Liar(tmp_path, mode) as server, governed(tmp_path, server.port) as (timeline, governor):
        eventually(lambda: skipped(governor, reason), what=reason)  # said once, however often it is asked
        asked = len(server.asked)
        eventually(lambda: len(server.asked) >= asked + 2, what="asked again")
        assert timeline.spans == []
        server.says("metrics 0 0")
        timeline.wait_parked()


HARMLESS = ["metrics 0 0", "slots 0 0", "status 404", "status 401", "status 501", "garbage", "half", "nonsense", "huge"]


@pytest.mark.parametrize("mode", HARMLESS)
def test_whoever_has_nothing_to_say_is_no_hindrance(tmp_path, mode):
    """No answer, a wrong one, or a huge one: the GPU parks as if nobody had been asked."""
    with Liar(tmp_path, mode) as server, governed(tmp_path, server.port) as (timeline, governor):
        timeline.wait_parked()
        assert server.asked
        assert skipped(governor, "llama.cpp") == []
        assert governor.events("actuator.failed") == []
        with socket.create_connection(("127.0.0.1", server.port)):
            timeline.wait_awake()
        timeline.wait_parked()
        assert governor.stop() == 0


def test_client_that_comes_while_the_server_is_asked(tmp_path):
    """The park is called off: nothing is locked when a client has come meanwhile."""
    with Liar(tmp_path, "hang") as server, governed(tmp_path, server.port) as (timeline, _):
        eventually(lambda: server.asked)
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nX: " + bytes(100))  # the rest is to come
            server.says("metrics 0 0")
            begin_ns = now_ns()
            time.sleep(2)
            assert timeline.parked_ns(begin_ns, now_ns()) == 0
        timeline.wait_parked()


@pytest.mark.parametrize("mode", ["hang", "trickle"])
def test_end_does_not_wait_for_an_answer(tmp_path, mode):
    """SIGTERM while a server is asked: the end comes in time, and well."""
    with Liar(tmp_path, mode) as server, governed(tmp_path, server.port) as (_, governor):
        asked = len(eventually(lambda: server.asked))
        eventually(lambda: len(server.asked) >= asked)
        begin_s = time.monotonic()
        assert governor.stop() == 0
        assert time.monotonic() - begin_s < 3


# ---- our own questions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["metrics 0 0", "metrics 1 0", "half", "status 404"])
def test_own_probes_are_nobodys_work(tmp_path, mode):
    """Several a second, also such as fail half way: not one connection, activity or ring is counted."""
    with (
        Liar(tmp_path, mode) as server,
        governed(tmp_path, server.port, "--metrics", "127.0.0.1:0", idle_after="100ms") as (timeline, governor),
    ):
        for _ in range(0 if mode == "metrics 1 0" else 5):
            timeline.wait_parked()
            timeline.board.set_utilization(50)  # wakes it at the next sample, which a scrape takes
            eventually(lambda: governor.metrics() and not timeline.board.locks, within_s=15)
            timeline.board.set_utilization(0)
        eventually(lambda: len(server.asked) >= 5, within_s=20)
        scrape = governor.metrics()
        for name in ("accepts", "closes", "ignored"):
            assert value(scrape, f"memscaler_port_{name}_total") == 0
        assert value(scrape, "memscaler_port_connections") == 0
        assert value(scrape, "memscaler_doorbell_rings_total") == 0
        assert value(scrape, "memscaler_reconcile_corrections_total") == 0
        assert not [event for event in governor.events("gpu.woken") if event["reason"] in ("connection", "ledger")]
        if mode != "metrics 1 0":
            timeline.wait_parked()


def test_nobody_is_asked_if_it_is_not_wanted(tmp_path, monkeypatch):
    """probe_servers = false."""
    monkeypatch.setenv("MEMSCALER_PROBE_SERVERS", "false")
    with Liar(tmp_path, "metrics 1 0") as server, governed(tmp_path, server.port) as (timeline, _):
        timeline.wait_parked()
        assert server.asked == []


def test_only_known_servers_are_asked(tmp_path):
    """Whoever else listens may take a question for a request."""
    with listener() as server, governed(tmp_path, port_of(server)) as (timeline, governor):
        timeline.wait_parked()
        server.settimeout(0.5)
        with pytest.raises(TimeoutError):
            server.accept()
        assert Path(f"/proc/{governor.pid}").exists()
