"""systemd as it runs here, asked by its own tools."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

UNIT = "memscaler.service"
GATEWAY = "memscaler-gateway.service"
ASK_S = 3.0


def is_running(root: Path) -> bool:
    """Whether it is what started this machine: sd_booted(3)."""
    return (root / "run/systemd/system").is_dir()


def has_tools() -> bool:
    """Without systemctl nothing can be enabled, not even for the next boot."""
    return shutil.which("systemctl") is not None


def active_state(unit: str = UNIT) -> str:
    """For example "active"; "" if it does not say."""
    return _ask("systemctl", "show", "--property=ActiveState", "--value", unit)


def main_pid(unit: str = UNIT) -> int:
    """Of its process; 0 if it has none, or systemd does not say."""
    told = _ask("systemctl", "show", "--property=MainPID", "--value", unit)
    return int(told) if told.isdigit() else 0


def version() -> int:
    """252, for example; 0 if it does not say."""
    words = _ask("systemctl", "--version").split()
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


def _ask(*command: str) -> str:
    try:
        answer = subprocess.run(  # noqa: S603  # fixed words
            command, capture_output=True, text=True, timeout=ASK_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
