"""What may be asked of a running daemon through its control socket: as data, and as the JSON in which it is written.

The server (control.py) puts an Asked into the loop's mailbox. The loop fulfils `answer` with a document, or sets a
MemscalerError as its exception. The documents:

    Status                    the whole state, see docs/operating.md
    Verify                    what is to be set on each GPU against what the driver says now, see verify.py
    HoldWanted, PauseWanted   {"id", "gpus": ["gpu0"], "expires_in_s": seconds or null}
    UnholdWanted, ResumeWanted   {"ended": [{"id", "owner", "reason"}]}
    ParkWanted                {"gpus": [{"gpu", "state", "reason"}]}, state "parked": it is
    ReleaseWanted             {}
    ReloadWanted              {"changes": [a line for each]}
    WakeWanted, SleepWanted, SuspendWanted   what the sleeper says; sleep_requests.py

The id of a hold is what ends it: TiedEnded carries it when the client of a tied hold is gone.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from memscaler.config import schema
from memscaler.core.errors import UsageError
from memscaler.daemon.sleep_requests import STAGES, SUSPEND_WORDS, SleepWanted, SuspendWanted, WakeWanted

SOCKET = schema.CONTROL_SOCKET
HINT = "see docs/operating.md for what may be asked"
MOST_GPUS = 64
MOST_SERVERS = 64
FAR_UNIX_S = 1e11
NAME_CHARS = 128
REASON_CHARS = 200
SHORTEST_S, LONGEST_S = 1.0, 366 * 86400.0
_DISTURBING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # control, direction, half a character, ends of lines

Document = dict[str, Any]
Checks = Mapping[str, Callable[[str, object], Any]]
Wanted = TypeVar("Wanted")


@dataclass(frozen=True, slots=True)
class Peer:
    """Who asks, as the kernel saw it when the connection was made. name: the user's, or the uid."""

    pid: int
    uid: int
    gid: int
    name: str


@dataclass(frozen=True, slots=True)
class Status:
    """Everything that the daemon knows."""


@dataclass(frozen=True, slots=True)
class Verify:
    """Whether every GPU is as it is meant to be, by a fresh look."""


@dataclass(frozen=True, slots=True)
class HoldWanted:
    """Keep GPUs awake. gpus: as the operator wrote them, (): all; for_s None: until told otherwise.

    tied: until the connection ends that asked for it.
    """

    gpus: tuple[str, ...] = ()
    for_s: float | None = None
    reason: str = ""
    tied: bool = False


@dataclass(frozen=True, slots=True)
class UnholdWanted:
    """End holds of operators: those on these GPUs, that with this id; neither: all."""

    gpus: tuple[str, ...] = ()
    id: str = ""


@dataclass(frozen=True, slots=True)
class ParkWanted:
    """Park now, without waiting for the idle time. gpus (): all."""

    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PauseWanted:
    """Keep every GPU awake. for_s None: until ResumeWanted."""

    for_s: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ResumeWanted:
    """Govern again, after a pause or a release."""


