"""What a wheel holds: everything that a governor needs, wherever it is installed. On other pythons: `make test-wheel`."""

import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from memscaler import __version__
from tests.governor import connect, eventually, governing, listener, port_of
from tests.wheel.installation import ROOT, build, environment

# Beside the package in the repository, inside it in a wheel.
FOLDERS = ("bpf", "systemd", "completions", "deploy")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def unpacked(wheel) -> Path:
    """A folder with the wheel's content."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(wheel.parent / "site")
    return wheel.parent / "site"


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """That of a fresh environment."""
    return environment(tmp_path_factory.mktemp("environment") / "venv", wheel)


def asks(python: Path, code: str, cwd: Path) -> str:
    environ = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run([python, "-c", code], env=environ, cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout


def test_it_has_all_that_is_not_python(wheel, unpacked):
    """Every file of the folders beside the package, page and driver of the package, manual, types and license."""
    assert wheel.name == f"memscaler-{__version__}-py3-none-any.whl"
    package = unpacked / "memscaler"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        if name.startswith(tuple(f"{folder}/" for folder in FOLDERS)):
            assert (package / name).read_bytes() == (ROOT / name).read_bytes()
        elif name.startswith("memscaler/"):
            assert (unpacked / name).read_bytes() == (ROOT / name).read_bytes()
    assert {path.name for path in (package / "man").iterdir()} == {path.name for path in (ROOT / "man").glob("*.[158]")}
    assert len(list((package / "man").iterdir())) == 3
    assert list(unpacked.glob("*.dist-info/licenses/LICENSE"))
    assert not list(unpacked.rglob("*.so*"))
    assert not [path for path in unpacked.rglob("*") if path.name in ("tests", "tools", "bench", "__pycache__")]


def test_it_finds_them(python, tmp_path):
    """An installed memscaler uses its own files, not those of a checkout."""
    code = "from memscaler import resources as r; import memscaler; print(memscaler.__file__);"
    code += "print(*(getattr(r, n)() for n in dir(r) if n.endswith('_dir')), sep='\\n')"
    package, *folders = map(Path, asks(python, code, tmp_path).splitlines())
    assert package.is_relative_to(python.parents[1])
    assert folders == [package.parent / name for name in ("bpf", "completions", "deploy", "man", "systemd")]


def test_nobody_else_looks_for_files():
    """memscaler/resources.py is the one that knows where the files beside the code are."""
    found = set()
    for path in (ROOT / "memscaler").rglob("*.py"):
        if re.search(
            r"""\.parent(\.parent)? / ["'](bpf|systemd|completions|man|deploy)\b|parents\[\d\] / """, path.read_text()
        ):
            found.add(path.name)
    assert found <= {"resources.py"}


def test_it_has_a_command(python, tmp_path):
    """What pip makes of the entry point."""
    command = [python.with_name("memscaler"), "--version"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"memscaler {__version__}\n"


def test_a_config_to_begin_with(python, tmp_path):
    """No template is needed for it."""
    code = "from memscaler.config.render import sample; print(sample())"
    assert "#idle_after = " in asks(python, code, tmp_path)


def test_it_governs(python, tmp_path):
    """A real connection wakes a simulated board that the installed governor has parked; nothing is of the checkout."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    assert not shutil.which("memscaler", path=str(folder))
    environ = {"PYTHONPATH": "", "PATH": f"{python.parent}:/usr/bin:/bin"}
    with listener() as server:
        port = f"{port_of(server)}:gpu0"
        arguments = ("--port", port, "--idle-after", "200ms", "--metrics", "127.0.0.1:0")
        with governing(tmp_path / "run", "a40", *arguments, python=str(python), cwd=folder, env=environ) as governor:
            board = governor.driver.boards[0]
            eventually(lambda: board.locks, what="parked")
            command = Path(f"/proc/{governor.pid}/cmdline").read_bytes().decode().split("\0")
            assert Path(command[2]).is_relative_to(python.parents[1])
            with connect(server), server.accept()[0]:
                eventually(lambda: not board.locks, what="woken")
            eventually(lambda: board.locks, what="parked again")
            assert "memscaler_host_info" in governor.metrics()
            assert governor.stop() == 0
            assert not board.locks
