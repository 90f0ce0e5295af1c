"""What the machines boot: a Debian release each, made once and kept in the user's cache folder.

A root's name holds a checksum of all that goes into it: a change here makes new ones, a change of memscaler does not,
because the tree under test is not in them. Deleting the folder is safe, and fetches newer kernels.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
WORK = "/work/memscaler"  # where the machine finds the tree under test
VENV = "/opt/venv"
DISK_MB = 4000

PACKAGES = [
    *("systemd", "systemd-sysv", "dbus", "udev", "kmod"),  # to boot
    *("python3", "python3-bpfcc", "iproute2", "procps"),  # what memscaler and its tests want
    *("gcc", "libc6-dev"),  # for the simulated driver
]
TESTS_WANT = ("pytest", "pytest-timeout", "hypothesis")
SOURCE = "deb http://deb.debian.org/debian {} main"

UNIT = f"""[Unit]
Description=Unpack the tree under test from the second disk, test it, write the results to the third, power off

[Service]
Type=oneshot
TTYPath=/dev/ttyS0
StandardOutput=tty
StandardError=tty
Environment=HOME=/root LANG=C.UTF-8
ExecStartPre=/bin/sh -c 'mkdir -p {WORK} && tar -xf /dev/vdb -C {WORK}'
ExecStart=/bin/sh -c 'cd {WORK} && exec {VENV}/bin/python -m tests.distros.guest /dev/vdc'
ExecStopPost=/bin/sh -c 'sync; systemctl poweroff --force --force'

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True)
class Recipe:
    """One release. kernel: the package, as apt names it. python: the version that the daemon runs under."""

    name: str
    suite: str
    python: str
    kernel: str = "linux-image-amd64"
    more_sources: tuple[str, ...] = ()
    python_from: str = ""  # another release, where the own python is too old for the daemon


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("bullseye", "bullseye", "3.11", python_from="bookworm"),
        Recipe("bookworm", "bookworm", "3.11"),
        Recipe("trixie", "trixie", "3.13"),
        Recipe(
            "trixie-backports",
            "trixie",
            "3.13",
            kernel="linux-image-amd64/trixie-backports",
            more_sources=("trixie-backports",),
        ),
    )
}


def cache() -> Path:
    """Outside the repository, so that `make clean` costs no download."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "memscaler" / "distros"


def requirements() -> list[str]:
    """The third-party packages that the daemon and the chosen tests import."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    tests = [line for line in extras["dev"] if line.split(">=")[0] in TESTS_WANT]
    return [*project["dependencies"], *extras["simulator"], *tests]


def root_of(recipe: Recipe) -> Path:
    """Where the root of this recipe is kept: disk.ext4, vmlinuz and initrd.img."""
    how = inspect.getsource(_build) + inspect.getsource(_at_home)
    what = repr((recipe, PACKAGES, UNIT, DISK_MB, requirements(), how))
    return cache() / f"{recipe.name}-{hashlib.sha256(what.encode()).hexdigest()[:12]}"


def build_log(recipe: Recipe) -> Path:
    """What the making of its root printed."""
    return cache() / f"{recipe.name}-build.log"


def ensure(recipe: Recipe) -> Path:
    """The root, made now if it is not there. Raise CalledProcessError, with build_log() telling why."""
    target = root_of(recipe)
    if target.is_dir():
        return target
    cache().mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f"{recipe.name}-building-", dir=cache()))
    try:
        with build_log(recipe).open("w") as log:
            _build(recipe, building, log.fileno())
        building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    for older in cache().glob(f"{recipe.name}-" + "[0-9a-f]" * 12):
        if older != target:
            shutil.rmtree(older)
    return target


def _build(recipe: Recipe, folder: Path, log: int) -> None:
    root = folder / "root"

    def run(*command: str | Path) -> None:
        subprocess.run(command, check=True, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    sources = [f'--setup-hook=echo "{SOURCE.format(each)}" >>"$1"/etc/apt/sources.list' for each in recipe.more_sources]
    wanted = ",".join([*PACKAGES, recipe.kernel])
    run("mmdebstrap", "--variant=minbase", f"--include={wanted}", *sources, recipe.suite, root)
    python = "/usr/bin/python3"
    if recipe.python_from:
        python = "/opt/python/usr/bin/python" + recipe.python
        run("mmdebstrap", "--variant=extract", "--include=python3", recipe.python_from, root / "opt/python")
        _at_home(root, python, run)
    run("chroot", root, python, "-m", "venv", "--without-pip", VENV)
    packages = root / VENV.lstrip("/") / "lib" / f"python{recipe.python}" / "site-packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
    run(*pip, "--python-version", recipe.python, "--target", packages, *requirements())
    (packages / "memscaler.pth").write_text(WORK + "\n")
    unit = root / "etc/systemd/system/distro-test.service"
    unit.write_text(UNIT)
    run("chroot", root, "systemctl", "enable", unit.name)
    (root / "etc/hostname").write_text(recipe.name + "\n")
    for name in ("vmlinuz", "initrd.img"):
        shutil.copy(next((root / "boot").glob(name + "-*")), folder / name)
    run("mke2fs", "-q", "-t", "ext4", "-d", root, folder / "disk.ext4", f"{DISK_MB}M")
    shutil.rmtree(root)


def _at_home(root: Path, python: str, run: Callable[..., None]) -> None:
    """Let a newer release's python run in an older one, with the C library and the others that it came with."""
    folders = ["/opt/python/lib/x86_64-linux-gnu", "/opt/python/usr/lib/x86_64-linux-gnu"]
    loader = folders[0] + "/ld-linux-x86-64.so.2"
    binary = root / python.lstrip("/")
    run("patchelf", "--set-interpreter", loader, "--force-rpath", "--set-rpath", ":".join(folders), binary)
