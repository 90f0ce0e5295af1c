"""Whether the machine is on its way down: then a server that was stopped stays so, or it would hold up the shutdown."""

from __future__ import annotations

import shutil
import subprocess

ASK_S = 3.0


def machine_is_stopping() -> bool:
    """As systemd says. No, if it cannot be told. Takes 3 s at most."""
    systemctl = shutil.which("systemctl")
    if systemctl is None:
        return False
    try:
        answer = subprocess.run(  # noqa: S603  # fixed words
            [systemctl, "is-system-running"],
            capture_output=True,
            text=True,
            timeout=ASK_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.stdout.strip() == "stopping"
