"""systemd's units, read from their files: systemd.unit(5). Needs neither systemd nor rights."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NAME = "memscaler.service"
# In the order in which one hides the other.
FOLDERS = (
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)
_MOST_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Unit:
    """path: the file that counts. hidden: files of the same name that it hides. masked: it leads to /dev/null."""

    path: Path
    hidden: tuple[Path, ...]
    enabled: bool
    masked: bool
    service: dict[str, list[str]]

    def words(self, key: str) -> list[str]:
        """The words of a list such as RuntimeDirectory=."""
        return " ".join(self.service.get(key, [])).split()

    def environment(self) -> dict[str, str]:
        """What Environment= sets."""
        found = {}
        for line in self.service.get("Environment", []):
            try:
                words = shlex.split(line)
            except ValueError:  # a quotation mark that is not closed
                words = line.split()
            for word in words:
                name, equals, value = word.partition("=")
                if equals:
                    found[name] = value
        return found

    def program(self, key: str) -> str:
        """The program of the last ExecStart= or the like; "" if there is none."""
        line = next(iter(self.service.get(key, [])[-1:]), "")
        return next(iter(line.lstrip("@-:+!").split()), "")


def find(root: Path, name: str = NAME) -> Unit | None:
    """The unit as systemd would read it, with its drop-ins; None if it is not installed."""
    files: dict[Path, Path] = {}
    for folder in _folders(root):
        path = folder / name
        if path.exists() or path.is_symlink():
            files.setdefault(path.resolve(), path)  # /lib may be /usr/lib
    if not files:
        return None
    first, *hidden = files.values()
    service: dict[str, list[str]] = {}
    for path in (first, *_drop_ins(root, name)):
        _read(path, service)
    enabled = any(_wanted(folder, name) for folder in _folders(root))
    return Unit(first, tuple(hidden), enabled, first.resolve() == Path("/dev/null"), service)


def drop_ins(root: Path, name: str = NAME) -> tuple[frozenset[str], frozenset[str]]:
    """Their names, and the keys that they set."""
    service: dict[str, list[str]] = {}
    found = _drop_ins(root, name)
    for path in found:
        _read(path, service)
    return frozenset(path.name for path in found), frozenset(service)


def others(root: Path) -> list[str]:
    """Services of other names that run memscaler, too."""
    found = set()
    for folder in _folders(root):
        for path in sorted(folder.glob("*.service")):
            service: dict[str, list[str]] = {}
            _read(path, service)
            if path.name != NAME and any("memscaler run" in line for line in service.get("ExecStart", [])):
                found.add(path.name)
    return sorted(found)


def _folders(root: Path) -> Iterator[Path]:
    return (root / folder.lstrip("/") for folder in FOLDERS)


def _wanted(folder: Path, name: str) -> bool:
    return any((each / name).is_symlink() for kind in ("wants", "requires") for each in folder.glob(f"*.{kind}"))


def _drop_ins(root: Path, name: str) -> list[Path]:
    """By their names, each from the first folder that has it."""
    found: dict[str, Path] = {}
    for folder in _folders(root):
        for path in (folder / f"{name}.d").glob("*.conf"):
            found.setdefault(path.name, path)
    return [found[each] for each in sorted(found)]


def _read(path: Path, service: dict[str, list[str]]) -> None:
    """Add the [Service] section of this file; an empty value forgets what was said before."""
    section = ""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(_MOST_BYTES).replace("\\\n", " ")
    except OSError:
        return
    for line in text.splitlines():
        words = line.strip()
        if words.startswith("["):
            section = words
        key, equals, value = words.partition("=")
        if section == "[Service]" and equals and not key.startswith(("#", ";")):
            if value.strip():
                service.setdefault(key.strip(), []).append(value.strip())
            else:
                service[key.strip()] = []
