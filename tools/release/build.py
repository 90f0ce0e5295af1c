"""Builds sdist and wheel from a commit so that everybody who does the same gets the same bytes.

What could differ is fixed: the files are an export of the commit, every time stamp is the commit's, and hatchling is
pinned with its libraries (packaging/requirements-test.lock). The wheel is built from the sdist, as pip would. What is
left is zlib: another implementation of it (zlib-ng) may compress the same content to other bytes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tools.release import tree as trees
from tools.unpack import unpack


def build(tree: Path, target: Path, environment: Mapping[str, str] | None = None) -> tuple[Path, Path]:
    """The commit's sdist and wheel, in the folder `target`. environment: more variables for the build."""
    target = target.resolve()
    target.mkdir(parents=True, exist_ok=True)
    variables = {**os.environ, **(environment or {}), "SOURCE_DATE_EPOCH": str(trees.commit_time_s(tree))}
    with tempfile.TemporaryDirectory(prefix="memscaler-release-") as folder:
        source = trees.export(tree, Path(folder, "source"))
        _hatchling(source, "sdist", target, variables)
        (sdist,) = target.glob("*.tar.gz")
        unpack(sdist, Path(folder))
        _hatchling(Path(folder, sdist.name.removesuffix(".tar.gz")), "wheel", target, variables)
        (wheel,) = target.glob("*.whl")
    return sdist, wheel


def again(tree: Path, sdist: Path, wheel: Path) -> list[str]:
    """Build a second time, in another place, language and time zone; the names of what came out differently."""
    with tempfile.TemporaryDirectory(prefix="again ") as folder:
        odd = {"TZ": "Pacific/Apia", "LC_ALL": "C", "PYTHONHASHSEED": "1", "HOME": folder, "TMPDIR": folder}
        second = build(tree, Path(folder, "out"), odd)
        pairs = zip((sdist, wheel), second, strict=True)
        return [one.name for one, other in pairs if one.read_bytes() != other.read_bytes()]


def _hatchling(source: Path, kind: str, target: Path, variables: Mapping[str, str]) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(target)]
    subprocess.run(command, cwd=source, env=dict(variables), check=True, capture_output=True, text=True)
