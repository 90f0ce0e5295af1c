"""The manual: made from the code, complete, and accepted by man(1) without a warning."""

import os
import re
import subprocess

import pytest

from memscaler.config.schema import OPTIONS
from memscaler.core import errors
from tools import manual
from tools.commands import tree


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """What man prints of each page, at 80 columns, and what it warns of."""
    folder, found = tmp_path_factory.mktemp("man"), {}
    for page in manual.PAGES:
        path = folder / page
        path.write_text(manual.roff(page), encoding="utf-8")
        environ = {**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8", "MANPAGER": "cat"}
        found[page] = subprocess.run(
            ["man", "-l", "--warnings", path], env=environ, capture_output=True, text=True, check=True
        )
    return found


def words(pages, page):
    """Its text without the breaks of its lines."""
    return " ".join(re.sub(r".\x08", "", pages[page].stdout).split())


@pytest.mark.parametrize("page", manual.PAGES)
def test_man_prints_it(pages, page):
    """Without a warning, within 80 columns, with the usual sections."""
    printed = pages[page]
    assert printed.stderr == ""
    assert max(map(len, printed.stdout.splitlines())) <= 80
    for section in ("NAME", "SYNOPSIS", "DESCRIPTION", "SEE ALSO"):
        assert f"\n{section}\n" in printed.stdout
    assert "<!--" not in printed.stdout


def test_the_sources_are_current():
    """What is made from the code is what the code says."""
    for page in manual.PAGES:
        assert manual.source(page).read_text(encoding="utf-8") == manual.written(page), "`make generate` writes it anew"


def test_every_command_and_option_is_in_it(pages):
    """memscaler(1) leaves none out."""
    text = words(pages, "memscaler.1")
    for command in tree().walk():
        assert f"memscaler {command.path}".strip() in text
        assert all(name in text for option in command.options for name in option.names if name != "-h")


def test_every_exit_code_is_in_it(pages):
    """Those of all errors, and those of `hold`."""
    section = re.search(r"\nEXIT STATUS\n(.*?)\n[A-Z]", pages["memscaler.1"].stdout, re.DOTALL)[1]
    kinds = [
        each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.MemscalerError)
    ]
    codes = {0, 126, 127, 128, 130, *(each.exit_code for each in kinds)}
    assert codes >= {1, 2, 3, 4, 69, 78}
    assert all(re.search(rf"\b{code}\b", section) for code in codes)


def test_every_setting_is_in_it(pages):
    """memscaler.toml(5) has keys, defaults and variables."""
    text = words(pages, "memscaler.toml.5")
    for option in OPTIONS:
        assert option.key in text
        assert f"Default: {option.default}." in text or not option.default
        assert all(name in text for name in option.env)
    assert all(name in text for name in ("[[watch]]", "[gpu.NAME]", "port", "scope", "gpus"))
