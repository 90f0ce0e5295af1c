"""Clients of a server that is not there: held, turned away or answered; and one wake for all of them."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.asked import short_folder
from tests.gateway.gateways import Governor, Server, Web, everything, free_port, get, read_head, running
from tests.governor import eventually

GET = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


class Stage:
    """A gateway before a server that is stopped, and a governor that may start it."""

    def __init__(self, folder, port):
        self.folder, self.port, self.web = folder, port, Web()
        self.server = None
        self.governor = None

    def start(self):
        if self.server is None:
            self.server = Server(self.web, self.port)

    def stop(self):
        if self.server is not None:
            self.server.__exit__()
            self.server = None


@contextlib.contextmanager
def stage(folder, settings="", *arguments, wake=None):
    """settings: of the [[gateway]]; wake: what the governor does, with the stage; a text is why it does not."""
    with short_folder() as place:
        made = Stage(folder, free_port())
        made.governor = Governor(place / "control.sock", lambda _: wake(made) if wake else None)
        folder.mkdir(exist_ok=True)
        config = folder / "config.toml"
        config.write_text(
            f'[[gateway]]\nlisten = "127.0.0.1:0"\nto = "127.0.0.1:{made.port}"\nserver = "{made.port}"\nname = "g"\n{settings}'
        )
        told = ["--config", str(config), "--runtime-dir", str(place), "--metrics", "127.0.0.1:0", *arguments]
        try:
            with running(folder, *told) as gateway:
                yield made, gateway
        finally:
            made.stop()
            made.governor.close()


def started(made):
    made.start()


def test_a_stopped_server_is_brought_back_once_for_all(tmp_path):
    """The governor is asked once, by name; all are answered as if nothing had been."""

    def wake(made):
        time.sleep(1)
        made.start()

    with stage(tmp_path, wake=wake) as (made, gateway):
        with ThreadPoolExecutor(30) as pool:
            answers = list(pool.map(lambda nth: get(gateway, f"/{nth}"), range(30)))
        assert [status for status, _, _ in answers] == [200] * 30
        assert sorted(json.loads(body)["path"] for _, _, body in answers) == sorted(f"/{nth}" for nth in range(30))
        assert made.governor.woken == [[str(made.port)]]
        assert gateway.metric("wakes_total", result="done") == 1
        assert gateway.metric("wake_seconds_count") == 1
        assert gateway.metric("backend_state", state="up") == 1
        assert gateway.metric("waiting_clients") == 0
        made.stop()  # and again
        assert get(gateway, "/again")[0] == 200
        assert len(made.governor.woken) == 2


def test_whether_it_is_ready_is_not_asked_for_each_connection(tmp_path):
    """A server that listens and still loads lets nobody in; one that is up is believed."""

    def wake(made):
        made.web.loading = True
        made.start()
        threading.Timer(1.5, lambda: setattr(made.web, "loading", False)).start()

    with stage(tmp_path, wake=wake) as (made, gateway):
        began = time.monotonic()
        assert get(gateway, "/v1/models")[0] == 200
        assert time.monotonic() - began > 1.4
        asked = made.web.asked.count("/health")
        assert 2 <= asked < 20
        with gateway.connect() as kept:  # while this lives, the server is the one that was ready
            kept.sendall(b"GET /kept HTTP/1.1\r\n\r\n")
            assert b" 200 " in read_head(kept)
            asked = made.web.asked.count("/health")
            for _ in range(10):
                assert get(gateway, "/v1/models")[0] == 200
            time.sleep(1.2)
            assert get(gateway, "/v1/models")[0] == 200
        assert made.web.asked.count("/health") == asked
        assert made.web.asked.count("/v1/models") == 12


@pytest.mark.parametrize("kept", ["no connection", "a connection"])
def test_a_server_that_began_anew_by_itself_and_loads_shows_no_503(tmp_path, kept):
    """Nobody connected while it was down, so nothing has failed; whoever comes then waits."""
    with stage(tmp_path) as (made, gateway), contextlib.ExitStack() as stack:
        made.start()
        assert get(gateway, "/v1/models")[0] == 200
        if kept == "a connection":
            client = stack.enter_context(gateway.connect())
            client.sendall(b"GET /kept HTTP/1.1\r\n\r\n")
            assert b" 200 " in read_head(client)
            assert client.recv(100)
        made.stop()
        made.web.loading = True
        if kept == "a connection":
            client.sendall(b"GET /last HTTP/1.0\r\n\r\n")  # which that server ends
            everything(client)
        made.start()
        time.sleep(1.1)  # so long it is believed to be what it was
        threading.Timer(1.5, lambda: setattr(made.web, "loading", False)).start()
        assert [get(gateway, f"/{nth}")[0] for nth in range(3)] == [200] * 3


def test_a_server_that_is_busy_is_not_kept_from_its_clients(tmp_path):
    """One that answers nobody while it computes: no answer to whether it is ready is no reason to hold clients."""
    busy = threading.Event()

    def serve(connection):
        head = read_head(connection)
        if b"/health" in head and busy.is_set():
            connection.recv(1)
            return
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with stage(tmp_path) as (made, gateway), Server(serve, made.port):
        assert get(gateway, "/first")[0] == 200
        busy.set()
        time.sleep(1.1)
        began = time.monotonic()
        assert get(gateway, "/second")[0] == 200
        assert time.monotonic() - began < 10
        assert not gateway.events("wake.failed")


def test_a_body_is_held_back_and_arrives_whole(tmp_path):
    """A client that sends while the server wakes: the kernel keeps what it can, and stops the client there."""
    go = threading.Event()

    def wake(made):
        go.wait(20)
        made.start()

    with stage(tmp_path, 'wait = "40s"', wake=wake) as (_, gateway), gateway.connect() as client:
        before_kb = gateway.rss_kb()
        size = 30 << 20
        head = b"POST /big HTTP/1.1\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % size
        sent = []

        def send():
            client.sendall(head + bytes(size))
            sent.append(True)

        thread = threading.Thread(target=send)
        thread.start()
        time.sleep(1)
        assert not sent
        assert gateway.rss_kb() - before_kb < 4096
        go.set()
        assert b" 200 " in read_head(client)
        thread.join()


def test_an_honest_refusal_for_who_cannot_wait(tmp_path):
    """503 as OpenAI's API says it, with Retry-After; and the wake goes on meanwhile."""
    with stage(tmp_path, 'hold = false\nretry_after = "7s"', wake=started) as (made, gateway):
        status, fields, body = get(gateway, "/v1/chat/completions", method="POST")
        assert (status, fields["retry-after"], fields["content-type"]) == (503, "7", "application/json")
        error = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == "waking"
        eventually(lambda: get(gateway, "/v1/models")[0] == 200)
        assert made.governor.woken == [[str(made.port)]]
        made.stop()
        status, fields, body = get(gateway, "/x", method="HEAD")
        assert (status, body) == (503, b"")


