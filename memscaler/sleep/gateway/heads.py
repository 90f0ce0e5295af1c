"""As much of HTTP/1 as a gateway needs: the first line of a request that is held, and an answer of its own. Pure.

Bytes that are passed on are never read: keep-alive, streams and WebSockets are between client and server.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus

MOST_LINE_BYTES = 8 * 1024
BODY_BYTES = 64 * 1024  # of an answer that is remembered
TOLD_BY = "X-Memscaler-Gateway"

_LINE = re.compile(rb"([A-Z]{1,20}) ([!-~\x80-\xff]{1,8000}) HTTP/1\.[01]")
_BEGINS = re.compile(rb"[A-Z]{1,20}(?: |\Z)")
_ORIGIN = re.compile(r"https?://[^/?#]*", re.IGNORECASE)


class Odd(Enum):
    """What is no request line."""

    PARTIAL = "partial"  # so far it may become one
    FOREIGN = "foreign"  # TLS, HTTP/2, another protocol


@dataclass(frozen=True, slots=True)
class Line:
    """Of a request. path: without a query."""

    method: str
    path: str


def first_line(data: bytes) -> Line | Odd:
    """What a connection begins with. Empty lines before a request are overlooked, as RFC 9112 (2.2) wants it."""
    text = data.lstrip(b"\r\n")
    line, end, _ = text.partition(b"\n")
    if not end:
        may = len(data) < MOST_LINE_BYTES and (not text or _BEGINS.match(text))
        return Odd.PARTIAL if may else Odd.FOREIGN
    match = _LINE.fullmatch(line.removesuffix(b"\r"))
    if match is None:
        return Odd.FOREIGN
    target = _ORIGIN.sub("", match[2].decode("latin-1"))
    return Line(match[1].decode(), re.split("[?#]", target, maxsplit=1)[0] or "/")


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a path answered with 200 when the backend was up."""

    kind: str
    body: bytes


def without_folders(text: str) -> str:
    """For clients: what a file is called may help them; where this machine keeps it is for the log."""
    return _FOLDERS.sub("", text)


def refusal(message: str, code: str, retry_after_s: float, *, head: bool = False) -> bytes:
    """503, with an error as OpenAI's API has it. head: the request was HEAD, which gets no body."""
    error = {"message": message, "type": "server_error", "param": None, "code": code}
    body = json.dumps({"error": error}).encode() + b"\n"
    fields = {"Content-Type": "application/json", "Retry-After": str(max(1, math.ceil(retry_after_s)))}
    return _answer(HTTPStatus.SERVICE_UNAVAILABLE, {**fields, TOLD_BY: code}, body, head=head)


def repeated(answer: Remembered, *, head: bool = False) -> bytes:
    """What the backend said when it was up."""
    return _answer(HTTPStatus.OK, {"Content-Type": answer.kind, TOLD_BY: "asleep"}, answer.body, head=head)


def _answer(status: HTTPStatus, fields: dict[str, str], body: bytes, *, head: bool) -> bytes:
    fields |= {"Content-Length": str(len(body)), "Cache-Control": "no-store", "Connection": "close"}
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + (b"" if head else body)


def request(path: str, host: str) -> bytes:
    """A question of our own. HTTP/1.0: the answer comes in one piece, and the connection ends with it."""
    lines = [f"GET {path} HTTP/1.0", f"Host: {host}", "User-Agent: memscaler-gateway", "Accept: */*"]
    return ("\r\n".join([*lines, "Connection: close"]) + "\r\n\r\n").encode("latin-1")


_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^\s/]+/)+(?=[^\s/])")
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [^\r\n]*)?\r?\n")
_KIND = re.compile(rb"(?im)^content-type:[ \t]*([ -~]{1,200}?)[ \t]*\r?$")
_LENGTH = re.compile(rb"(?im)^content-length:[ \t]*([0-9]{1,9})[ \t]*\r?$")
_CHUNKED = re.compile(rb"(?im)^transfer-encoding:")


def status_of(answer: bytes) -> int:
    """0: it is none of HTTP."""
    match = _STATUS.match(answer)
    return int(match[1]) if match else 0


def remembered(answer: bytes) -> Remembered | None:
    """A whole answer with 200, or None for one that cannot be repeated."""
    head, end, body = answer.partition(b"\r\n\r\n")
    length = _LENGTH.search(head)
    if status_of(answer) != HTTPStatus.OK or not end or _CHUNKED.search(head) or len(body) > BODY_BYTES:
        return None
    if length is not None and int(length[1]) != len(body):
        return None
    kind = _KIND.search(head)
    return Remembered(kind[1].decode() if kind else "application/octet-stream", body)
