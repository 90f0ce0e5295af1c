"""What `make deb` and `make test-deb` are made of, without building or booting anything."""

import itertools
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution

import pytest

from memscaler.config.render import sample
from memscaler.daemon.setup import drop_ins
from tests.deb.scenarios import SCENARIOS
from tools.deb import building, licences, testing
from tools.deb.__main__ import default
from tools.distros.roots import RECIPES, REPOSITORY
from tools.systemd.wheels import LOCK

CALLED = {  # a build dependency: the package that brings it
    "debhelper-compat": "debhelper",
    "dh-sequence-installsysusers": "debhelper",
    "dh-sequence-python3": "dh-python",
}
LOCKED = re.findall(r"^([a-z0-9-]+)==\S+ \\$", LOCK.read_text(), re.MULTILINE)  # on Linux; others have a condition


@pytest.mark.parametrize("name", ["clean-root", "launcher", "memscaler.postrm"])
def test_scripts(name):
    """Shell that shellcheck has nothing to say about."""
    path = testing.SCRIPT if name == "clean-root" else building.PACKAGING / name
    done = subprocess.run(["shellcheck", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_configuration_of_the_package():
    """What `memscaler config init` prints, and discovery: a fresh installation has something to watch."""
    command = ["sed", "-f", building.PACKAGING / "config.sed"]
    made = subprocess.run(command, input=sample(), capture_output=True, text=True, check=True).stdout
    assert tomllib.loads(made) == {"discover": True}
    assert len(set(made.splitlines()) - set(sample().splitlines())) == 1


def test_drop_ins_are_examples():
    """Those that some configurations need, and that setup would have written; the package's README names them."""
    examples = (building.PACKAGING / "memscaler.examples").read_text().split()
    readme = (building.PACKAGING / "memscaler.README.Debian").read_text()
    for each in drop_ins.ALL:
        assert f"systemd/{each.source.name}" in examples
        assert each.source.name in readme
        assert each.why.split()[0] in readme


@pytest.mark.parametrize(
    ("older", "newer"), [("0.2.0.dev3", "0.2.0rc1"), ("0.2.0a1", "0.2.0b1"), ("0.2.0rc2", "0.2.0"), ("0.2.0", "0.10.0")]
)
def test_versions_are_in_order(monkeypatch, older, newer):
    """To dpkg, too; and the package of a newer Debian is an upgrade of the one for an older Debian."""
    versions = []
    for each in (older, newer):
        monkeypatch.setattr(building, "__version__", each)
        versions += [building.version(suite) for suite in building.SUITES]
    for first, second in itertools.pairwise(versions):
        subprocess.run(["dpkg", "--compare-versions", first, "lt", second], check=True)


def test_every_locked_package_has_a_licence_that_we_know():
    """Or the build would fail, later."""
    assert "aiohttp" in LOCKED
    assert "colorama" not in LOCKED  # of Windows
    known = {name: set(licences.licence(distribution(name)).split()) - {"and", "or"} for name in LOCKED}
    assert {name: said for name, said in known.items() if not said or not said <= licences.KNOWN} == {}


def test_a_licence_is_told_as_debian_does():
    """Everybody who is named, and either the text or where Debian has it."""
    text = (
        "Apache License\nVersion 2.0, January 2004\n",
        "The licence\n\nCopyright (c) 2020 A. Body\nCopyright 2021 B. Body\n",
    )
    told = licences.paragraph(distribution("aiohttp"), list(text)).splitlines()
    assert told[1:5] == [
        "Files: aiohttp/*",
        "Copyright: Copyright (c) 2020 A. Body",
        "           Copyright 2021 B. Body",
        "License: Apache-2.0 and MIT",
    ]
    assert told[5:8] == [licences.APACHE, " .", " The licence"]
    assert all(line.startswith(" ") for line in told[5:])


def test_what_is_built_with():
    """The clean root has what the package says that it is built with."""
    control = (building.PACKAGING / "control").read_text()
    wanted = re.findall(
        r"^ ([a-z0-9-]+)", control.partition("Build-Depends:")[2].partition("\nStandards")[0], re.MULTILINE
    )
    assert "python3-venv" in wanted
    assert {CALLED.get(name, name) for name in wanted} <= set(building.PACKAGES)


def test_the_changelog():
    """One entry, signed by whom the package names."""
    told, control = building.changelog("trixie"), (building.PACKAGING / "control").read_text()
    assert told.startswith(f"memscaler ({building.version('trixie')}) trixie; ")
    assert f"Maintainer: {told.partition(' -- ')[2].partition('  ')[0]}\n" in control


def test_suites():
    """For each there is a machine to try it in; the default is one of them."""
    assert set(building.SUITES) <= set(RECIPES)
    assert default() in building.SUITES
    done = subprocess.run(
        [sys.executable, "-m", "tools.deb", "potato"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "no package for potato; there are bookworm, trixie" in done.stderr


def test_scenarios():
    """Each says in a sentence what must be true, and none is run without those before it."""
    assert all(each.what.endswith(".") and each.needed for each in SCENARIOS)
