"""What pip needs to install memscaler in a machine without a network: a tar archive of wheels, kept in the cache.

The versions are those of packaging/requirements.lock, and so are the checksums that they must have.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

from tools.distros.roots import REPOSITORY, Recipe, cache

LOCK = REPOSITORY / "packaging" / "requirements.lock"


def wanted() -> list[str]:
    """Besides the requirements of memscaler: what builds it, and pip itself, which Debian's minimal root lacks."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    return [*project["build-system"]["requires"], "pip"]


def archive_of(recipe: Recipe) -> Path:
    """Where the archive for this machine's python is kept."""
    what = hashlib.sha256(repr(wanted()).encode() + LOCK.read_bytes()).hexdigest()[:12]
    return cache() / f"wheels-{recipe.python}-{what}.tar"


def ensure(recipe: Recipe) -> Path:
    """The archive, made now if it is not there. Raise CalledProcessError."""
    target = archive_of(recipe)
    if target.exists():
        return target
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="wheels-building-", dir=cache()) as name:
        wheels, draft = Path(name, "wheels"), Path(name, "draft")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        pip += ["--only-binary=:all:", "--python-version", recipe.python, "--dest", str(wheels)]
        for what in (["--require-hashes", "--requirement", str(LOCK)], wanted()):
            subprocess.run([*pip, *what], check=True)
        with tarfile.open(draft, "w") as archive:
            archive.add(wheels, "wheels")
        draft.rename(target)
    return target
