"""A wheel of this tree, and environments that it is installed in; neither needs a network."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def build(folder: Path) -> Path:
    """The wheel."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def environment(folder: Path, wheel: Path, python: str = sys.executable) -> Path:
    """A fresh virtual environment; its python. What memscaler needs is borrowed from the tests' own, by a path file."""
    subprocess.run([python, "-m", "venv", "--without-pip", str(folder)], check=True, capture_output=True)
    own = folder / "bin/python"
    install(own, wheel)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([own, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    Path(packages, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return own


def install(python: Path, wheel: Path, *more: str) -> None:
    """By pip, as a user does it."""
    command = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "install"]
    subprocess.run([*command, "--no-deps", "--no-index", *more, str(wheel)], check=True, capture_output=True)