def test_a_wait_has_an_end(tmp_path):
    """HTTP clients are told why; others are closed."""
    with stage(tmp_path, 'wait = "1s"') as (_, gateway):
        status, _, body = get(gateway, "/")
        assert status == 503
        assert "within 1 s" in json.loads(body)["error"]["message"]
        with gateway.connect() as client:
            client.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc")  # TLS
            assert everything(client) == b""
        assert gateway.metric("refused_total", reason="timeout") == 2


def test_a_governor_that_cannot_is_said_to_be_the_reason(tmp_path):
    """The client hears that much; what the governor said is for the log."""
    with stage(tmp_path, 'wait = "2s"', wake=lambda _: "model /srv/chat.gguf: no such file") as (_, gateway):
        status, _, body = get(gateway, "/")
        assert status == 503
        message = json.loads(body)["error"]["message"]
        assert message == "the server did not wake within 2 s: its governor could not bring it back"
        assert "no such file" in gateway.events("wake.not_asked")[0]["err"]


def stuck(_):
    """As the governor answers for a server that does not come back."""
    why = "chat does not come back: chat cannot be started: model /srv/models/chat.gguf: no such file"
    return {"error": why, "servers": [{"name": "chat", "was": "stop-server", "up": False}]}


def test_what_the_governor_knows_is_told_at_once(tmp_path):
    """A 503 with why, and not the folders of this machine; others are closed; the log has all."""
    with stage(tmp_path, 'wait = "60s"', wake=stuck) as (_, gateway):
        began = time.monotonic()
        status, fields, body = get(gateway, "/")
        assert status == 503
        assert time.monotonic() - began < 20
        assert json.loads(body)["error"]["message"] == (
            "the server could not be woken: chat does not come back: chat cannot be started: model chat.gguf: no such file"
        )
        assert fields["retry-after"] == "15"
        assert fields["x-memscaler-gateway"] == "failed"
        assert "/srv/models/chat.gguf" in gateway.events("wake.not_back")[0]["err"]
        assert gateway.events("wake.failed")[0]["after_s"] < 20
        with gateway.connect() as client:
            client.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc")  # TLS
            assert everything(client) == b""


