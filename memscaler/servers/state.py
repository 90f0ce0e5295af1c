"""What must outlive the supervisor: which processes it has started, and what operators have switched on and off.

Processes are told by pid, start time and boot: after a reboot nothing of it holds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from memscaler.config.servers import Hook, Server
from memscaler.core.servers import ServerState
from memscaler.files import read_own, write_own
from memscaler.gpu.journal import BOOT_ID

STATE, SWITCHES = "state.json", "switches.json"
SCHEMA = 1
MOST_BYTES = 16 * 1024 * 1024


class Corrupt(Exception):
    """The file cannot be understood; says why."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A process that was started. path: of a hook, its names from the server down; () is the server itself.

    mark: what its processes are found by (marks.py).
    """

    pid: int
    started: int
    path: tuple[str, ...] = ()
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Given:
    """What a server got at its start. gpus: UUIDs; names: how operators call these.

    arguments: the planner's words for llama-server; layers: where it put what, in words.
    """

    gpus: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """A server that ran when the file was written. server: as it was when it was started. Times: of the wall clock."""

    server: Server
    process: Ran
    state: ServerState
    since_unix_s: float
    hooks: tuple[Ran, ...] = ()
    given: Given = field(default_factory=Given)
    log: str = ""
    log_begins: int = 0
    restarts: int = 0
    failures: int = 0


def save(folder: Path, records: Mapping[str, Record]) -> None:
    """Raise OSError. Not forced to the disk: after a power loss none of these processes lives."""
    document = {
        "schema": SCHEMA,
        "boot": _boot(),
        "servers": [asdict(record) for record in records.values()],
    }
    replace(folder / STATE, json.dumps(document, separators=(",", ":")).encode(), 0o600)


def load(folder: Path) -> tuple[Record, ...]:
    """Those that ran, of this boot; none if there is no file. Raise Corrupt."""
    try:
        document = json.loads(read_own(folder / STATE, MOST_BYTES))
        if document["schema"] != SCHEMA:
            raise Corrupt(f"schema {document['schema']} is not known here")
        if not isinstance(document["boot"], str):
            raise Corrupt("it does not name a boot")
        if document["boot"] != _boot():
            return ()
        return tuple(_record(each) for each in document["servers"])
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise Corrupt(error.strerror or str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(f"{type(error).__name__}: {error}") from error


def load_switches(folder: Path) -> dict[str, bool]:
    """Name -> whether an operator has enabled it. Raise Corrupt."""
    try:
        document = json.loads(read_own(folder / SWITCHES, MOST_BYTES))
        return {str(name): bool(on) for name, on in document["enabled"].items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise Corrupt(error.strerror or str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(f"{type(error).__name__}: {error}") from error


def save_switches(folder: Path, switches: Mapping[str, bool]) -> None:
    """Raise OSError."""
    document = {"schema": SCHEMA, "enabled": dict(switches)}
    write_own(folder / SWITCHES, json.dumps(document, indent=1).encode() + b"\n")


def replace(path: Path, data: bytes, mode: int) -> None:
    """The file is old or new for whoever reads it, but may be lost with the machine. Raise OSError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    draft.unlink(missing_ok=True)
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            os.fchmod(fd, mode)
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()  # a full disk needs the room
        raise


def _boot() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _record(raw: Mapping[str, Any]) -> Record:
    return Record(
        **{
            **raw,
            "server": _server(raw["server"]),
            "process": _ran(raw["process"]),
            "state": ServerState(raw["state"]),
            "hooks": tuple(_ran(each) for each in raw["hooks"]),
            "given": Given(**_frozen_all(raw["given"])),
        }
    )


def _ran(raw: Mapping[str, Any]) -> Ran:
    return Ran(_whole(raw["pid"]), _whole(raw["started"]), tuple(map(str, raw["path"])), str(raw.get("mark", "")))


def _whole(raw: object) -> int:
    """Not True, and no pid of which we would signal a group of groups."""
    if type(raw) is not int or raw <= 1:
        raise ValueError(f"{raw!r} is no number of a process")
    return raw


def _server(raw: Mapping[str, Any]) -> Server:
    """A field that this version does not know is left out; one that it does not find has its default."""
    known = {item.name for item in dataclasses.fields(Server)}
    plain = {key: _frozen(value) for key, value in raw.items() if key in known and key != "hooks"}
    return Server(**plain, hooks=tuple(_hook(each) for each in raw["hooks"]))


def _hook(raw: Mapping[str, Any]) -> Hook:
    known = {item.name for item in dataclasses.fields(Hook)}
    plain = {key: _frozen(value) for key, value in raw.items() if key in known and key != "hooks"}
    return Hook(**plain, hooks=tuple(_hook(each) for each in raw["hooks"]))


def _frozen_all(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _frozen(value) for key, value in raw.items()}


def _frozen(value: Any) -> Any:
    return tuple(_frozen(each) for each in value) if isinstance(value, list) else value
