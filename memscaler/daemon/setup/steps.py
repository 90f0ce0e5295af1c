"""One thing after the other: what is told before it is done, also when it is not (--dry-run)."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from memscaler.core.errors import MemscalerError
from memscaler.daemon import systemd
from memscaler.daemon.setup import files, manifest
from memscaler.daemon.setup.files import File
from memscaler.daemon.setup.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Step:
    """text: for people, one line. do: raise MemscalerError or OSError."""

    text: str
    do: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done; nothing if all is as it should be. notes: what is not done, and why; told afterwards.

    refusal: why this machine cannot do it; the steps may be told all the same.
    """

    steps: tuple[Step, ...] = ()
    notes: tuple[str, ...] = field(default=())
    refusal: MemscalerError | None = None


def write(root: Path, file: File) -> Step:
    """A file, and the folders that it needs."""
    about = f" ({file.about})" if file.about else ""
    return Step(f"write   {root / file.path}{about}", lambda: files.write(root, file))


def note(root: Path, known: Manifest, about: str) -> Step:
    """What is ours."""
    return write(root, File(manifest.PLACE, known.text().encode(), about))


def remove(path: Path, about: str = "") -> Step:
    """A file."""
    return Step(f"remove  {path}" + f" ({about})" * bool(about), lambda: path.unlink(missing_ok=True))


def enable(root: Path, unit: str = systemd.UNIT, file: str = systemd.UNIT) -> Step:
    """In an image, whatever the machine has on which that is made. file: another one for an instance of a template."""
    path = root / files.WANTS / unit

    def do() -> None:
        for folder in files.missing_folders(root, path):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o755)
        path.symlink_to(f"/etc/systemd/system/{file}")

    return Step(f"link    {path}", do)


def disable(root: Path, unit: str = systemd.UNIT) -> Step:
    """In an image."""
    path = root / files.WANTS / unit

    def do() -> None:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others are wanted there, too
            path.parent.rmdir()

    return Step(f"remove  {path}", do)


def run(*command: str, hint: str = "") -> Step:
    """A command; an error is one."""
    line = shlex.join(command)

    def do() -> None:
        try:
            done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL)  # noqa: S603  # ours
        except OSError as error:
            raise MemscalerError(f"{line}: {error.strerror}", hint=hint) from error
        if done.returncode:
            raise MemscalerError(f"{line} failed ({done.returncode})", hint=hint)

    return Step(f"run     {line}", do)