def test_a_server_that_was_repaired_is_reached_soon(tmp_path):
    """The next client after a moment has the governor asked again, long before wake_pause is over, and is held."""
    repaired = threading.Event()

    def wake(made):
        if not repaired.is_set():
            return stuck(made)
        made.start()
        return None

    with stage(tmp_path, 'wake_pause = "10m"\nwait = "60s"', wake=wake) as (_, gateway):
        assert get(gateway, "/")[0] == 503
        repaired.set()
        eventually(lambda: get(gateway, "/")[0] == 200, within_s=60)


def test_a_server_that_comes_back_by_itself_in_the_pause_is_found(tmp_path):
    """Nobody wakes it then; but somebody may start it."""
    with stage(tmp_path, 'wake_timeout = "1s"\nwake_pause = "10m"') as (made, gateway):
        assert get(gateway, "/")[0] == 503
        made.start()
        eventually(lambda: get(gateway, "/")[0] == 200, within_s=60)
        assert made.governor.woken == [[str(made.port)]]


def test_a_wake_that_fails_is_not_tried_for_each_client(tmp_path):
    """Those who wait are told; in the pause nobody is woken; then again."""
    settings = 'wake_timeout = "1s"\nwake_pause = "2s"'
    with stage(tmp_path, settings) as (made, gateway):
        with ThreadPoolExecutor(10) as pool:
            answers = list(pool.map(lambda _: get(gateway, "/"), range(10)))
        assert all(status == 503 and b"could not be woken" in body for status, _, body in answers)
        assert get(gateway, "/")[0] == 503
        assert made.governor.woken == [[str(made.port)]]
        assert gateway.metric("wakes_total", result="failed") == 1
        time.sleep(2.1)
        get(gateway, "/")
        assert len(made.governor.woken) == 2


def test_health_checks_wake_nothing(tmp_path):
    """By path: they get what the server said last, or a refusal; and the server's own answer when it is up."""
    settings = 'no_wake_paths = ["/health", "/v1/models", "/metrics"]'
    with stage(tmp_path, settings, wake=started) as (made, gateway):
        status, fields, _ = get(gateway, "/health?x=1")
        assert status == 503
        assert fields["x-memscaler-gateway"] == "asleep"
        assert get(gateway, "/v1/models", method="HEAD")[0] == 503
        assert not made.governor.woken
        assert get(gateway, "/v1/completions", method="POST")[0] == 200
        eventually(lambda: "/metrics" in made.web.asked)
        assert get(gateway, "/health")[0] == 200
        made.stop()
        status, fields, body = get(gateway, "/v1/models?all")
        assert (status, json.loads(body)) == (200, {"path": "/v1/models"})
        assert fields["x-memscaler-gateway"] == "asleep"
        assert get(gateway, "/v1/models", method="POST")[0] == 503
        assert len(made.governor.woken) == 1


