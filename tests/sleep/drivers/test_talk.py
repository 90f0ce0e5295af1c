"""An answer is over when all of it is there, also where who sent it leaves the connection open."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from memscaler.sleep.drivers import talk


@pytest.fixture
def answering(tmp_path):
    """Starts a server that sends these pieces and keeps the connection open; its socket."""
    ends = []

    def start(*pieces):
        path = tmp_path / "server.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        over = threading.Event()

        def serve():
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                for piece in pieces:
                    connection.sendall(piece)
                    time.sleep(0.02)
                over.wait(60)

        thread = threading.Thread(target=serve)
        thread.start()
        ends.append((over, thread, listener))
        return path

    yield start
    for over, thread, listener in ends:
        over.set()
        thread.join()
        listener.close()


@pytest.mark.parametrize(
    "pieces",
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",),
        (b"HTTP/1.1 200 OK\r\nContent-Len", b"gth:2\r\n\r", b"\no", b"k"),
    ],
)
def test_a_connection_that_stays_open_holds_up_nothing(answering, pieces):
    """As of servers that speak HTTP/1.1 only, whatever they are asked with."""
    assert talk.ask_unix(answering(*pieces), "GET", "/", time.monotonic() + 30) == talk.Answer(200, "ok")


def test_an_answer_that_does_not_end_is_given_up(answering):
    """One without a length may go on."""
    with pytest.raises(TimeoutError):
        talk.ask_unix(answering(b"HTTP/1.1 200 OK\r\n\r\nok"), "GET", "/", time.monotonic() + 0.5)
