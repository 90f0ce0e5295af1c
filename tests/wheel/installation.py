"""A wheel of this tree, and environments that it is installed in; neither needs a network."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAME = re.compile(r"[A-Za-z0-9._-]+")


def build(folder: Path) -> Path:
    """The wheel."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def environment(folder: Path, wheel: Path, python: str = sys.executable, *, copies: bool = False) -> Path:
    """A fresh virtual environment; its python.

    What memscaler needs is borrowed from the tests' own, by a path file, or copied: that may lie in a home.
    """
    subprocess.run([python, "-m", "venv", "--without-pip", str(folder)], check=True, capture_output=True)
    own = folder / "bin/python"
    install(own, wheel)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([own, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    if copies:
        copy_needed(Path(packages))
    else:
        Path(packages, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return own


def copy_needed(target: Path) -> None:
    """What memscaler needs, and what that needs."""
    wanted, seen = ["memscaler"], set[str]()
    while wanted:
        name = wanted.pop()
        with contextlib.suppress(metadata.PackageNotFoundError):  # for other pythons
            found = metadata.distribution(name)
            needs = [need for need in found.requires or () if "extra ==" not in need]
            names = {NAME.match(need)[0] for need in needs} - seen
            wanted, seen = [*wanted, *names], seen | names
            if name != "memscaler":
                _copy(found, target)


def _copy(found: metadata.Distribution, target: Path) -> None:
    for file in found.files or ():
        if ".." not in file.parts and "__pycache__" not in file.parts:
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.locate(), target / file)


def install(python: Path, wheel: Path, *more: str) -> None:
    """By pip, as a user does it."""
    command = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "install"]
    subprocess.run([*command, "--no-deps", "--no-index", *more, str(wheel)], check=True, capture_output=True)