def test_a_server_that_sleeps_and_listens_is_not_woken_by_pollers(tmp_path):
    """Asleep in one of memscaler's stages: the governor says so, and no poller connects."""
    with stage(tmp_path, 'no_wake_paths = ["/health"]', wake=started) as (made, gateway):
        assert get(gateway, "/v1/models")[0] == 200
        eventually(lambda: "/health" in made.web.asked)
        accepted = made.server.accepted
        made.governor.sleeping = [{"name": "llama", "port": made.port, "stage": "checkpoint"}]
        time.sleep(2.1)  # so long its last word is believed
        status, fields, _ = get(gateway, "/health")
        assert (status, fields["x-memscaler-gateway"]) == (200, "asleep")
        assert made.server.accepted == accepted
        assert get(gateway, "/v1/models")[0] == 200
        assert made.server.accepted > accepted


def test_clients_that_wake_nothing(tmp_path):
    """By source."""
    with stage(tmp_path, 'no_wake_from = ["127.0.0.2", "fd00::/8"]', wake=started) as (made, gateway):
        with socket.create_connection(gateway.address, 10, source_address=("127.0.0.2", 0)) as client:
            client.sendall(GET)
            assert read_head(client).startswith(b"HTTP/1.1 503 ")
        assert not made.governor.woken
        assert get(gateway, "/")[0] == 200


def test_who_says_nothing_wakes_nothing(tmp_path):
    """A port scan, a check whether the port is open, a browser that connects ahead."""
    with stage(tmp_path, wake=started) as (made, gateway):
        gateway.connect().close()
        with gateway.connect() as silent:
            time.sleep(0.5)
            assert not made.governor.woken
            silent.sendall(GET)
            assert b" 200 " in read_head(silent)


def test_too_many_wait(tmp_path):
    """The others are told at once."""
    with stage(tmp_path, 'most_waiting = 3\nwait = "20s"') as (made, gateway), contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(gateway.connect()).sendall(GET)
        eventually(lambda: gateway.metric("waiting_clients") == 3)
        status, _, body = get(gateway, "/")
        assert (status, json.loads(body)["error"]["code"]) == (503, "full")
        made.start()


@pytest.mark.parametrize("how", ["reset", "closed"])
def test_who_goes_while_held_is_not_passed_on(tmp_path, how):
    """Its request would be computed for nobody."""
    go = threading.Event()

    def wake(made):
        go.wait(20)
        made.start()

    with stage(tmp_path, wake=wake) as (made, gateway):
        client = gateway.connect()
        client.sendall(b"GET /lost HTTP/1.1\r\n\r\n")
        eventually(lambda: gateway.metric("waiting_clients") == 1)
        time.sleep(1.2)
        if how == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        eventually(lambda: gateway.metric("connections") == 0)
        go.set()
        assert get(gateway, "/found")[0] == 200
        assert "/lost" not in made.web.asked


def test_a_half_closed_client_is_held_too(tmp_path):
    """It has said all, and waits for its answer."""

    def wake(made):
        time.sleep(2)
        made.start()

    with stage(tmp_path, wake=wake) as (_, gateway), gateway.connect() as client:
        client.sendall(b"GET /half HTTP/1.0\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        assert b"/half" in everything(client)


def test_no_governor(tmp_path):
    """It says so, and lets clients in as soon as somebody else has started the server."""
    with stage(tmp_path, 'wait = "30s"') as (made, gateway):
        made.governor.close()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(get, gateway, "/")
            eventually(lambda: gateway.events("wake.not_asked"))
            made.start()
            assert answer.result()[0] == 200


def test_a_dry_run_wakes_nothing(tmp_path):
    """It passes on, and says what it would do."""
    with stage(tmp_path, 'wait = "1s"', "--dry-run", wake=started) as (made, gateway):
        assert get(gateway, "/")[0] == 503
        assert gateway.events("wake.would_ask")
        assert not made.governor.woken
        made.start()
        assert get(gateway, "/")[0] == 200


def test_a_path_that_is_not_there_keeps_nobody_out(tmp_path):
    """Not every server has /health."""

    def not_found(connection):
        while head := read_head(connection):
            status = b"404 Not Found" if b"/health" in head else b"200 OK"
            connection.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")

    with stage(tmp_path) as (made, gateway):
        with Server(not_found, made.port):
            assert get(gateway, "/")[0] == 200
        assert gateway.events("backend.ready_unknown")
