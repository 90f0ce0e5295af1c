"""`make release`: refuses what must not be released, and leaves nothing to do but to sign and to upload."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from memscaler import __version__
from tests.release.conftest import git
from tools.release import notes, tree
from tools.release.lock import read

FILES = {
    f"memscaler-{__version__}.tar.gz",
    f"memscaler-{__version__}-py3-none-any.whl",
    f"memscaler-{__version__}.cdx.json",
    f"memscaler-{__version__}-requirements.lock",
    "NOTES.md",
    "SHA256SUMS",
}


def release(checkout, *arguments):
    """The tool, in that checkout, with this python."""
    command = [sys.executable, "-m", "tools.release", *arguments]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False, timeout=100)


@pytest.fixture(scope="module")
def released(checkout):
    """What it printed, and the folder that it made."""
    (checkout / "Makefile").write_text("deb-not:\n")  # Debian packages have tests of their own
    git(checkout, "commit", "--quiet", "--all", "--amend", "--no-edit")
    result = release(checkout, __version__, "--ci-passed")
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout, checkout / "build/release" / __version__


def test_it_makes_everything(released):
    """All files, each with its sum, in the form that sha256sum -c checks."""
    folder = released[1]
    assert {path.name for path in folder.iterdir()} == FILES
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    summed = {line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    assert summed == FILES - {"NOTES.md", "SHA256SUMS"}


def test_it_prints_what_is_left(checkout, released):
    """Tag, signature, upload: with the commit and the files in them. It has done none of that."""
    said = released[0]
    for word in ("git tag --sign", "gpg --armor --detach-sign", "git push", "twine upload", "gh release create"):
        assert word in said
    assert tree.commit(checkout) in said
    named = [word.strip(",") for word in said.split() if word.startswith("build/release/")]
    assert {Path(path).name for path in named} >= FILES
    for path in named:
        assert (checkout / path).exists() or path.endswith("SHA256SUMS.asc"), path
    assert "twine upload build/" in said
    assert not tree.tagged(checkout, f"v{__version__}")


def test_the_notes_are_the_changelogs(checkout, released):
    """The section of this release, without its heading."""
    text = (released[1] / "NOTES.md").read_text()
    assert text.startswith("- ")
    assert text == notes.sections((checkout / "CHANGELOG.md").read_text())[0].text


def test_the_bill_of_materials_is_valid(released):
    """By CycloneDX's own schema; and it is what the lock says, with licences, hashes and names for machines."""
    text = (released[1] / f"memscaler-{__version__}.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    pins = {pin.name: pin for pin in read() if pin.ever}
    parts = {part["name"]: part for part in bill["components"]}
    assert set(parts) == {*pins, "bcc"}
    for name, pin in pins.items():
        assert parts[name]["purl"] == f"pkg:pypi/{name}@{pin.version}"
        (files,) = parts[name]["externalReferences"]
        assert {each["content"] for each in files["hashes"]} == set(pin.sha256)
    for part in (*bill["components"], bill["metadata"]["component"]):
        (said,) = part["licenses"]
        assert said.get("expression") or said["license"]["id"], part["name"]
    wheel = released[1] / f"memscaler-{__version__}-py3-none-any.whl"
    assert bill["metadata"]["component"]["hashes"] == [
        {"alg": "SHA-256", "content": hashlib.sha256(wheel.read_bytes()).hexdigest()}
    ]
    assert bill["metadata"]["timestamp"].startswith("2026-01-31T12:00:00")


def test_it_says_who_needs_whom(released):
    """The graph begins at memscaler and reaches every part."""
    bill = json.loads((released[1] / f"memscaler-{__version__}.cdx.json").read_text())
    needs = {each["ref"]: each.get("dependsOn", []) for each in bill["dependencies"]}
    reached, ahead = set(), [f"memscaler=={__version__}"]
    while ahead:
        name = ahead.pop()
        if name not in reached:
            reached.add(name)
            ahead += needs[name]
    assert reached == {f"memscaler=={__version__}", *(part["bom-ref"] for part in bill["components"])}
    assert any(each.startswith("yarl==") for each in needs[next(ref for ref in needs if ref.startswith("aiohttp=="))])


def test_a_second_release_is_the_same(checkout, released):
    """Every file of it, bill of materials included: nothing in them is random or of today."""
    before = {path.name: path.read_bytes() for path in released[1].iterdir()}
    assert release(checkout, "--ci-passed").returncode == 0
    assert {path.name: path.read_bytes() for path in released[1].iterdir()} == before


def test_a_dry_run_only_says_what_is_in_the_way(checkout, released):
    """It builds all of it elsewhere, from the commit, whatever lies about."""
    stray = checkout / "stray"
    stray.touch()
    try:
        result = release(checkout, "--dry-run")
        assert result.returncode == 0, result.stderr
        assert "not as in the commit: ?? stray" in result.stderr
        refused = release(checkout, "--ci-passed")
        assert refused.returncode == 1
    finally:
        stray.unlink()
    assert "git tag" not in result.stdout
    made = released[1].with_name(f"{__version__}-dry-run")
    assert {path.name: path.read_bytes() for path in made.iterdir()} == {
        path.name: path.read_bytes() for path in released[1].iterdir()
    }


def test_a_tagged_version_is_refused(checkout, released):
    """A version has one content for ever."""
    assert released
    git(checkout, "tag", f"v{__version__}")
    try:
        result = release(checkout, "--ci-passed")
    finally:
        git(checkout, "tag", "--delete", f"v{__version__}")
    assert result.returncode == 1
    assert "is tagged already" in result.stderr


@pytest.mark.parametrize(
    ("heading", "said"),
    [
        (f"## {__version__} (not released)", "where the date belongs"),
        (f"## {__version__} (yesterday)", "no date"),
        ("## 99.0 (2026-01-31)", "begins with 99.0"),
    ],
)
def test_a_changelog_that_does_not_fit_is_refused(checkout, released, heading, said):
    """What is released is what the newest section speaks of, with its date."""
    assert released
    path = checkout / "CHANGELOG.md"
    before = path.read_text()
    try:
        path.write_text(before.replace(f"## {__version__} (2026-01-31)", heading))
        result = release(checkout, "--ci-passed")
    finally:
        path.write_text(before)
    assert result.returncode == 1
    assert said in result.stderr


def test_another_version_is_a_wrong_command_line(checkout):
    """VERSION= is there to be sure, not to set it: it stands in one place."""
    result = release(checkout, "99.0")
    assert result.returncode == 2
    assert __version__ in result.stderr


def test_it_does_not_release_what_fails(checkout, released):
    """Without --ci-passed it runs what CI runs, and believes it."""
    folder: Path = released[1]
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    run = checkout / ".ci/run"
    text = run.read_text()
    try:
        run.write_text("exit 1\n")
        git(checkout, "commit", "--quiet", "--all", "--message", "broken")
        result = release(checkout)
    finally:
        run.write_text(text)
        git(checkout, "commit", "--quiet", "--all", "--message", "whole")
    assert result.returncode == 1
    assert ".ci/run failed" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_debian_packages_are_collected(checkout, released):
    """Where the Makefile has a target for them: of this version, with their sums; what lay there before is not taken."""
    makefile, folder = checkout / "Makefile", checkout / "build/deb"
    before = makefile.read_text()
    names = [f"memscaler_{__version__}-1~deb{number}_amd64.deb" for number in (12, 13)]
    made = " && ".join(f"echo {name} >build/deb/{name}" for name in names)
    folder.mkdir(parents=True)
    (folder / f"memscaler_{__version__}-0_amd64.deb").write_text("old")
    try:
        makefile.write_text(f"deb:\n\t@[ '$(SUITE)' = 'bookworm trixie' ] && {made}\n")
        result = release(checkout, "--dry-run")
    finally:
        makefile.write_text(before)
    assert result.returncode == 0, result.stderr
    sums = (released[1].with_name(f"{__version__}-dry-run") / "SHA256SUMS").read_text()
    listed = [line.split("  ")[1] for line in sums.splitlines() if line.endswith(".deb")]
    assert listed == [name.replace("~", ".") for name in names]  # as they are called after the upload