@dataclass(frozen=True, slots=True)
class ReleaseWanted:
    """Let go of the driver."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class ReloadWanted:
    """Read the configuration anew."""


READS = (Status, Verify)
"""What changes nothing; everything else is for who may change something."""
FOR_READERS = (WakeWanted,)
"""But for this, which undoes only what we did ourselves."""
PATIENT = (WakeWanted, SleepWanted)
"""What may take as long as a server takes to start."""
Request = (
    Status
    | Verify
    | HoldWanted
    | UnholdWanted
    | ParkWanted
    | PauseWanted
    | ResumeWanted
    | ReleaseWanted
    | ReloadWanted
    | WakeWanted
    | SleepWanted
    | SuspendWanted
)


@dataclass(frozen=True, slots=True)
class Asked:
    """For the mailbox: a request, by whom, and where its answer goes."""

    request: Request
    peer: Peer
    answer: Future[Document]


@dataclass(frozen=True, slots=True)
class TiedEnded:
    """For the mailbox: the client of a tied hold is gone."""

    lease_id: str


ROUTES: Mapping[str, type[Request]] = {
    "/v1/status": Status,
    "/v1/verify": Verify,
    "/v1/hold": HoldWanted,
    "/v1/unhold": UnholdWanted,
    "/v1/park": ParkWanted,
    "/v1/pause": PauseWanted,
    "/v1/resume": ResumeWanted,
    "/v1/release": ReleaseWanted,
    "/v1/reload": ReloadWanted,
    "/v1/wake": WakeWanted,
    "/v1/sleep": SleepWanted,
    "/v1/suspend": SuspendWanted,
}


def parse(kind: type[Request], body: bytes) -> Request:
    """The request that a body means; an empty body is an empty object. Raise UsageError with a sentence."""
    return read(kind, body, _CHECKS)


def read(kind: type[Wanted], body: bytes, checks: Checks) -> Wanted:
    """The same for any dataclass. checks: by the name of the field."""
    document = _document(body)
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]  # it is one
    for key in document:
        if key not in known:
            refuse(_unknown(key, known))
    return kind(**{key: checks[key](key, raw) for key, raw in document.items()})


# ---- JSON ----------------------------------------------------------------------------------------------------------


def _document(body: bytes) -> Document:
    try:
        document = json.loads(body.decode().strip() or "{}", object_pairs_hook=_once, parse_constant=_no_number)
    except RecursionError:
        refuse("the body is nested too deeply")
    except ValueError as error:
        refuse(f"the body is not JSON: {error}")
    if not isinstance(document, dict):
        refuse("the body is not a JSON object")
    return document


def _once(pairs: Sequence[tuple[str, object]]) -> Document:
    document = dict(pairs)
    if len(document) != len(pairs):
        keys = [key for key, _ in pairs]
        refuse(f"{_quoted(next(key for key in keys if keys.count(key) > 1))} is given twice")
    return document


def _no_number(word: str) -> NoReturn:
    refuse(f"{word} is not a number")


def _unknown(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key[:NAME_CHARS], known, n=1)
    return f"unknown key {_quoted(key)}" + (f" (did you mean {near[0]!r}?)" if near else "")


# ---- values --------------------------------------------------------------------------------------------------------


def _gpus(key: str, raw: object) -> tuple[str, ...]:
    if not isinstance(raw, list):
        refuse(f'{key} is a list, as in ["gpu0"]')
    if len(raw) > MOST_GPUS:
        refuse(f"{key} has more than {MOST_GPUS} names")
    return tuple(_name(key, name) for name in raw)


def _for_s(key: str, raw: object) -> float | None:
    if raw is None:
        return None
    # bounds before float(): a whole number of any size is JSON
    if isinstance(raw, bool) or not isinstance(raw, int | float) or not SHORTEST_S <= raw <= LONGEST_S:
        refuse(f"{key} is a number of seconds from {SHORTEST_S:g} to {LONGEST_S:.0f}, or null")
    return float(raw)


def _servers(key: str, raw: object) -> tuple[str, ...]:
    if not isinstance(raw, list):
        refuse(f'{key} is a list, as in ["chat"]')
    if len(raw) > MOST_SERVERS:
        refuse(f"{key} has more than {MOST_SERVERS} names")
    return tuple(_name(key, name) for name in raw)


def _one_of(words: Sequence[str]) -> Callable[[str, object], str]:
    def check(key: str, raw: object) -> str:
        return raw if isinstance(raw, str) and raw in words else refuse(f"{key} is one of {', '.join(words)}")

    return check


def _stage(key: str, raw: object) -> str:
    return "" if raw is None else _one_of(STAGES)(key, raw)


def _unix_s(key: str, raw: object) -> float | None:
    if raw is None:
        return None
    if isinstance(raw, bool) or not isinstance(raw, int | float) or not 0 <= raw <= FAR_UNIX_S:
        refuse(f"{key} is a number of seconds since 1970, or null")
    return float(raw)


def _name(key: str, raw: object) -> str:
    name = text(key, raw, NAME_CHARS)
    return name or refuse(f"{key} has an empty name")


def _id(key: str, raw: object) -> str:
    return text(key, raw, NAME_CHARS)


def reason(key: str, raw: object) -> str:
    """Why somebody wants something. Raise UsageError."""
    return text(key, raw, REASON_CHARS)


def text(key: str, raw: object, most: int) -> str:
    """Words for people and for logs, of so many characters. Raise UsageError."""
    if not isinstance(raw, str):
        refuse(f"{key} wants text")
    if len(raw) > most:
        refuse(f"{key} is longer than {most} characters")
    if any(unicodedata.category(char) in _DISTURBING for char in raw):
        refuse(f"{key} has control characters in it")
    return raw


def truth(key: str, raw: object) -> bool:
    """Raise UsageError."""
    return raw if isinstance(raw, bool) else refuse(f"{key} is true or false")


_CHECKS: Checks = {
    "gpus": _gpus,
    "for_s": _for_s,
    "reason": reason,
    "tied": truth,
    "id": _id,
    "servers": _servers,
    "stage": _stage,
    "do": _one_of(SUSPEND_WORDS),
    "force": truth,
    "wake_unix_s": _unix_s,
}


def _quoted(key: str) -> str:
    return repr(key if len(key) <= NAME_CHARS else key[:NAME_CHARS] + "...")


def refuse(sentence: str) -> NoReturn:
    """Raise UsageError."""
    raise UsageError(sentence, hint=HINT)
