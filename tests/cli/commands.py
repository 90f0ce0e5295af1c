"""Commands that ask a daemon, as real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ENVIRON = {key: value for key, value in os.environ.items() if not key.startswith("MEMSCALER_")} | {"COLUMNS": "80"}


def command(folder: Path, *args: str) -> list[str]:
    """The command line; --runtime-dir stands behind the command's name, for there may be a "--" later."""
    return [sys.executable, "-m", "memscaler", args[0], "--runtime-dir", str(folder), *args[1:]]


def memscaler(folder: Path, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        command(folder, *args), capture_output=True, text=True, check=False, env=ENVIRON, timeout=60, input=stdin
    )
