"""What a built package has to stand: `make test-deb`."""

from __future__ import annotations

import filecmp
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from tools.deb import building
from tools.distros import machine
from tools.distros.roots import RECIPES, REPOSITORY, build_log, cache, ensure
from tools.systemd.__main__ import tell

CONSOLE = "deb-console.log"
GUEST = "tests.deb.guest"
LIMIT_S = 3600  # three minutes where nothing else runs
SCRIPT = REPOSITORY / "tests" / "deb" / "clean-root"


class CheckFailed(Exception):
    """What has been found, in a sentence."""


def is_reproducible(suite: str, package: Path) -> None:
    """Built again, it is the same to the byte."""
    again = building.build(suite, building.OUTPUT / "again")
    if not filecmp.cmp(package, again, shallow=False):
        raise CheckFailed(f"{again} is not the same as {package}")


def in_a_clean_root(suite: str, package: Path) -> None:
    """Where nothing else is installed, and no systemd runs: its dependencies suffice, and nothing stays behind."""
    newer = building.next_version(package, building.OUTPUT / "next")
    log = building.OUTPUT / f"{suite}-clean-root.log"
    copy = f"--customize-hook=copy-in {package} {newer} {SCRIPT} /root"
    call = f'--customize-hook=chroot "$1" /root/{SCRIPT.name} {package.name} {newer.name}'
    command = ["mmdebstrap", "--variant=minbase", "--format=null", copy, call, suite, "/dev/null"]
    with log.open("w") as file:
        if subprocess.run(command, check=False, stdout=file, stderr=file).returncode:
            raise CheckFailed(f"see {log}, which ends with:\n{machine.tail(log.read_text(), 12)}")


def in_a_machine(suite: str, package: Path) -> None:
    """Where a real systemd runs: tests/deb/scenarios.py is the list."""
    recipe = RECIPES[suite]
    try:
        root = ensure(recipe)
    except subprocess.CalledProcessError as error:
        raise CheckFailed(f"{error}; see {build_log(recipe)}") from error
    newer = building.next_version(package, building.OUTPUT / "next")
    with tempfile.TemporaryDirectory(prefix="deb-disk-", dir=cache()) as folder:
        disk = Path(folder, "packages.tar")
        with tarfile.open(disk, "w") as archive:
            archive.add(package, "packages/memscaler.deb")
            archive.add(newer, "packages/newer.deb")
        try:
            found = machine.boot(root, machine.Job(CONSOLE, GUEST, disks=(disk,), limit_s=LIMIT_S))
        except machine.NoResults as error:
            raise CheckFailed(str(error)) from error
    if not tell(found):
        raise CheckFailed("a scenario failed")


CHECKS: dict[str, Callable[[str, Path], None]] = {
    "building it again": is_reproducible,
    "installing it in a clean root (two minutes)": in_a_clean_root,
    "installing it in an emulated machine": in_a_machine,
}
