"""What the supervisors of model servers say in their files, read when somebody asks, and believed in nothing.

A supervisor is any user's process. So its file is opened without following links, without waiting (a FIFO has no say),
up to a size; it has to belong to the user that it speaks for, and every value is checked. Whatever is wrong becomes a
notice. The name of a server is a label of metrics: of two that claim one, the first counts.
"""

from __future__ import annotations

import json
import math
import os
import pwd
import re
import stat
from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from memscaler.core.servers import REPORT, SCHEMA, SUPERVISOR, ServerReport, ServerState, Supervised, SupervisorReport

ROOT = Path("/run")
FOLDER = SUPERVISOR  # how those of units begin; below user/UID of who runs one by hand
MOST_BYTES = 256 << 10
MOST_SUPERVISORS = 64
MOST_SERVERS = 256
MOST_CLAIMS = 4  # of one supervisor on the names of others that are told
MOST_GPUS = 64
LONGEST = 1024  # characters of a text
MAX_PORT, MAX_PID = 65535, 1 << 22
_NAME = re.compile("[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
_FOLDER_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC

Fields = Mapping[str, Any]
Admit = Callable[[Path, SupervisorReport], str]


class _Wrong(Exception):
    """Why a file is not shown."""


def look(root: Path = ROOT) -> tuple[SupervisorReport, ...]:
    """What is told now. Never raises."""
    return look_closely(root).supervisors


def look_closely(root: Path = ROOT) -> Supervised:
    """With what is not shown, and why. root: where the supervisors' runtime directories are. Never raises."""
    one = Look(root)
    one.run()
    return one.seen()


class Look:
    """One at all supervisors, which another thread may see unfinished and give up. at: the folder it is in."""

    def __init__(self, root: Path, avoided: Container[Path] = (), admit: Admit | None = None) -> None:
        """avoided: folders that did not answer. admit: says why a report is not shown, "" if it is."""
        self._root, self._avoided, self._admit = root, avoided, admit
        self._found: list[SupervisorReport] = []
        self._gone: list[tuple[str, int]] = []
        self._notices: list[str] = []
        self.at: Path | None = None
        self.given_up = False

    def run(self) -> None:
        """Look at them, one after the other."""
        folders = _folders(self._root)
        for folder in folders[:MOST_SUPERVISORS]:
            if self.given_up:
                return
            if folder in self._avoided:
                self._notices.append(does_not_answer(folder))
                continue
            self.at = folder
            try:
                self._look_into(folder)
            except _Wrong as wrong:
                self._notices.append(f"{folder / REPORT}: {wrong}")
        self.at = None
        if len(folders) > MOST_SUPERVISORS:
            self._notices.append(f"{self._root}: more than {MOST_SUPERVISORS} supervisors, the others are not shown")

    def seen(self) -> Supervised:
        """So far."""
        return Supervised(tuple(self._found), tuple(self._gone), tuple(self._notices))

    def _look_into(self, folder: Path) -> None:
        opened = _read(folder)
        if opened is None:
            return
        body, uid = opened
        report = _report(_decoded(body), _user(uid))
        if why := self._admit and self._admit(folder, report):
            raise _Wrong(why)
        taken = {server.name for each in self._found for server in each.servers}
        mine = tuple(server for server in report.servers if server.name not in taken)
        for name in sorted({server.name for server in report.servers} & taken)[:MOST_CLAIMS]:
            self._notices.append(f"{folder / REPORT}: server {name} is that of another supervisor")
        self._found.append(replace(report, servers=mine))
        if not _runs(report.pid, uid):
            self._gone.append((report.user, report.pid))
            who = f"the supervisor of user {report.user} (pid {report.pid})"
            self._notices.append(f"{who} has ended; what is shown of its servers is old")


def does_not_answer(folder: Path) -> str:
    """A notice."""
    return f"{folder}: its file system does not answer; what the supervisor says is not shown"


def _folders(root: Path) -> list[Path]:
    """Those of units, the default supervisor's first, and those that are run by hand.

    Nothing below a user's directory is looked at yet: it may be a file system of that user.
    """
    units = [root / name for name in _names(root) if name.startswith(FOLDER)]
    return units + [root / "user" / name / FOLDER for name in _names(root / "user")]


def _names(folder: Path) -> list[str]:
    try:
        return sorted(each.name for each in folder.iterdir())
    except OSError:
        return []


def _read(folder: Path) -> tuple[bytes, int] | None:
    """The file and its owner; None if there is none. Raise _Wrong."""
    try:
        place = os.open(folder, _FOLDER_FLAGS)
    except OSError:  # no folder, or gone by now
        return None
    try:
        with os.fdopen(os.open(REPORT, _FILE_FLAGS, dir_fd=place), "rb") as file:
            status, of_folder = os.fstat(file.fileno()), os.fstat(place)
            if not stat.S_ISREG(status.st_mode):
                raise _Wrong("is not a regular file")
            if status.st_size > MOST_BYTES:
                raise _Wrong(f"is larger than {MOST_BYTES >> 10} KiB")
            if of_folder.st_uid not in (0, status.st_uid):
                raise _Wrong("belongs to another user than its folder")
            return file.read(MOST_BYTES + 1), status.st_uid
    except FileNotFoundError:
        return None
    except OSError as err:
        raise _Wrong(str(err.strerror)) from err
    finally:
        os.close(place)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        raise _Wrong(f"belongs to nobody that is known (uid {uid})") from None


def _runs(pid: int, uid: int) -> bool:
    """Whether that process is there still, and its user's."""
    try:
        return Path(f"/proc/{pid}").stat().st_uid == uid
    except OSError:
        return False


# ---- values ---------------------------------------------------------------------------------------------------------


def _decoded(body: bytes) -> Fields:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    try:
        fields = json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise _Wrong("is no JSON") from None
    if not isinstance(fields, dict) or fields.get("schema") != SCHEMA:
        raise _Wrong(f"is not of schema {SCHEMA}")
    return fields


def _report(fields: Fields, owner: str) -> SupervisorReport:
    """Unknown fields are those of a later version."""
    user = _text(fields, "user")
    if user != owner:
        raise _Wrong(f"speaks for user {user[:40]!r}, and belongs to {owner}")
    servers = fields.get("servers")
    if not isinstance(servers, list) or len(servers) > MOST_SERVERS:
        raise _Wrong(f"servers is no list of at most {MOST_SERVERS}")
    found = tuple(_server(each) for each in servers)
    if len({server.name for server in found}) < len(found):
        raise _Wrong("two of its servers have one name")
    return SupervisorReport(user, _whole(fields, "pid", MAX_PID), _number(fields, "started_unix_s"), found)


def _server(fields: object) -> ServerReport:
    if not isinstance(fields, dict):
        raise _Wrong("a server is no object")
    name = _text(fields, "name")
    if not _NAME.fullmatch(name):
        raise _Wrong(f"{name[:40]!r} is no name of a server")
    try:
        state = ServerState(_text(fields, "state"))
    except ValueError:
        raise _Wrong(f"server {name}: its state is none that is known") from None
    gpus = fields.get("gpus", [])
    if not isinstance(gpus, list) or len(gpus) > MOST_GPUS or not all(_is_text(each) for each in gpus):
        raise _Wrong(f"server {name}: gpus is no list of texts")
    return ServerReport(
        name,
        state,
        _number(fields, "since_unix_s"),
        pid=_perhaps_whole(fields, "pid", MAX_PID),
        port=_perhaps_whole(fields, "port", MAX_PORT),
        gpus=tuple(gpus),
        user=_text(fields, "user", ""),
        model=_text(fields, "model", ""),
        restarts=_whole(fields, "restarts", 1 << 53, least=0) if "restarts" in fields else 0,
        reason=_text(fields, "reason", ""),
        ended=_text(fields, "ended", ""),
        starts_unix_s=None if fields.get("starts_unix_s") is None else _number(fields, "starts_unix_s"),
    )


def _is_text(value: object) -> bool:
    # lone halves of a surrogate pair, which JSON can have and UTF-8 cannot
    return isinstance(value, str) and len(value) <= LONGEST and not re.search("[\ud800-\udfff]", value)


def _text(fields: Fields, key: str, default: str | None = None) -> str:
    value = fields.get(key, default)
    if not isinstance(value, str) or not _is_text(value):
        raise _Wrong(f"{key} is no text of at most {LONGEST} characters")
    return value


def _number(fields: Fields, key: str) -> float:
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1 << 53:
        raise _Wrong(f"{key} is no time")
    return float(value) if math.isfinite(value) else 0.0


def _whole(fields: Fields, key: str, most: int, least: int = 1) -> int:
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise _Wrong(f"{key} is no number from {least} to {most}")
    return value


def _perhaps_whole(fields: Fields, key: str, most: int) -> int | None:
    return None if fields.get(key) is None else _whole(fields, key, most)
