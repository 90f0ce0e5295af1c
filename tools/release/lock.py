"""Reads a lock of packaging/, as `make lock` writes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import Marker
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "packaging"
RUNTIME = FOLDER / "requirements.lock"
PYTHONS = ("3.11.0", "3.12.0", "3.13.0")
MACHINES = ("x86_64", "aarch64")
# Where memscaler runs: what a marker is asked about.
ENVIRONMENTS: tuple[dict[str, str], ...] = tuple(
    {
        "implementation_name": "cpython",
        "implementation_version": python,
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": python,
        "python_version": python.rpartition(".")[0],
        "sys_platform": "linux",
    }
    for python in PYTHONS
    for machine in MACHINES
)

_PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;\\]+)(?: ; (?P<marker>[^\\]+?))?(?: \\)?$")
_HASH = re.compile(r"^    --hash=sha256:(?P<sha256>[0-9a-f]{64})(?: \\)?$")
_VIA = re.compile(r"^    # (?:via)? *(?P<whose>[^ ].*)?$")


@dataclass(frozen=True, slots=True)
class Pin:
    """One version of one package: sha256 of every file that there is of it, and which packages want it."""

    name: str
    version: Version
    marker: Marker | None
    sha256: tuple[str, ...]
    via: frozenset[str]

    def holds(self, environment: Mapping[str, str]) -> bool:
        """Whether it is installed there."""
        return self.marker is None or self.marker.evaluate(dict(environment))

    @property
    def ever(self) -> bool:
        """Whether it is installed anywhere where memscaler runs."""
        return any(map(self.holds, ENVIRONMENTS))


def read(path: Path = RUNTIME) -> tuple[Pin, ...]:
    """Its pins, in order. Raise ValueError with the line that is none of a lock."""
    pins: list[Pin] = []
    found: re.Match[str] | None = None
    hashes: list[str] = []
    via: list[str] = []

    def close() -> None:
        if found:
            marker = Marker(found["marker"]) if found["marker"] else None
            name = canonicalize_name(found["name"])
            pins.append(Pin(name, Version(found["version"]), marker, tuple(hashes), frozenset(via)))
        hashes.clear()
        via.clear()

    for line in path.read_text(encoding="utf-8").splitlines():
        if opened := _PIN.match(line):
            close()
            found = opened
        elif (hashed := _HASH.match(line)) and found:
            hashes.append(hashed["sha256"])
        elif (wanted := _VIA.match(line)) and found:
            via += [wanted["whose"]] if wanted["whose"] and not wanted["whose"].startswith("-c ") else []
        elif line and not line.startswith("#"):
            raise ValueError(f"{path.name}: {line!r} is no line of a lock")
    close()
    return tuple(pins)
