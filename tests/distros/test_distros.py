"""What `make test-distros` is made of, without booting anything: recipes, the results' way out, and the page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile

import pytest

from tests.distros import guest
from tools.distros import machine, page, roots

RESULT = {
    "date": "2026-11-21",
    "kernel": "5.10.0-46-amd64",
    "bcc": "0.18.0",
    "llvm": "11",
    "python": "3.11.2",
    "distribution_python": "3.9.2",
    "systemd": "247",
    "loader": {
        "python": "/usr/bin/python3",
        "headers": "stubs",
        "hooks": ["sockops", "tracepoint"],
        "namespaces": False,
        "notices": ["one", "two"],
    },
    "passed": 200,
    "failed": {"tests/a.py::test_b": "assert 1 == 2\n +  where"},
    "skipped": {"tests/a.py::test_c": "Skipped: no MPTCP in this kernel"},
    "left_out": {"it is slow": ["tests/a.py::test_d[both]", "tests/a.py::test_d[tracepoint]"]},
    "took_s": 600,
}


def test_the_page_says_what_was_found():
    """docs/kernels.md is the one made from the results that are committed with it."""
    text = page.PAGE.read_text()
    assert text == page.with_tables(text, page.load())


def test_the_page_shows_no_other_machines():
    """What is shown can be tried again: it has a recipe."""
    assert set(json.loads(page.RESULTS.read_text())) <= set(roots.RECIPES)


def test_tables():
    """Every fact has its row; failures, skips and what was left out are told with their reasons."""
    found = page.tables({"bullseye": RESULT, "trixie": {"error": "not done after 1 s"}})
    assert "|  | bullseye |\n" in found
    assert "| python of the loader | /usr/bin/python3 (3.9.2) |\n" in found
    assert "| namespaces told apart | no |\n" in found
    assert "| notices of the loader | one; two |\n" in found
    assert "| tests left out | 2 |\n" in found
    assert "- trixie: not done after 1 s\n" in found
    assert "- bookworm: not yet\n" in found
    assert "- bullseye: `tests/a.py::test_b`: assert 1 == 2 + where\n" in found
    assert "- bullseye: `test_c`: no MPTCP in this kernel\n" in found
    assert "- bullseye: `test_d`: it is slow\n" in found


def test_tables_of_a_kernel_that_refuses():
    """A loader that fails is told in its place."""
    refused = {**RESULT, "loader": {"error": "kernel 5.4 is too old"}}
    assert "| python of the loader | kernel 5.4 is too old |\n" in page.tables({"bullseye": refused})


def test_a_page_without_marks_is_not_overwritten():
    """The text around the tables is written by hand, and nothing of it may be lost."""
    text = f"before\n{page.BEGIN}of yesterday\n{page.END}after\n"
    made = page.with_tables(text, {"bullseye": RESULT})
    assert made.startswith("before\n")
    assert made.endswith("after\n")
    assert "of yesterday" not in made
    assert page.with_tables(made, {"bullseye": RESULT}) == made
    with pytest.raises(ValueError, match="lacks the marks"):
        page.with_tables("before\n", {})


@pytest.mark.parametrize("raw", [b"", bytes(4096), b'{"kernel": ', b"[1]"])
def test_results_that_did_not_come(raw):
    """An empty disk, or one whose writer was cut off, is no result."""
    assert machine.read_results(raw) is None


def test_results_disk():
    """What the guest writes is found on a disk that is larger."""
    raw = json.dumps(RESULT).encode()
    assert machine.read_results(raw + bytes(4096)) == RESULT


def test_end_of_a_console():
    """What explains a machine that told nothing: the last lines, without the terminal's carriage returns."""
    assert machine.tail("one\r\ntwo\r\nthree\r\n\r\n", lines=2) == "two\nthree"


def test_the_tree_that_is_tested(tmp_path):
    """What is not committed goes along; what git ignores stays here."""
    machine.pack(tmp_path / "tree.tar")
    with tarfile.open(tmp_path / "tree.tar") as archive:
        names = archive.getnames()
    assert {"tests/distros/guest.py", "bpf/connections.bpf.c", "pyproject.toml"} <= set(names)
    assert not [name for name in names if name.startswith((".venv/", ".git/"))]


def test_a_root_is_kept_until_its_recipe_changes(monkeypatch, tmp_path):
    """The name is a checksum of what goes into it, in the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = [roots.root_of(recipe) for recipe in roots.RECIPES.values()]
    assert names == [roots.root_of(recipe) for recipe in roots.RECIPES.values()]
    assert len(set(names)) == len(roots.RECIPES)
    assert all(name.parent == tmp_path / "memscaler" / "distros" for name in names)
    monkeypatch.setattr(roots, "PACKAGES", [*roots.PACKAGES, "hello"])
    assert not set(names) & {roots.root_of(recipe) for recipe in roots.RECIPES.values()}


def test_requirements():
    """Versions come from pyproject.toml, and the tests' own needs are among them."""
    names = {re.split("[>=,<]", line)[0] for line in roots.requirements()}
    assert {"aiohttp", "nvidia-ml-py", "nvidia-nvml-dev", "hypothesis", "pytest", "pytest-timeout"} <= names


def test_names():
    """A wrong name is told before anything is installed."""
    command = [sys.executable, "-m", "tools.distros", "potato"]
    done = subprocess.run(command, cwd=roots.REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no machine potato; there are bullseye, " in done.stderr


def test_the_tests_that_are_chosen_exist():
    """Neither a test that is run in the machines nor a pattern of what is left out has gone."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *guest.TESTS]
    environment = {**os.environ, "CI": ""}
    done = subprocess.run(command, cwd=roots.REPOSITORY, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    names = done.stdout.splitlines()
    for each in guest.LEFT_OUT:
        assert [name for name in names if re.search(each.pattern, name)], each.pattern
