"""Asking a process of ours that runs: HTTP over its Unix socket. Most ask the daemon."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

from memscaler.cli import http1
from memscaler.cli.options import settings_anyway
from memscaler.cli.output import SCHEMA, plain
from memscaler.config.schema import CONTROL_SOCKET
from memscaler.core.errors import ConfigError, DaemonNotRunning, MemscalerError, PermissionMissing, UsageError

TIMEOUT_S = 20  # the daemon gives up on a request after 5 s, on an answer after 10
MOST_BYTES = 8 << 20  # of an answer

Document = dict[str, Any]
_ERRORS: dict[int, type[MemscalerError]] = {
    HTTPStatus.BAD_REQUEST: UsageError,
    HTTPStatus.FORBIDDEN: PermissionMissing,
    HTTPStatus.UNPROCESSABLE_ENTITY: ConfigError,
}


class Asker:
    """Asks whoever listens at this socket.

    Every method raises DaemonNotRunning if nobody does, PermissionMissing for who may not ask, UsageError, ConfigError
    or another MemscalerError for what is refused.
    """

    WHO = "the daemon"
    LIVES = "see its log; `systemctl status memscaler` tells whether it lives"

    def __init__(self, path: Path, patience_s: float = TIMEOUT_S) -> None:
        """patience_s: how long an answer may take."""
        self._path = path
        self._patience_s = patience_s

    def told(self, method: str, route: str, body: Mapping[str, object] | None = None) -> Document:
        """A whole answer."""
        answer, text = self._ask(method, route, body)
        with answer:
            return self._document(text)

    @contextmanager
    def lines(self, route: str) -> Iterator[Iterator[Document]]:
        """An answer that goes on, line by line, until it is enough or the other side ends."""
        answer, text = self._ask("GET", route, None, is_line=True)
        with answer:
            yield self._lines(answer, text)

    def _lines(self, answer: http1.Answer, text: bytes) -> Iterator[Document]:
        while text:
            yield self._document(text)
            try:
                text = _read(answer, is_line=True)
            except OSError as error:
                raise MemscalerError(f"{self.WHO} does not answer", hint=self.LIVES) from error

    def _not_running(self) -> MemscalerError:
        return DaemonNotRunning(f"memscaler does not run: nobody listens on {self._path}")

    def _ask(
        self, method: str, route: str, body: Mapping[str, object] | None, *, is_line: bool = False
    ) -> tuple[http1.Answer, bytes]:
        """A good answer, which keeps the connection open until it is closed, and its body; is_line: the first line."""
        connection = self._connected()
        try:
            with suppress(BrokenPipeError):  # it has answered before it has read everything
                http1.send(connection, method, route, None if body is None else json.dumps(body).encode())
            answer = http1.receive(connection)
            is_good = answer.status == HTTPStatus.OK
            text = _read(answer, is_line=is_good and is_line)
        except (OSError, http1.BadAnswer) as error:
            raise MemscalerError(f"{self.WHO} does not answer", hint=self.LIVES) from error
        finally:
            connection.close()  # the answer keeps it open for itself
        if is_good:
            return answer, text
        with answer:
            raise self._refusal(answer.status, text)

    def _connected(self) -> socket.socket:
        """Raise MemscalerError with what to do."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Python's own timeout would make a full queue an error at once; unix(7), EAGAIN
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", TIMEOUT_S, 0))
        try:
            connection.connect(str(self._path))
        except OSError as error:
            connection.close()
            raise self._unreachable(error) from error
        connection.settimeout(self._patience_s)
        return connection

    def _unreachable(self, error: OSError) -> MemscalerError:
        match error:
            case FileNotFoundError() | ConnectionRefusedError() | NotADirectoryError():
                return self._not_running()
            case PermissionError():
                hint = "root may do everything, members of group memscaler may look"
                return PermissionMissing(f"you may not ask {self.WHO}: no access to {self._path}", hint=hint)
            case BlockingIOError():
                return MemscalerError(f"{self.WHO} does not answer: too many wait already", hint="see its log")
            case _:
                return MemscalerError(f"cannot ask {self._path}: {error.strerror or error}")

    def _document(self, text: bytes) -> Document:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise MemscalerError(f"{self.WHO} broke off its answer", hint="see its log") from error
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise MemscalerError(f"{self.WHO} is of another version than this command", hint="restart it")
        return document

    def _refusal(self, status: int, text: bytes) -> MemscalerError:
        kind = _ERRORS.get(status, MemscalerError)
        try:
            told = self._document(text)
        except MemscalerError:
            told = {}
        lines = str(told.get("error", f"{self.WHO} refuses, with HTTP status {status}")).splitlines()
        return kind("\n".join(map(plain, lines)), hint=plain(told.get("hint", "")))


class Client(Asker):
    """Asks the daemon of a runtime directory; None: the configured one."""

    def __init__(self, runtime_dir: str | None, patience_s: float = TIMEOUT_S) -> None:
        super().__init__(settings_anyway({"runtime_dir": runtime_dir}).runtime_dir / CONTROL_SOCKET, patience_s)

    def status(self) -> Document:
        """The status document."""
        return self.told("GET", "/v1/status")

    def verify(self) -> Document:
        """What is to be set on each GPU against what the driver says, by a fresh look."""
        return self.told("GET", "/v1/verify")

    def change(self, what: str, **wanted: object) -> Document:
        """Ask for a change: the last part of its route, and the body's keys."""
        return self.told("POST", f"/v1/{what}", wanted)

    @contextmanager
    def held(self, **wanted: object) -> Iterator[Document]:
        """A hold that lasts as long as the context, or as this process if that is shorter."""
        answer, text = self._ask("POST", "/v1/hold", {**wanted, "tied": True}, is_line=True)
        with answer:
            yield self._document(text)


def _read(answer: http1.Answer, *, is_line: bool) -> bytes:
    """The body, or its first line. Raise OSError if it stalls; then the answer is closed."""
    try:
        return answer.body.readline(MOST_BYTES) if is_line else answer.body.read(MOST_BYTES)
    except BaseException:
        answer.body.close()
        raise
