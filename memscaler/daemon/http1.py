"""As much of HTTP/1.1 as the control socket speaks: one request on a connection, one JSON document in return.

No pipelining, chunks, compression or upgrades: whatever follows the request is not read, and what is not understood is
refused. So the limits are exact, and a root daemon has no parser in it that does more than it is asked for.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from memscaler.core.errors import MemscalerError

HEAD_BYTES = 8 * 1024
BODY_BYTES = 64 * 1024

_LINE = re.compile(rb"([A-Z]{1,16}) (/[!-~]{0,255}) HTTP/1\.[01]")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LENGTH = re.compile(rb"[0-9]{1,9}")


class Refused(MemscalerError):
    """A request that is answered with this HTTP status."""

    def __init__(self, status: HTTPStatus, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status


@dataclass(frozen=True, slots=True)
class Head:
    """All of a request but its body. length: of that, in bytes."""

    method: str
    path: str
    length: int


async def read_head(reader: asyncio.StreamReader) -> Head:
    """Raise Refused if it is no request or longer than the reader's limit, EOFError if nothing comes."""
    try:
        text = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as error:
        status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        raise Refused(status, f"the request line and headers are longer than {HEAD_BYTES} bytes") from error
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            raise
        raise Refused(HTTPStatus.BAD_REQUEST, "the request ends in its headers") from error
    line, *fields = text[:-4].split(b"\r\n")
    match = _LINE.fullmatch(line)
    if match is None:
        raise Refused(HTTPStatus.BAD_REQUEST, "this is not HTTP/1.1")
    return Head(match[1].decode(), match[2].decode(), _length(fields))


async def read_body(reader: asyncio.StreamReader, head: Head) -> bytes:
    """Raise Refused if it is too long or ends early."""
    if head.length > BODY_BYTES:
        raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is longer than {BODY_BYTES} bytes")
    try:
        return await reader.readexactly(head.length)
    except asyncio.IncompleteReadError as error:
        raise Refused(HTTPStatus.BAD_REQUEST, "the body is shorter than its Content-Length") from error


def answer(status: HTTPStatus, document: Mapping[str, object]) -> bytes:
    """A whole answer."""
    body = line(document)
    return _answer_head(status, b"Content-Length: %d\r\n" % len(body)) + body


def open_answer(document: Mapping[str, object]) -> bytes:
    """An answer that is not over before the connection is; one line of it."""
    return _answer_head(HTTPStatus.OK, b"") + line(document)


def line(document: Mapping[str, object]) -> bytes:
    """One line of JSON: a body, or what follows in an answer that is not over."""
    return json.dumps(document, allow_nan=False).encode() + b"\n"


def _answer_head(status: HTTPStatus, fields: bytes) -> bytes:
    line = f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode()
    return line + b"Content-Type: application/json\r\nConnection: close\r\n" + fields + b"\r\n"


def _length(fields: list[bytes]) -> int:
    """The Content-Length; 0 without one."""
    lengths = []
    for field in fields:
        # no pattern for the whole: one that backtracks over a long value would keep the interpreter from the governor
        name, colon, value = field.partition(b":")
        if not colon or _NAME.fullmatch(name) is None:
            raise Refused(HTTPStatus.BAD_REQUEST, "a header is malformed")
        if name.lower() == b"transfer-encoding":
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "the body needs a Content-Length")
        if name.lower() == b"content-length":
            lengths.append(value.strip(b" \t"))
    if not lengths:
        return 0
    if len(lengths) > 1 or _LENGTH.fullmatch(lengths[0]) is None:
        raise Refused(HTTPStatus.BAD_REQUEST, "the Content-Length is malformed")
    return int(lengths[0])
