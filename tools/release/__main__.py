"""Prepare a release in build/release/VERSION and print what is left to do: signing and the upload.

Usage: python -m tools.release [VERSION] [--dry-run | --ci-passed]
Exit status 1 if something is in the way of this release, 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

from tools.release import build, lock, notes, sbom, tree

DEB, SUITES = Path("build/deb"), ("bookworm", "trixie")


def say(text: str) -> None:
    """Progress, for a person."""
    print(f"release: {text}", file=sys.stderr, flush=True)


def in_the_way(version: str) -> list[str]:
    """What must be put right before this commit can be released."""
    found = [f"not as in the commit: {line}" for line in tree.changed(Path())]
    if tree.tagged(Path(), f"v{version}"):
        found.append(f"v{version} is tagged already: raise __version__ in memscaler/__init__.py")
    newest = _newest()
    if newest.version != version:
        found.append(f"CHANGELOG.md begins with {newest.version}, memscaler/__init__.py says {version}")
    elif newest.when == notes.UNRELEASED:
        found.append(f"CHANGELOG.md says '{notes.UNRELEASED}' where the date belongs: ## {version} ({_today()})")
    elif not _is_date(newest.when):
        found.append(f"CHANGELOG.md: {newest.when!r} is no date like {_today()}")
    return found


def checked() -> list[str]:
    """Run what CI runs. Returns what is wrong."""
    say("running .ci/run: every test, every check (--ci-passed says that it has passed for this commit)")
    return [] if subprocess.run(["bash", ".ci/run"], check=False).returncode == 0 else [".ci/run failed"]


def prepare(version: str, folder: Path) -> list[Path]:
    """Build everything into the folder, which is emptied first. Raise CalledProcessError, ValueError, NotAsPinned."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    say("building sdist and wheel, twice")
    sdist, wheel = build.build(Path(), folder)
    if different := build.again(Path(), sdist, wheel):
        raise ValueError(f"a second build made other bytes of {', '.join(different)}")
    subprocess.run([sys.executable, "-m", "twine", "--no-color", "check", "--strict", sdist, wheel], check=True)
    bill = folder / f"memscaler-{version}.cdx.json"
    bill.write_text(sbom.bill(wheel, version, lock.read(), tree.commit_time_s(Path())), encoding="utf-8")
    pins = folder / f"memscaler-{version}-{lock.RUNTIME.name}"
    shutil.copyfile(lock.RUNTIME, pins)
    (folder / "NOTES.md").write_text(_newest().text, encoding="utf-8")
    files = [folder / sdist.name, folder / wheel.name, bill, pins, *_deb(folder, version)]
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(files)]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")
    return files


def left_to_do(version: str, folder: Path, files: list[Path]) -> str:
    """The commands that publish it."""
    uploads = " ".join(str(path) for path in files if path.suffix in (".gz", ".whl"))
    everything = " ".join(str(path) for path in sorted(files))
    sums = folder / "SHA256SUMS"
    return f"""
Look at {folder}, then:

    git tag --sign v{version} {tree.commit(Path())} --message 'memscaler {version}'
    gpg --armor --detach-sign {sums}
    git push origin v{version}
    {sys.executable} -m twine upload {uploads}
    gh release create v{version} --verify-tag --title 'memscaler {version}' --notes-file {folder / "NOTES.md"} \\
        {everything} {sums} {sums}.asc
"""


def _deb(folder: Path, version: str) -> list[Path]:
    """Debian packages of this commit, where there is a target for them."""
    if not re.search(r"^deb:", Path("Makefile").read_text(encoding="utf-8"), re.MULTILINE):
        return []
    say(f"building Debian packages: {', '.join(SUITES)}")
    for old in DEB.glob("*.deb"):
        old.unlink()
    subprocess.run(["make", "--silent", "deb", f"SUITE={' '.join(SUITES)}"], check=True)
    packages = sorted(DEB.glob(f"memscaler_{version}-*.deb"))
    if len(packages) != len(SUITES):
        raise ValueError(f"{len(SUITES)} Debian packages were wanted, there are {[path.name for path in packages]}")
    # GitHub writes a dot for a tilde, and then the names in the sums would be those of no file.
    return [Path(shutil.copy2(path, folder / path.name.replace("~", "."))) for path in packages]


def _newest() -> notes.Section:
    return notes.sections(Path("CHANGELOG.md").read_text(encoding="utf-8"))[0]


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _run(version: str, *, dry: bool, ci_passed: bool) -> int:
    problems = in_the_way(version)
    if not dry and not problems and not ci_passed:
        problems = checked()
    for problem in problems:
        say(problem)
    if problems and not dry:
        return 1
    folder = Path("build/release", f"{version}-dry-run" if dry else version)
    try:
        files = prepare(version, folder)
    except subprocess.CalledProcessError as error:
        say(f"{error}\n{error.stderr or ''}")
        return 1
    except (ValueError, sbom.NotAsPinned) as error:
        say(str(error))
        return 1
    if dry:
        ways = "1 thing is" if len(problems) == 1 else f"{len(problems)} things are"
        say(f"{folder} has what a release would have; {ways} in its way, and no test was run")
    else:
        print(left_to_do(version, folder, files))
    return 0


def main() -> int:
    """In the root of a checkout."""
    parser = argparse.ArgumentParser(prog="python -m tools.release", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("version", nargs="?", metavar="VERSION", help="must be that of memscaler/__init__.py")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="build all of it, and only say what is in the way")
    how.add_argument("--ci-passed", action="store_true", help="CI has passed for this commit: do not run it again")
    options = parser.parse_args()
    version = tree.version(Path())
    if options.version not in (None, version):
        parser.error(f"memscaler/__init__.py says {version}")
    return _run(version, dry=options.dry_run, ci_passed=options.ci_passed)


if __name__ == "__main__":
    sys.exit(main())
