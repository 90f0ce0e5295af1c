"""This very installation: which file the service starts, and whether root may.

What root runs, nobody else may write: neither the files nor a folder on the way to them. And the unit hides the homes.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import memscaler

NAME = "memscaler"
HOMES = ("/home", "/root", "/run/user")  # ProtectHome=yes
MOST_TOLD = 3


@dataclass(frozen=True, slots=True)
class Program:
    """path: what the service starts. files: all that it may run; trees: folders that are looked through to the end."""

    path: Path
    files: tuple[Path, ...]
    trees: tuple[Path, ...]


def program_path() -> Path:
    """Of the environment that this runs in; not what led here, which may be a link."""
    scripts = Path(sysconfig.get_path("scripts"), NAME)
    beside = Path(sys.executable).with_name(NAME)
    return next((path for path in (scripts, beside) if os.path.isfile(path)), scripts)  # noqa: PTH113  # Path's raises


def this_program() -> Program:
    """What runs now, and would run as the service."""
    package = Path(memscaler.__file__).resolve().parent
    told = {Path(path).absolute() for path in os.environ.get("PYTHONPATH", "").split(":") if path}
    known = {sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "platstdlib")}
    # [0] is of who has started this; others may come from .pth files
    added = {path for path in sys.path[1:] if path and Path(path).absolute() not in told}
    path = program_path()
    files = (path, Path(sys.executable), *map(Path, sorted(known | added)))
    prefix = [Path(sys.prefix)] if sys.prefix != sys.base_prefix else []
    there = tuple(each for each in files if os.path.exists(each))  # noqa: PTH110  # Path's raises where one may not look
    return Program(path, there, (*prefix, package))


def fingerprint() -> str:
    """Another one after every upgrade, of memscaler or of what it needs."""
    found = sorted({f"{each.name} {each.version}" for each in metadata.distributions()})
    try:
        found.append(metadata.distribution(NAME).read_text("RECORD") or "")
    except metadata.PackageNotFoundError:
        found.append("not installed")
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


def suspicions(program: Program) -> list[str]:
    """Why root should not run it: a sentence each, most important first; a few of them."""
    found: dict[str, None] = {}
    for path in (*program.files, *program.trees):
        for way in dict.fromkeys((path.absolute(), path.resolve())):
            home = next((home for home in HOMES if way.is_relative_to(home)), "")
            if home:
                found[f"{way} is below {home}, which the service does not see (ProtectHome=yes)"] = None
            found |= dict.fromkeys(filter(None, map(_suspicion, [*reversed(way.parents), way])))
    for tree in program.trees:
        for path in _below(tree):
            if len(found) > MOST_TOLD:
                break
            if suspicion := _suspicion(path):
                found[suspicion] = None
    return list(found)


def _below(tree: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(tree):
        yield from (Path(folder, name) for name in (*folders, *files))


def _suspicion(path: Path) -> str:
    try:
        status = path.lstat()
    except OSError:  # who may not look cannot run it either
        return ""
    if status.st_uid != 0:
        return f"{path} belongs to another user than root (uid {status.st_uid})"
    if stat.S_ISLNK(status.st_mode) or (stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX):
        return ""  # a link has no rights of its own; in /tmp nobody can replace another's file
    return f"{path} may be written by others" if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else ""
