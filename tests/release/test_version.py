"""The version stands in memscaler/__init__.py, and nowhere else by hand."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.version import Version

from memscaler import __version__
from tests.release.conftest import listed
from tools.release import notes, tree

ROOT = Path(__file__).resolve().parents[2]
# Files that speak of other things' versions, or of releases that are over; `golden.metrics` is of an invented snapshot.
OTHERS = ("CHANGELOG.md", "packaging/", "tests/", "docs/", "bench/", "memscaler/__init__.py")


def test_it_is_a_version():
    """In the form that packages and sorting agree on."""
    assert str(Version(__version__)) == __version__
    assert tree.version(ROOT) == __version__


def test_who_asks_is_told_the_same():
    """The command, the package's metadata and the build."""
    said = subprocess.run([sys.executable, "-m", "memscaler", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.split()[-1] == __version__
    assert importlib.metadata.version("memscaler") == __version__
    assert "version" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"]


def test_the_changelog_begins_with_it():
    """Its newest section is that of the version in the tree; dates and versions go down."""
    sections = notes.sections((ROOT / "CHANGELOG.md").read_text())
    assert sections[0].version == __version__
    versions = [Version(each.version) for each in sections]
    assert versions == sorted(set(versions), reverse=True)
    assert notes.UNRELEASED not in {each.when for each in sections[1:]}
    assert all(each.text.startswith("- ") for each in sections)


def test_it_stands_nowhere_else():
    """A second place would be forgotten: manual, units, Containerfile and tools take it from the first, or do without."""
    copies = [
        name
        for name in listed()
        if not name.startswith(OTHERS)
        and not name.endswith((".json", ".svg", ".png"))
        and re.search(rf"(?<![\d.]){re.escape(__version__)}(?![\d.])", (ROOT / name).read_text(errors="replace"))
    ]
    assert copies == []


@pytest.mark.parametrize("changelog", ["# Changes\n", "## 0.2\n\n- x\n", "## 0.2 (2026-01-31)\n\n## soon\n"])
def test_a_heading_of_another_form_is_noticed(changelog):
    """It would be taken for a part of the notes of the release above."""
    with pytest.raises(ValueError, match="wants headings"):
        notes.sections(changelog)
