"""The client's half of HTTP, against answers of all kinds over a real socket."""

import socket

import pytest

from memscaler.cli.http1 import HEAD_BYTES, BadAnswer, receive, send


@pytest.fixture
def ends():
    """Two ends of a connection: ours, the other one."""
    ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.settimeout(10)
    with ours, other:
        yield ours, other


def test_a_request(ends):
    """It has a length exactly if it has a body."""
    ours, other = ends
    send(ours, "GET", "/v1/status", None)
    assert other.recv(4096) == b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n"
    send(ours, "POST", "/v1/hold", b"{}")
    assert other.recv(4096).endswith(b"Content-Length: 2\r\n\r\n{}")


def test_an_answer_outlives_its_socket(ends):
    """The body can be read after the connection object is closed: line by line, or to the end."""
    ours, other = ends
    other.sendall(b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\r\none\ntwo")
    answer = receive(ours)
    ours.close()
    other.close()
    with answer:
        assert (answer.status, answer.body.readline(), answer.body.read()) == (403, b"one\n", b"two")


def test_the_end_of_an_answer_is_the_end_of_the_connection(ends):
    """Who is done with an answer leaves the other side alone."""
    ours, other = ends
    other.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    answer = receive(ours)
    ours.close()
    other.settimeout(0.2)
    with pytest.raises(TimeoutError):
        other.recv(1)
    with answer:
        pass
    assert other.recv(1) == b""


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"hello\r\n",
        b"HTTP/1.1 999 What\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: cl",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * HEAD_BYTES,
        b"x" * (2 * HEAD_BYTES),
    ],
)
def test_what_is_no_answer(ends, text):
    """Is said to be none, whatever its length."""
    ours, other = ends
    other.settimeout(0.2)
    try:
        other.sendall(text)
    except TimeoutError:  # more than the socket holds; what was sent is enough
        assert len(text) > HEAD_BYTES
    other.shutdown(socket.SHUT_WR)
    with pytest.raises(BadAnswer):
        receive(ours)
