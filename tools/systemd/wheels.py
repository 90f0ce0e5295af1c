"""What pip needs to install memscaler in a machine without a network: a tar archive of wheels, kept in the cache."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

from tools.distros.roots import REPOSITORY, Recipe, cache


def wanted() -> list[str]:
    """The requirements of memscaler, what builds it, and pip itself, which Debian's minimal root lacks."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    return [*project["project"]["dependencies"], *project["build-system"]["requires"], "pip"]


def archive_of(recipe: Recipe) -> Path:
    """Where the archive for this machine's python is kept."""
    what = hashlib.sha256(repr(wanted()).encode()).hexdigest()[:12]
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
        subprocess.run([*pip, *wanted()], check=True)
        with tarfile.open(draft, "w") as archive:
            archive.add(wheels, "wheels")
        draft.rename(target)
    return target
