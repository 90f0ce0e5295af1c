"""How a Python package is added to this installation, which depends on how that was made."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

DEBIAN = Path("/usr/lib/memscaler")  # the Debian package's own environment, which has no pip


def how_to_add(*packages: str, prefix: Path | None = None) -> str:
    """A command for operators; "" where nothing can be added. prefix: of the environment, ours if none is named."""
    place = Path(sys.prefix) if prefix is None else prefix
    wanted = " ".join(map(shlex.quote, packages))
    if place == DEBIAN:
        return ""
    if (place / "pipx_metadata.json").is_file():  # PIPX_HOME/venvs/memscaler
        sudo = "" if os.access(place, os.W_OK) and os.geteuid() else "sudo "
        return f"{sudo}PIPX_HOME={shlex.quote(str(place.parent.parent))} pipx inject {place.name} {wanted}"
    return f"{shlex.quote(sys.executable)} -m pip install {wanted}"
