"""Laying down what is in a tar archive, the same whoever does it: tarfile's filter "data" is missing in Debian 12."""

from __future__ import annotations

import subprocess
from pathlib import Path

COMMAND = ("tar", "--extract", "--no-same-owner", "--no-same-permissions", "--file")


def unpack(archive: Path, target: Path) -> None:
    """Its files belong to who calls, and nobody else may write them. Raise CalledProcessError."""
    subprocess.run([*COMMAND, archive, "--directory", target], check=True, umask=0o022)


def unpack_bytes(archive: bytes, target: Path) -> None:
    """The same for one in memory."""
    subprocess.run([*COMMAND, "-", "--directory", target], input=archive, check=True, umask=0o022)
