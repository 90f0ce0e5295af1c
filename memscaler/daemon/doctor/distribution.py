"""Which distribution this is, by /etc/os-release, and how something is installed on it: os-release(5)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_MANAGERS = {
    "debian": "apt-get install",
    "ubuntu": "apt-get install",
    "fedora": "dnf install",
    "rhel": "dnf install",
    "centos": "dnf install",
    "arch": "pacman -S",
    "suse": "zypper install",
    "opensuse": "zypper install",
    "alpine": "apk add",
}
_PACKAGES: Mapping[str, Mapping[str, str]] = {
    "bcc": {
        "apt-get install": "python3-bpfcc",
        "dnf install": "python3-bcc",
        "pacman -S": "python-bcc",
        "zypper install": "python3-bcc",
        "apk add": "py3-bcc",
    },
    # elsewhere it is in the package of the driver's libraries
    "nvapi": {"debian": "libnvidia-api1"},
    "driver": {"debian": "nvidia-driver", "arch": "nvidia", "fedora": "akmod-nvidia"},
}
_SEARCH = {
    "apt-get install": "apt-file search",
    "dnf install": "dnf provides",
    "pacman -S": "pacman -F",
    "zypper install": "zypper search --provides",
    "apk add": "apk search --all",
}


@dataclass(frozen=True, slots=True)
class Distribution:
    """name: for people. kinds: its ID, then those that it is like."""

    name: str
    kinds: tuple[str, ...]

    @property
    def manager(self) -> str:
        """How packages are installed; "" if nobody knows."""
        return next((_MANAGERS[kind] for kind in self.kinds if kind in _MANAGERS), "")

    def bcc(self) -> str:
        """The command that installs the python binding of bcc."""
        package = _PACKAGES["bcc"].get(self.manager, "")
        return f"sudo {self.manager} {package}" if package else "install the python 3 binding of bcc"

    def nvapi(self) -> str:
        """The command that installs NVAPI's library."""
        return self._own("nvapi") or f"install the driver's package that has {self.provides('libnvidia-api.so.1')}"

    def provides(self, file: str) -> str:
        """A file, and how to find the package that it is in."""
        search = _SEARCH.get(self.manager, "")
        return f"{file} ({search} {file} finds it)" if search else file

    def driver(self) -> str:
        """How NVIDIA's driver is installed."""
        if "ubuntu" in self.kinds:
            return "sudo ubuntu-drivers install, then reboot"
        where = {"debian": " (from the component non-free)", "fedora": " (from RPM Fusion)"}.get(self.kinds[0], "")
        own = self._own("driver")
        return f"{own}{where}, then reboot" if own else "install the NVIDIA driver, then reboot"

    def _own(self, what: str) -> str:
        """Of this very distribution: what others call their drivers is their affair."""
        package = _PACKAGES[what].get(self.kinds[0], "")
        return f"sudo {self.manager} {package}" if package else ""


def distribution(os_release: Path) -> Distribution:
    """By this file; one that is missing or odd makes it unknown."""
    fields: dict[str, str] = {}
    try:
        lines = os_release.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, equals, value = line.partition("=")
        if equals and not key.startswith("#"):
            fields[key.strip()] = _unquoted(value.strip())
    kinds = (fields.get("ID", "linux").lower(), *fields.get("ID_LIKE", "").lower().split())
    kinds = tuple("suse" if kind.startswith("opensuse") else kind for kind in kinds)
    return Distribution(fields.get("PRETTY_NAME", "an unknown distribution"), kinds)


def _unquoted(value: str) -> str:
    try:
        return " ".join(shlex.split(value))
    except ValueError:
        return value
