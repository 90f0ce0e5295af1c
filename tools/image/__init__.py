"""Builds the container image from the wheel and the lock of the present commit. `make image`."""

from __future__ import annotations

import shutil
from pathlib import Path

from tools.release import build, lock, tree

FOLDER = lock.REPOSITORY / "build/image"
CONTAINERFILE = lock.REPOSITORY / "deploy/container/Containerfile"


def context() -> Path:
    """The folder of what goes into the image: what a release of this commit would have."""
    folder = FOLDER / "context"
    shutil.rmtree(folder, ignore_errors=True)
    build.build(lock.REPOSITORY, folder)
    version = tree.version(lock.REPOSITORY)
    shutil.copyfile(lock.RUNTIME, folder / f"memscaler-{version}-{lock.RUNTIME.name}")
    return folder
