"""Where a supervisor keeps what, and where those are that run."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from memscaler.core.servers import SUPERVISOR

NAME = SUPERVISOR
USER = NAME  # of the unit that runs the servers without a user of their own
SOCKET = "control.sock"  # in the runtime directory
IDENTIFIER = "memscaler-"  # and a server's name: what its lines are marked with in the journal
RUN = Path("/run")
LOGS = Path("/var/log")
STATES = Path("/var/lib")
SOCKETS = Path("/proc/net/unix")
_LISTENS = "00010000"  # SO_ACCEPTCON
_UNITS_OWN = {"runtime": "RUNTIME_DIRECTORY", "state": "STATE_DIRECTORY", "logs": "LOGS_DIRECTORY"}  # systemd.exec(5)


@dataclass(frozen=True, slots=True)
class Places:
    """Of one supervisor. runtime: its socket and its report; state: what must outlive it; logs: what servers write."""

    runtime: Path
    state: Path
    logs: Path


def own(environ: Mapping[str, str], runtime_dir: str | None = None) -> Places:
    """Of the supervisor that this process is: as its unit says, else below its user's own folders."""
    state = _state(environ)
    mine = Places(by_hand(environ, os.geteuid()), state, state / "logs")
    if runtime_dir is not None:
        folder = Path(os.path.abspath(runtime_dir))  # noqa: PTH100  # resolve() would follow links
        mine = Places(folder, folder / "state", folder / "logs")
    named = {key: Path(environ[name].split(":")[0]) for key, name in _UNITS_OWN.items() if environ.get(name)}
    return Places(
        mine.runtime if runtime_dir is not None else named.get("runtime", mine.runtime),
        named.get("state", mine.state),
        named.get("logs", mine.logs),
    )


def whose(environ: Mapping[str, str]) -> str:
    """Whose servers our unit runs, as its runtime directory says; "": those without a user of their own."""
    user = _user(Path(environ.get("RUNTIME_DIRECTORY", "").split(":")[0]))
    return "" if user == USER else user


def without_own(environ: Mapping[str, str]) -> dict[str, str]:
    """Without the folders of our unit, which the governor's settings would take for their own."""
    return {name: value for name, value in environ.items() if name not in _UNITS_OWN.values()}


def runtime_dirs() -> list[tuple[Path, str]]:
    """Where supervisors may run, and whose: those of units, those that users have started by hand, our own."""
    units = [(folder, _user(folder)) for folder in sorted(RUN.glob(f"{NAME}*"))]
    others = [(folder, _name(folder.parent.name)) for folder in sorted(RUN.glob(f"user/*/{NAME}"))]
    mine = (by_hand(os.environ, os.geteuid()), _name(str(os.geteuid())))
    return [*units, *others, *([mine] if mine not in others else [])]


def listening_dirs() -> list[tuple[Path, str]]:
    """Where supervisors listen that were started by hand below homes, and whose: for root, who may look everywhere."""
    try:
        lines = SOCKETS.read_text(errors="replace").splitlines()
    except OSError:
        return []
    # number, references, protocol, flags, type, state, inode, path
    paths = {Path(parts[7]) for line in lines if len(parts := line.split(None, 7)) == 8 and parts[3] == _LISTENS}  # noqa: PLR2004
    folders = sorted(path.parent for path in paths if path.name == SOCKET and path.match(f"{NAME}/run/{SOCKET}"))
    return [(folder, owner) for folder in folders if (owner := _owner(folder))]


def _owner(folder: Path) -> str:
    try:
        return _name(str(folder.stat().st_uid))
    except OSError:  # of another mount namespace
        return ""


def state_dirs(runtime_dir: str | None = None) -> list[tuple[Path, bool]]:
    """Where supervisors keep what outlives them, and whether somebody has started that one by hand."""
    units = [(folder, False) for folder in sorted(STATES.glob(f"{NAME}*"))]
    mine = own(os.environ, runtime_dir).state
    return [(mine, True)] if runtime_dir is not None else [*units, (mine, True)]


def logs_dirs() -> list[tuple[Path, str]]:
    """Where servers may have written to files, and whose."""
    return [
        *((folder, _user(folder)) for folder in sorted(LOGS.glob(f"{NAME}*"))),
        (own(os.environ).logs, _name(str(os.geteuid()))),
    ]


def own_user() -> str:
    """The name of whoever this process is."""
    return _name(str(os.geteuid()))


def by_hand(environ: Mapping[str, str], uid: int, name: str = NAME) -> Path:
    """Below what a login makes; who has not logged in (`sudo -u alice ...`) has only a home."""
    made = Path(environ.get("XDG_RUNTIME_DIR") or RUN / "user" / str(uid))
    return made / name if made.is_dir() else _state(environ, name) / "run"


def _state(environ: Mapping[str, str], name: str = NAME) -> Path:
    return Path(environ.get("XDG_STATE_HOME") or Path(environ.get("HOME") or "/") / ".local/state") / name


def _user(folder: Path) -> str:
    """memscaler-servers is the default's, memscaler-servers-alice is alice's."""
    return folder.name.removeprefix(f"{NAME}-")


def _name(uid: str) -> str:
    try:
        return pwd.getpwuid(int(uid)).pw_name
    except (KeyError, ValueError):
        return uid
