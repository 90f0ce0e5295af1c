"""Is a server ready? One GET of its health page, all of it within a deadline; nothing in the answer is believed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from memscaler.config.servers import Server
from memscaler.daemon.servers import option
from memscaler.servers.decide import Answered, Verdict

if TYPE_CHECKING:
    import ssl

DEADLINE_S = 5.0
BODY_S = 0.5  # for the server's own words, after its 503
MOST_BYTES = 16384
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "localhost": "127.0.0.1"}  # noqa: S104  # looked for, not bound
# llama-server's, and those of vLLM and SGLang; the last is llama-server's variable.
_OF_TLS = (
    ("--ssl-key-file", "--ssl-keyfile", "LLAMA_ARG_SSL_KEY_FILE"),
    ("--ssl-cert-file", "--ssl-certfile", "LLAMA_ARG_SSL_CERT_FILE"),
)


@dataclass(frozen=True, slots=True)
class Door:
    """Where a server listens. path: of its health page; "" asks nothing, it is ready when it listens.

    encrypted: it speaks TLS there; whose certificate it has is no matter, for it is asked on this machine.
    """

    host: str
    port: int
    path: str = "/health"
    encrypted: bool = False

    @property
    def name(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def door_of(server: Server) -> Door:
    """At the address that its command line names, 127.0.0.1 if it names none, or all."""
    words, environment = (*server.command, *server.options), dict(server.environment)
    host = host_of(words, environment)
    encrypted = is_encrypted(words, environment)
    return Door(_ANY.get(host, host) or "127.0.0.1", server.port or 0, server.health, encrypted)


def is_encrypted(argv: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether llama-server and others are told to speak TLS: with a key and a certificate."""
    return all(option(argv, *names) or environment.get(names[-1]) for names in _OF_TLS)


def host_of(argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """What llama-server and others are told to bind; "" if nothing is said, or no TCP address."""
    host = (option(argv, "--host") or environment.get("LLAMA_ARG_HOST", "")).partition(",")[0]
    return "" if host.endswith(".sock") else host


async def look(door: Door) -> Answered:
    """Ask once. Never raises."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            return await _ask(door)
    except TimeoutError:
        return Answered(Verdict.SILENT, f"no answer on port {door.port} within {DEADLINE_S:g} s")
    except ConnectionRefusedError:
        return Answered(Verdict.SILENT, f"nobody listens on port {door.port} yet")
    except (OSError, EOFError) as error:
        return Answered(Verdict.SILENT, f"port {door.port}: {getattr(error, 'strerror', '') or 'no whole answer'}")


async def _ask(door: Door) -> Answered:
    encryption = unverified() if door.encrypted and door.path else None
    reader, writer = await asyncio.open_connection(door.host, door.port, limit=MOST_BYTES, ssl=encryption)
    try:
        if writer.get_extra_info("sockname") == writer.get_extra_info("peername"):
            # of a port that is given to clients, too, the kernel may give us this one: TCP lets us talk to ourselves
            raise ConnectionRefusedError
        if not door.path:
            return Answered(Verdict.READY)
        writer.write(
            f"GET {door.path} HTTP/1.1\r\nHost: {door.name}\r\nUser-Agent: memscaler\r\n"
            "Accept: */*\r\nConnection: close\r\n\r\n".encode()
        )
        await writer.drain()
        first = await reader.readline()
        status = _status(first)
        if status is None:
            return Answered(Verdict.SILENT, f"what answers on port {door.port} does not speak HTTP")
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            return Answered(Verdict.LOADING, _loading(await _rest(reader)))
        if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            return Answered(Verdict.READY)
        return Answered(Verdict.SILENT, f"answers GET {door.path} with status {status}, not with 200")
    except ValueError:  # a line longer than the limit
        return Answered(Verdict.SILENT, f"what answers on port {door.port} does not speak HTTP")
    finally:
        writer.transport.abort()


def unverified() -> ssl.SSLContext:
    """To talk to a server of this machine, whoever has signed its certificate."""
    import ssl  # only few servers need it: 3 MB

    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def _rest(reader: asyncio.StreamReader) -> bytes:
    """What comes behind the first line; less, if it takes long."""
    data = b"\r\n"
    with contextlib.suppress(TimeoutError, OSError):
        async with asyncio.timeout(BODY_S):
            while len(data) < MOST_BYTES and (more := await reader.read(MOST_BYTES)):
                data += more
    return data


def _status(line: bytes) -> int | None:
    words = line.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not (words[1].isdigit() and len(words[1]) == 3):  # noqa: PLR2004  # HTTP/1.1 200
        return None
    return int(words[1])


def _loading(rest: bytes) -> str:
    """What llama-server says of itself, "Loading model", in its own words if it has any."""
    body = rest.partition(b"\r\n\r\n")[2]
    try:
        said = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return "loading (503)"
    plain = "".join(character if character.isprintable() else " " for character in str(said))
    text = " ".join(plain.split())[:80]
    return text[:1].lower() + text[1:] or "loading (503)"
