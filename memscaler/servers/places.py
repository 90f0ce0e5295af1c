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
    by_hand = Places(_by_hand(environ, os.geteuid()), state, state / "logs")
    if runtime_dir is not None:
        folder = Path(os.path.abspath(runtime_dir))  # noqa: PTH100  # resolve() would follow links
        by_hand = Places(folder, folder / "state", folder / "logs")
    named = {key: Path(environ[name].split(":")[0]) for key, name in _UNITS_OWN.items() if environ.get(name)}
    return Places(
        by_hand.runtime if runtime_dir is not None else named.get("runtime", by_hand.runtime),
        named.get("state", by_hand.state),
        named.get("logs", by_hand.logs),
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
    by_hand = [(folder, _name(folder.parent.name)) for folder in sorted(RUN.glob(f"user/*/{NAME}"))]
    mine = (_by_hand(os.environ, os.geteuid()), _name(str(os.geteuid())))
    return [*units, *by_hand, *([mine] if mine not in by_hand else [])]


def logs_dirs() -> list[tuple[Path, str]]:
    """Where servers may have written to files, and whose."""
    return [
        *((folder, _user(folder)) for folder in sorted(LOGS.glob(f"{NAME}*"))),
        (own(os.environ).logs, _name(str(os.geteuid()))),
    ]


def own_user() -> str:
    """The name of whoever this process is."""
    return _name(str(os.geteuid()))


def _by_hand(environ: Mapping[str, str], uid: int) -> Path:
    """Below what a login makes; who has not logged in (`sudo -u alice ...`) has only a home."""
    made = Path(environ.get("XDG_RUNTIME_DIR") or RUN / "user" / str(uid))
    return made / NAME if made.is_dir() else _state(environ) / "run"


def _state(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("XDG_STATE_HOME") or Path(environ.get("HOME") or "/") / ".local/state") / NAME


def _user(folder: Path) -> str:
    """memscaler-servers is the default's, memscaler-servers-alice is alice's."""
    return folder.name.removeprefix(f"{NAME}-")


def _name(uid: str) -> str:
    try:
        return pwd.getpwuid(int(uid)).pw_name
    except (KeyError, ValueError):
        return uid
