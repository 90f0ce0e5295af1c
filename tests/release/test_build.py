"""Sdist and wheel: the same bytes whoever builds them, and nothing in them that git does not have."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from memscaler import __version__
from tests.release.conftest import ROOT
from tools.release import build, tree


@pytest.fixture(scope="module")
def built(checkout, tmp_path_factory) -> tuple[Path, Path]:
    """What a release has."""
    return build.build(checkout, tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def elsewhere(checkout, tmp_path_factory) -> Path:
    """The same files as somebody else has them: another place, other times and rights, and litter in between."""
    folder = tmp_path_factory.mktemp("else where") / "a b"
    shutil.copytree(checkout, folder, ignore=shutil.ignore_patterns(".git"))
    for number, path in enumerate(sorted(folder.rglob("*"))):
        if path.is_file():
            path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o600)
            os.utime(path, (1_500_000_000 + number * 1000, 1_500_000_000 + number * 1000))
    (folder / "memscaler/__pycache__").mkdir(exist_ok=True)
    (folder / "memscaler/__pycache__/main.cpython-311.pyc").write_bytes(b"litter")
    (folder / "memscaler/simulator/libnvidia-ml.so.1").write_bytes(b"litter")
    return folder


def by_hand(source: Path, kind: str, target: Path, epoch: int) -> Path:
    """As one builds without our tool, with another mask, language and time zone."""
    unlike = {"TZ": "Asia/Kathmandu", "LC_ALL": "C", "LANG": "de_DE.UTF-8", "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(target)]
    variables = {**os.environ, **unlike, "SOURCE_DATE_EPOCH": str(epoch)}
    subprocess.run(command, cwd=source, env=variables, umask=0o077, check=True, capture_output=True)
    (made,) = target.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


def test_a_second_build_makes_the_same_bytes(checkout, built):
    """In another folder, later, in another time zone, language and home."""
    assert build.again(checkout, *built) == []


@pytest.mark.parametrize("kind", ["sdist", "wheel"])
def test_so_does_another_machine(checkout, built, elsewhere, tmp_path, kind):
    """By hand from a tree with other times, rights and litter; the wheel from the tree is the one from the sdist."""
    made = by_hand(elsewhere, kind, tmp_path, tree.commit_time_s(checkout))
    (mine,) = [path for path in built if path.name == made.name]
    assert made.read_bytes() == mine.read_bytes()


def test_the_time_in_it_is_the_commits(checkout, built):
    """If the stamps came from anywhere else, the two builds above could agree by being quick."""
    with tarfile.open(built[0]) as tar:
        assert {member.mtime for member in tar} == {tree.commit_time_s(checkout)}
    with zipfile.ZipFile(built[1]) as archive:
        assert {info.date_time for info in archive.infolist()} == {(2026, 1, 31, 12, 0, 0)}


def test_another_commit_time_makes_other_bytes(built, elsewhere, tmp_path):
    """The comparison can fail."""
    made = by_hand(elsewhere, "wheel", tmp_path, 1_700_000_000)
    assert made.read_bytes() != built[1].read_bytes()


def test_the_sdist_is_the_commit(checkout, built):
    """Every file that git has, and one that says what it is."""
    known = tree.git(checkout, "ls-files").splitlines()
    with tarfile.open(built[0]) as tar:
        names = [member.name.partition("/")[2] for member in tar if member.isfile()]
    assert sorted(names) == sorted([*known, "PKG-INFO"])


def test_the_wheel_has_only_the_package(built):
    """Modules, BPF source, units; no test, no tool, no library that was compiled beside it."""
    with zipfile.ZipFile(built[1]) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {"memscaler", f"memscaler-{__version__}.dist-info"}
    assert [name for name in names if ".so" in name or "__pycache__" in name] == []


def test_what_is_not_committed_stays_out(checkout, built, tmp_path):
    """A file that lies about, and a change that nobody committed, are in no release."""
    stray, changed = checkout / "memscaler/stray.py", checkout / "memscaler/__main__.py"
    before = changed.read_bytes()
    try:
        stray.write_text("secret = 1\n")
        changed.write_bytes(before + b"# not committed\n")
        again = build.build(checkout, tmp_path)
    finally:
        stray.unlink()
        changed.write_bytes(before)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in built]


def test_nothing_of_this_machine_is_in_it(built):
    """Neither a path nor a user of the machine that built it."""
    with tarfile.open(built[0]) as tar:
        assert {(member.uid, member.gid, member.uname, member.gname) for member in tar} == {(0, 0, "", "")}
    assert str(ROOT).encode() not in b"".join(
        zipfile.ZipFile(built[1]).read(name) for name in zipfile.ZipFile(built[1]).namelist()
    )
