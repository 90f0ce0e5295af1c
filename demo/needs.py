"""What this machine lacks for the demo, in words that say what to do."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

from memscaler.core.errors import MemscalerError

PYTHON_PACKAGES = ("xllamacpp", "gguf", "rich")


def missing() -> list[str]:
    """One line for each thing; empty if all is there."""
    lacks = []
    if os.geteuid() != 0:
        lacks.append("root: the kernel lets only root attach the BPF program. Run: sudo make demo")
    packages = [name for name in PYTHON_PACKAGES if importlib.util.find_spec(name) is None]
    if packages:
        lacks.append(f"python packages: {' '.join(packages)}. Run: make demo, or pip install '.[demo,simulator]'")
    if not any(_has_bcc(python) for python in (sys.executable, "/usr/bin/python3")):
        lacks.append("bcc for the kernel side. Run: apt install python3-bpfcc")
    try:
        from memscaler.simulator import build

        build()
    except MemscalerError as error:
        lacks.append(f"the simulated driver: {error}. {error.hint}")
    return lacks


def _has_bcc(python: str) -> bool:
    try:
        return subprocess.run([python, "-I", "-c", "import bcc"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False
