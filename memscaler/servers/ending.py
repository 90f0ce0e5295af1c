"""Why a SIGTERM came: is systemd restarting our unit, so that the next supervisor is there in a moment?

Its job says so while it stops us: `systemctl list-jobs` shows "123 memscaler-servers.service restart running".
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ASK_S = 3.0
_UNIT = re.compile(r"/([^/]+\.service)$")
_OF_USER = re.compile(r"/user@\d+\.service/")


@dataclass(frozen=True, slots=True)
class Verdict:
    """yes: the unit is being restarted. why: a sentence for the log."""

    yes: bool
    why: str


def is_restart(cgroup: Path = Path("/proc/self/cgroup")) -> Verdict:
    """No, if it cannot be told. Takes 3 s at most."""
    unit, of_user = _unit(cgroup)
    if not unit:
        return Verdict(yes=False, why="no unit of systemd's")
    systemctl = shutil.which("systemctl")
    if systemctl is None:
        return Verdict(yes=False, why="there is no systemctl to ask whether systemd restarts us")
    words = [systemctl, *(["--user"] if of_user else []), "list-jobs", "--no-legend", "--plain", "--full", unit]
    try:
        answer = subprocess.run(  # noqa: S603  # fixed words
            words, capture_output=True, text=True, timeout=ASK_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return Verdict(yes=False, why=f"systemctl did not say within {ASK_S:g} s whether systemd restarts us")
    if answer.returncode:
        said = " ".join(answer.stderr.split())
        return Verdict(yes=False, why=f"systemctl cannot tell whether systemd restarts us: {said}")
    for line in answer.stdout.splitlines():
        fields = line.split()
        if len(fields) >= 3 and fields[1] == unit:  # noqa: PLR2004  # number, unit, type
            return Verdict(yes="restart" in fields[2], why=f"systemd's job for {unit} is: {fields[2]}")
    return Verdict(yes=False, why=f"systemd has no job for {unit}: somebody else sent the signal")


def _unit(cgroup: Path) -> tuple[str, bool]:
    """Its name, and whether it is one of a user's own systemd; "" if there is none."""
    try:
        lines = cgroup.read_text().splitlines()
    except OSError:
        return "", False
    for line in lines:
        path = line.rpartition(":")[2]
        if found := _UNIT.search(path):
            return found[1], _OF_USER.search(path) is not None
    return "", False
