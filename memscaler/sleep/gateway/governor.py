"""Asking the governor of this machine to bring a server back: HTTP over its control socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from memscaler.core.errors import MemscalerError
from memscaler.sleep.gateway import heads

MOST_BYTES = 8 << 20
LOOK_S = 2.0  # so long a status is believed


class Refused(MemscalerError):
    """By the governor. document: its answer."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        super().__init__(f"the governor refuses: {document.get('error', 'no reason given')}")
        self.document = document


class NotBack(MemscalerError):
    """The governor has tried to bring the server back, and knows why it does not come. The message: why."""


class Governor:
    """path: of its control socket. Belongs to one event loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[float, dict[str, Any]] = (float("-inf"), {})

    async def wake(self, server: str, timeout_s: float) -> None:
        """Raise MemscalerError with why it does not; NotBack if it cannot now."""
        try:
            await self._ask("POST", "/v1/wake", {"servers": [server]}, timeout_s)
        except Refused as error:
            tried = error.document.get("servers")
            if isinstance(tried, list) and any(isinstance(each, dict) and each.get("up") is False for each in tried):
                raise NotBack(str(error.document.get("error") or "its governor could not bring it back")) from error
            raise

    async def status(self) -> dict[str, Any]:
        """What it says of itself. Raise MemscalerError, whose cause is the OSError if nobody can be asked."""
        return await self._ask("GET", "/v1/status", None, LOOK_S)

    async def is_asleep(self, server: str) -> bool:
        """Whether memscaler has put it into a stage. False if nobody can say."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._seen[0] > LOOK_S:
            try:
                document = await self.status()
            except MemscalerError:
                document = {}
            self._seen = (now_s, document)
        return any(_is_asleep(each, server) for each in _servers(self._seen[1]))

    async def _ask(self, method: str, route: str, body: Mapping[str, object] | None, within_s: float) -> dict[str, Any]:
        try:
            async with asyncio.timeout(within_s):
                answer = await self._told(method, route, b"" if body is None else json.dumps(body).encode())
        except TimeoutError as error:
            raise MemscalerError("the governor does not answer") from error
        except OSError as error:
            why = error.strerror or str(error)
            raise MemscalerError(f"the governor cannot be asked: {self._path}: {why}") from error
        head, _, text = answer.partition(b"\r\n\r\n")
        try:
            document = json.loads(text)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise MemscalerError("the governor broke off its answer")
        if heads.status_of(head + b"\r\n") != HTTPStatus.OK:
            raise Refused(document)
        return document

    async def _told(self, method: str, route: str, body: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(self._path))
        try:
            head = f"{method} {route} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            answer = b""
            while len(answer) < MOST_BYTES and (part := await reader.read(1 << 16)):
                answer += part
            return answer
        finally:
            writer.close()


def _servers(document: Mapping[str, Any]) -> list[Any]:
    sleep = document.get("sleep")
    servers = sleep.get("servers") if isinstance(sleep, dict) else None
    return servers if isinstance(servers, list) else []


def _is_asleep(told: Any, server: str) -> bool:
    if not isinstance(told, dict) or server not in (told.get("name"), str(told.get("port"))):
        return False
    return bool(told.get("stage")) or bool(told.get("asleep_by"))
