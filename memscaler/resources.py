"""Where the files beside the code are: next to the package in a checkout, inside it in a wheel."""

from __future__ import annotations

from pathlib import Path

from memscaler.core.errors import Unavailable

_PACKAGE = Path(__file__).resolve().parent


def bpf_dir() -> Path:
    """The folder with connections.bpf.c and include/."""
    return _find("bpf", "connections.bpf.c")


def systemd_dir() -> Path:
    """The folder with memscaler.service and its companions."""
    return _find("systemd", "memscaler.service")


def completions_dir() -> Path:
    """The folder with memscaler.bash, _memscaler and memscaler.fish."""
    return _find("completions", "memscaler.bash")


def man_dir() -> Path:
    """The folder with the manual, for man(1): memscaler.1 and others."""
    return _find("man", "memscaler.1")


def deploy_dir() -> Path:
    """The folder with grafana/ and prometheus/: dashboard and alert rules."""
    return _find("deploy", "prometheus/alerts.yml")


def _find(folder: str, witness: str) -> Path:
    """The first of the two places that has the file. Raise Unavailable when neither has."""
    for base in (_PACKAGE.parent, _PACKAGE):
        if (base / folder / witness).is_file():
            return base / folder
    raise Unavailable(f"the installation lacks {folder}/{witness}", hint="reinstall memscaler")
