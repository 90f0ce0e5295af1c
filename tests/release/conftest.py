"""A repository of its own with the present working tree as its only commit: releasing must not touch the real one."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def listed(*which: str) -> list[str]:
    """Names of files of the working tree, as git knows them."""
    said = subprocess.run(["git", "ls-files", "-z", *which], cwd=ROOT, check=True, capture_output=True, text=True)
    return [name for name in sorted(set(said.stdout.split("\0"))) if name and (ROOT / name).is_file()]


def git(folder: Path, *arguments: str) -> None:
    """As nobody in particular, at one time, without anybody's settings."""
    settings = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost", "-c", "commit.gpgSign=false"]
    times = {"GIT_AUTHOR_DATE": "2026-01-31T12:00:00Z", "GIT_COMMITTER_DATE": "2026-01-31T12:00:00Z"}
    plain = {"PATH": "/usr/bin:/bin", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", **times}
    subprocess.run(["git", *settings, *arguments], cwd=folder, env=plain, check=True, capture_output=True)


def committed(folder: Path) -> Path:
    """Make it a repository with all that lies in it."""
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "everything")
    return folder


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A checkout that could be released: clean, and its CHANGELOG.md has a date."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in listed("--cached", "--others", "--exclude-standard"):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    changelog = folder / "CHANGELOG.md"
    changelog.write_text(changelog.read_text().replace("(not released)", "(2026-01-31)", 1))
    return committed(folder)
