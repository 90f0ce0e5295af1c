"""The locks of packaging/: complete, with hashes, true to pyproject.toml, and what these very tests run with."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tools.release.lock import ENVIRONMENTS, FOLDER, RUNTIME, read

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted(FOLDER.glob("*.lock"))
TEST = FOLDER / "requirements-test.lock"
SAID = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = SAID["project"]["optional-dependencies"]
GROUPS = SAID["dependency-groups"]
WANTED = {
    "requirements.lock": [],
    "requirements-demo.lock": [*EXTRAS["simulator"], *EXTRAS["demo"], *GROUPS["build"]],
    "requirements-docs.lock": [*EXTRAS["simulator"], *EXTRAS["docs"], *GROUPS["build"]],
    "requirements-test.lock": [each for some in (*EXTRAS.values(), *GROUPS.values()) for each in some],
}


def installed_there(lock, environment):
    """Name -> version of what is installed from it there."""
    return {pin.name: pin.version for pin in read(lock) if pin.holds(environment)}


def unmet(pinned, requirement, environment):
    """Whether the requirement holds there and is not satisfied."""
    if requirement.marker and not requirement.marker.evaluate(dict(environment, extra="")):
        return False
    version = pinned.get(canonicalize_name(requirement.name))
    return version is None or not requirement.specifier.contains(version, prereleases=True)


def test_there_is_one_for_each_purpose():
    """One for users, and one for each kind of tools/setup."""
    assert {lock.name for lock in LOCKS} == set(WANTED)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
@pytest.mark.parametrize(
    "environment", ENVIRONMENTS, ids=lambda each: f"{each['python_version']}-{each['platform_machine']}"
)
def test_it_satisfies_pyproject(lock, environment):
    """What pyproject.toml wants is pinned, in a version that it accepts, for every Python and machine."""
    pinned = installed_there(lock, environment)
    wanted = [Requirement(each) for each in SAID["project"]["dependencies"] + WANTED[lock.name]]
    assert [str(each) for each in wanted if unmet(pinned, each, environment)] == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_pin_has_its_hashes(lock):
    """A pin without one would let any file through; one package once for each environment, or pip refuses."""
    pins = read(lock)
    assert [pin.name for pin in pins if not pin.sha256] == []
    assert len(pins) >= 20
    for environment in ENVIRONMENTS:
        names = [pin.name for pin in pins if pin.holds(environment)]
        assert len(names) == len(set(names))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_it_is_complete(lock):
    """What the pinned packages want is pinned too: pip fetches nothing that has no hash."""
    here = {pin.name: pin.version for pin in read(lock) if pin.holds(default_environment())}
    wanted = [(name, Requirement(line)) for name in here for line in importlib.metadata.requires(name) or []]
    missing = [f"{name} wants {each}" for name, each in wanted if unmet(here, each, default_environment())]
    assert missing == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_it_names_no_place(lock):
    """From where the files come is the user's choice (a mirror); what they are is not."""
    assert re.findall(r"https?:|file:|--(?:extra-)?index-url|--find-links| @ ", lock.read_text()) == []


def test_they_agree():
    """What is released is what is tested: a package has one version in all of them."""
    tested = {(pin.name, pin.version): pin for pin in read(TEST)}
    for lock in LOCKS:
        for pin in read(lock):
            assert tested[pin.name, pin.version].sha256 == pin.sha256, (lock.name, pin.name)


def test_the_tests_run_with_what_is_pinned():
    """The interpreter that runs this has exactly those versions (tools/setup)."""
    wrong = {
        pin.name: (str(pin.version), importlib.metadata.version(pin.name))
        for pin in read(TEST)
        if pin.holds(default_environment()) and Version(importlib.metadata.version(pin.name)) != pin.version
    }
    assert wrong == {}


def test_what_is_no_lock_is_refused(tmp_path):
    """A range, or an option that pip would obey, is not passed over in silence."""
    for line in ("aiohttp>=3", "aiohttp==3.9 --config-settings x=y", "--index-url somewhere", "-r other.txt"):
        (tmp_path / "a.lock").write_text(f"{line}\n")
        with pytest.raises(ValueError, match="no line of a lock"):
            read(tmp_path / "a.lock")


def test_pip_refuses_another_file(tmp_path):
    """The hash is what decides: a file of the right name and version with other content is not installed."""
    pin = next(pin for pin in read(RUNTIME) if pin.name == "mdurl")
    folder = tmp_path / "files"
    folder.mkdir()
    wheel = folder / f"mdurl-{pin.version}-py3-none-any.whl"
    wheel.write_bytes(b"not the real thing")
    lines = [f"mdurl=={pin.version}", *(f"    --hash=sha256:{each}" for each in pin.sha256)]
    (tmp_path / "a.lock").write_text(" \\\n".join(lines) + "\n")
    options = ["--require-hashes", "--no-index", "--find-links", str(folder), "--target", str(tmp_path / "out")]
    command = [sys.executable, "-m", "pip", "--isolated", "install", *options, "-r", str(tmp_path / "a.lock")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert not (tmp_path / "out").exists()
    assert "hash" in (result.stdout + result.stderr).lower()
