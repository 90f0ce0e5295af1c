"""An installation that root may run, below a root of files: what `memscaler setup --root` is for."""

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.asked import short_folder
from tests.doctor.bench import clean_environment
from tests.wheel.installation import build, environment

SYSTEM_PYTHON = "/usr/bin/python3"  # not the tests' own, which may be in a home


@dataclass(frozen=True)
class Image:
    """root: a folder like that of a machine. program: installed elsewhere, in a folder of root's."""

    root: Path
    program: Path

    def setup(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [self.program, "setup", "--root", self.root, *arguments]
        environ = {**clean_environment(**more), "PYTHONPATH": ""}
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", env=environ)

    def good(self, *arguments: str) -> list[str]:
        done = self.setup(*arguments)
        assert (done.returncode, "memscaler:" in done.stderr) == (0, False), done.stderr
        return done.stdout.splitlines()

    def at(self, path: str) -> Path:
        return self.root / path

    def content(self) -> dict[str, bytes]:
        """Every file below the root, by its path; links by where they lead."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            name = str(path.relative_to(self.root))
            if path.is_symlink():
                found[name] = str(path.readlink()).encode()
            elif path.is_file():
                found[name] = path.read_bytes()
        return found


@pytest.fixture(scope="session")
def installation():
    """The program of a wheel in a virtual environment, where nobody but root may write."""
    with short_folder() as folder:
        wheel = build(folder)
        yield environment(folder / "venv", wheel, SYSTEM_PYTHON, copies=True).with_name("memscaler")


@pytest.fixture
def image(tmp_path, installation) -> Image:
    root = tmp_path / "image"
    (root / "etc").mkdir(parents=True)
    return Image(root, installation)


@pytest.fixture
def copied(tmp_path, installation) -> Callable[[], Path]:
    """Another environment, to be spoiled; its program, which still is that of the first, with its own prefix."""

    def copy() -> Path:
        folder = tmp_path / "venv"
        shutil.copytree(installation.parents[1], folder, symlinks=True)
        program = folder / "bin/memscaler"
        program.write_text(program.read_text().replace(str(installation.parents[1]), str(folder)))
        return program

    return copy
