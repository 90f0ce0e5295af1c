"""The commit that is released: what git says about it, and its files without anything that git does not have."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tools.unpack import unpack_bytes


def git(tree: Path, *arguments: str) -> str:
    """What it says. Raise CalledProcessError."""
    command = ["git", *arguments]
    return subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True).stdout.strip()


def commit(tree: Path) -> str:
    """The commit that is checked out. Raise CalledProcessError where there is none."""
    return git(tree, "rev-parse", "--verify", "HEAD^{commit}")


def commit_time_s(tree: Path) -> int:
    """When it was made: the time that everything built from it bears."""
    return int(git(tree, "log", "-1", "--format=%ct"))


def changed(tree: Path) -> list[str]:
    """What is not as in the commit, new files included."""
    return git(tree, "status", "--porcelain").splitlines()


def tagged(tree: Path, tag: str) -> bool:
    """Whether there is such a tag."""
    return bool(git(tree, "tag", "--list", tag))


def export(tree: Path, target: Path) -> Path:
    """Lay the commit's files there."""
    command = ["git", "archive", "--format=tar", "HEAD"]
    archive = subprocess.run(command, cwd=tree, check=True, capture_output=True).stdout
    target.mkdir(parents=True, exist_ok=True)
    unpack_bytes(archive, target)
    return target


def version(tree: Path) -> str:
    """The one place where it stands. Raise ValueError if it does not."""
    found = re.search(r'^__version__ = "([^"]+)"$', (tree / "memscaler/__init__.py").read_text(), re.MULTILINE)
    if not found:
        raise ValueError("memscaler/__init__.py has no __version__")
    return found[1]
