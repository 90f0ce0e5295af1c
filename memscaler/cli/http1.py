"""As much of HTTP/1.1 as a client of the control socket needs: one request on a connection, which the answer ends.

The standard library's http.client would do, but it loads TLS and the packages for e-mail first: a tenth of what a small
command takes.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Self

HEAD_BYTES = 64 * 1024
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5]\d\d)(?: [^\r\n]*)?\r?\n")


class BadAnswer(Exception):
    """It is not HTTP/1.1, or ends too early."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The status of an answer, and its body, which can be read once. A context that ends the connection."""

    status: int
    body: BinaryIO

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.body.close()


def send(connection: socket.socket, method: str, route: str, body: bytes | None) -> None:
    """Send a request. Raise OSError."""
    head = f"{method} {route} HTTP/1.1\r\nHost: localhost\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    connection.sendall(head.encode() + b"\r\n" + (body or b""))


def receive(connection: socket.socket) -> Answer:
    """The beginning of the answer. It keeps the connection open until it is closed. Raise OSError or BadAnswer."""
    stream = connection.makefile("rb")
    try:
        return Answer(_status(stream), stream)
    except BaseException:
        stream.close()
        raise


def _status(stream: BinaryIO) -> int:
    """Read as far as the body."""
    match = _STATUS.fullmatch(stream.readline(HEAD_BYTES))
    if match is None:
        raise BadAnswer("this is no HTTP")
    left = HEAD_BYTES
    while (line := stream.readline(left)) not in (b"\r\n", b"\n"):  # the body is whatever comes before the end
        left -= len(line)
        if left <= 0 or not line.endswith(b"\n"):
            raise BadAnswer("the headers do not end")
    return int(match[1])
