"""What may be asked of a running supervisor through its control socket, as data and as the JSON in which it is written.

    GET  /v1/servers         List        {"user", "pid", "started_unix_s", "servers": [a ServerReport each]}
    GET  /v1/servers/NAME    Show        {"report": a ServerReport, "description": as it runs, "pending": changes}
    GET  /v1/follow          Follow      List's document, again at every change: lines, until the client goes
    GET  /v1/pending         Pending     what a dry run of Apply answers
    POST /v1/apply           Apply       {"added", "removed": [names], "changed": {name: [what]}, "dry_run"}
    POST /v1/reload          Reload      the same, with "dry_run": true: the descriptions are read, no server is touched
    POST /v1/enable ...      Enable ...  {"servers": [names]}; also disable, start, restart, stop (with a reason)

What takes long is begun, not waited for: Follow tells how it goes. Values of environment variables are never told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from memscaler.core.errors import UsageError
from memscaler.daemon import requests
from memscaler.daemon.requests import Checks, refuse

HINT = "see docs/servers.md for what may be asked"
MOST_SERVERS = 1000
NAME_CHARS = 128
SERVERS = "/v1/servers"


@dataclass(frozen=True, slots=True)
class List:
    """All servers."""


@dataclass(frozen=True, slots=True)
class Follow:
    """All servers, again and again."""


@dataclass(frozen=True, slots=True)
class Show:
    """All about one."""

    name: str = ""


@dataclass(frozen=True, slots=True)
class Pending:
    """What Reload answers, for whoever may look."""


@dataclass(frozen=True, slots=True)
class Apply:
    """Read the descriptions, and make what runs like them: only what differs. dry_run: only say what differs."""

    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Reload:
    """Read the descriptions, and say what differs."""


@dataclass(frozen=True, slots=True)
class Enable:
    """Start these, also after the next start of the supervisor, although their descriptions may say otherwise."""

    servers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Disable:
    """Stop these, and leave them so, also after the next start of the supervisor."""

    servers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Start:
    """Start these, also those that failed."""

    servers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop these until somebody starts them. reason: for those who look, "" is an operator's wish."""

    servers: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Restart:
    """Stop these and start them again."""

    servers: tuple[str, ...] = ()


Request = List | Follow | Show | Pending | Apply | Reload | Enable | Disable | Start | Stop | Restart
Verb = Enable | Disable | Start | Stop | Restart
READS: tuple[type[Request], ...] = (List, Follow, Show, Pending)
ROUTES: Mapping[str, type[Request]] = {
    SERVERS: List,
    f"{SERVERS}/NAME": Show,
    "/v1/follow": Follow,
    "/v1/pending": Pending,
    "/v1/apply": Apply,
    "/v1/reload": Reload,
    "/v1/enable": Enable,
    "/v1/disable": Disable,
    "/v1/start": Start,
    "/v1/stop": Stop,
    "/v1/restart": Restart,
}


def split(path: str) -> tuple[str, str]:
    """The route of a path, and the server that it names."""
    name = path.removeprefix(f"{SERVERS}/")
    if name == path or "/" in name:
        return path, ""
    return f"{SERVERS}/NAME", unquote(name)


def parse(kind: type[Request], body: bytes, name: str = "") -> Request:
    """The request that a body means. Raise UsageError with a sentence."""
    try:
        if kind is Show:
            return Show(requests.text("the name", name, NAME_CHARS))
        request = requests.read(kind, body, _CHECKS)
        if isinstance(request, Verb) and not request.servers:
            refuse("servers is missing: which ones?")
    except UsageError as error:
        raise UsageError(str(error), hint=HINT) from error
    return request


def _servers(key: str, raw: object) -> tuple[str, ...]:
    if not isinstance(raw, list):
        refuse(f'{key} is a list, as in ["qwen"]')
    if len(raw) > MOST_SERVERS:
        refuse(f"{key} has more than {MOST_SERVERS} names")
    return tuple(dict.fromkeys(requests.text(key, name, NAME_CHARS) for name in raw))


_CHECKS: Checks = {"servers": _servers, "dry_run": requests.truth, "reason": requests.reason}
