"""What a wheel holds: everything that a governor needs, wherever it is installed."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from memscaler import __version__

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the wheel's content."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name == f"memscaler-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_it_has_all_that_is_not_python(installed):
    """BPF source, stub headers, simulator sources, units, types and license are inside."""
    package = installed / "memscaler"
    assert (package / "py.typed").is_file()
    assert (package / "bpf/connections.bpf.c").is_file()
    assert list((package / "bpf/include").rglob("*.h"))
    assert list((package / "simulator").rglob("*.c"))
    assert (package / "systemd/memscaler.service").is_file()
    assert {path.name for path in (package / "observe/page").iterdir()} == {
        "index.html",
        "page.css",
        "page.js",
        "icon.svg",
    }
    assert list(installed.glob("*.dist-info/licenses/LICENSE"))
    assert not list(installed.rglob("*.so*"))


def test_it_finds_them(installed, tmp_path):
    """An installed memscaler uses its own files, not those of a checkout."""
    code = "from memscaler import resources; print(resources.bpf_dir()); print(resources.systemd_dir())"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(installed)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == [str(installed / "memscaler/bpf"), str(installed / "memscaler/systemd")]


def test_it_has_a_command(installed):
    """The command that the wheel installs is the one that is tested."""
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    assert "memscaler = memscaler.cli.main:main" in entry_points.read_text()
