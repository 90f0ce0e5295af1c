"""Install the wheel into a fresh environment of each python, from the package index, and test it there.

Usage, as root: python -m tools.wheel [3.12...]     default: every python of VERSIONS that this machine has
Exit status 1 if a test failed, 2 if a python that was asked for is not there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from tests.wheel.installation import ROOT, build

VERSIONS = ("3.11", "3.12", "3.13", "3.14")
# What goes through a whole governor, its kernel side and its driver, and what it tells; and what only packaging breaks.
TESTS = (
    "tests/daemon/test_run.py",
    "tests/daemon/test_reload.py",
    "tests/kernel/test_opens_and_closes.py",
    "tests/observe/test_metrics.py",
    "tests/simulator/test_nvml.py",
    "tests/config/test_load.py",
    "tests/config/test_drop_ins.py",
)
NEEDED = ("pytest", "pytest-timeout", "hypothesis", "jsonschema", "pyyaml")
COPIED = ("tests", "tools", "docs", "pyproject.toml")  # no memscaler: it is to be found where it was installed


def find(version: str) -> str | None:
    """A python of this version: on the PATH, or of pyenv."""
    candidates = [shutil.which(f"python{version}"), "/usr/bin/python3", sys.executable]
    candidates += map(str, sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python3")))
    for each in filter(None, candidates):
        code = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
        done = subprocess.run([each, "-c", code], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip() == version:
            return each
    return None


def requirements() -> list[str]:
    """Of the tests, with the versions that the project wants."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return [line for line in extras["dev"] if line.split(">=")[0] in NEEDED]


def test(python: str, wheel: Path, folder: Path) -> int:
    """The status of pytest."""
    venv, tree = folder / "venv", folder / "tree"
    subprocess.run([python, "-m", "venv", venv], check=True)
    pip = [venv / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, f"{wheel}[simulator]", *requirements()], check=True)
    tree.mkdir()
    for name in COPIED:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tree / name)
    environ = {**os.environ, "MEMSCALER_TEST_PYTHON": str(venv / "bin/python"), "PYTHONPATH": ""}
    where = "import memscaler, sys; sys.exit(not memscaler.__file__.startswith(sys.prefix))"
    subprocess.run([venv / "bin/python", "-c", where], cwd=tree, env=environ, check=True)
    command = [tree / "tools/isolated-python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    return subprocess.run(command, cwd=tree, env=environ, check=False).returncode


def main() -> int:
    """Each in its turn; then a line for each."""
    parser = argparse.ArgumentParser(prog="python -m tools.wheel", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("versions", nargs="*", metavar="VERSION", help="such as 3.12; default: all that are there")
    asked = parser.parse_args().versions
    found = {version: find(version) for version in asked or VERSIONS}
    if missing := [version for version in asked if found[version] is None]:
        print(f"wheel: no python {', '.join(missing)} here", file=sys.stderr)
        return 2
    results = {}
    with tempfile.TemporaryDirectory(prefix="memscaler-wheel-") as name:
        wheel = build(Path(name))
        for version, python in found.items():
            if python is not None:
                print(f"wheel: python {version} ({python})", file=sys.stderr, flush=True)
                Path(name, version).mkdir()
                results[version] = test(python, wheel, Path(name, version))
    for version in found:
        print(
            f"  {'not here' if version not in results else 'FAILED' if results[version] else 'ok':8}  python {version}"
        )
    return 1 if any(results.values()) or not results else 0


if __name__ == "__main__":
    sys.exit(main())
