"""Builds the package of a release from the present working tree, in a clean root of that release, without a network."""

from __future__ import annotations

import datetime as dt
import email.utils
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from memscaler import __version__
from tools.distros import machine
from tools.distros.roots import RECIPES, REPOSITORY, cache
from tools.systemd import wheels
from tools.unpack import unpack

SUITES = {"bookworm": 12, "trixie": 13}
PACKAGING = REPOSITORY / "packaging" / "debian"
OUTPUT = REPOSITORY / "build" / "deb"
# Build-Depends of packaging/debian/control by the names of real packages, what calls the build, and who checks it.
PACKAGES = ("debhelper", "dh-python", "dpkg-dev", "go-md2man", "lintian", "python3", "python3-venv")
MAINTAINER = re.compile(r"^Maintainer: (.*)$", re.MULTILINE)
PRERELEASE = re.compile(r"\.?(a|b|rc|dev)(\d+)")
# Not checked is that build-essential is there: nothing is compiled, and it would bring 250 MB of compilers.
BUILD = "cd /build/memscaler && dpkg-buildpackage --build=binary --no-sign --no-check-builddeps"
LINT = "cd /build && lintian --allow-root --fail-on error --tag-display-limit 0 memscaler_*.changes"
STEPS = {"building it, without a network (a minute)": BUILD, "what lintian says": LINT}
ENVIRONMENT = ("env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "WHEELS=/build/wheels")
ISOLATED = ("unshare", "--mount", "--propagation", "unchanged", "--net", "--pid", "--fork", "--kill-child")
# In a chroot, as on a build machine, / is no mount that could be made private; /proc is one everywhere. What is mounted
# on it, in this namespace, nobody else sees.
INNER = """\
mount --make-private /proc && mount --bind "$0" /proc && mount -t proc proc /proc/proc && exec chroot /proc "$@"
"""


class BuildFailed(Exception):
    """The package could not be built, or lintian found an error; the text says where to look."""


def _quiet(_text: str) -> None:
    """Nobody listens."""


def version(suite: str) -> str:
    """Of the package: memscaler's own, in Debian's order of pre-releases, and the release that it is built for."""
    return PRERELEASE.sub(r"~\1\2", __version__) + f"-1~deb{SUITES[suite]}"


def root_of(suite: str) -> Path:
    """Where the archive of the clean root is kept."""
    what = hashlib.sha256(repr((suite, PACKAGES)).encode()).hexdigest()[:12]
    return cache() / f"deb-{suite}-{what}.tar"


def ensure_root(suite: str, say: Callable[[str], None]) -> Path:
    """The archive, made now if it is not there. Raise CalledProcessError."""
    target = root_of(suite)
    if not target.exists():
        say("making its clean root with mmdebstrap (2 minutes, once)")
        cache().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"deb-{suite}-building-", dir=cache()) as folder:
            draft = Path(folder, "root.tar")
            make = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}", suite, draft]
            subprocess.run(make, check=True)
            draft.rename(target)
    return target


def build(suite: str, target: Path = OUTPUT, say: Callable[[str], None] = _quiet) -> Path:
    """The package, in the target folder beside its .changes and lintian's words. Raise BuildFailed.

    say: is told what begins.
    """
    target.mkdir(parents=True, exist_ok=True)
    log = target / f"{suite}.log"
    with _clean_root(suite, say) as root, log.open("w") as file:
        for about, what in STEPS.items():
            say(about)
            if _in(root, what, file.fileno()):
                raise BuildFailed(
                    f"{what.split('&& ')[1]} failed:\n{machine.tail(log.read_text(), 12)}\nAll of it: {log}"
                )
        for old in target.glob(f"memscaler_*~deb{SUITES[suite]}_*"):
            old.unlink()  # so that there is one to install
        for each in (root / "build").glob("memscaler_*"):
            shutil.copy(each, target)
    return target / f"memscaler_{version(suite)}_{_architecture()}.deb"


def next_version(package: Path, target: Path) -> Path:
    """The same package, as a later release of it would be: for an upgrade."""
    with tempfile.TemporaryDirectory(prefix="deb-next-") as folder:
        tree = Path(folder, "tree")
        subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
        control = tree / "DEBIAN" / "control"
        control.write_text(re.sub(r"^(Version: .*)$", r"\1+next", control.read_text(), flags=re.MULTILINE))
        (source,) = tree.glob("usr/lib/memscaler/lib/python3*/site-packages/memscaler/__init__.py")
        source.write_text(source.read_text().replace(f'"{__version__}"', f'"{__version__}+next"'))
        target.mkdir(parents=True, exist_ok=True)
        made = target / f"{package.stem}+next.deb"
        subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, made], check=True, capture_output=True)
    return made


@contextmanager
def _clean_root(suite: str, say: Callable[[str], None]) -> Iterator[Path]:
    """A root with the tree and its debian/ in /build/memscaler, and what pip wants in /build/wheels."""
    archive = ensure_root(suite, say)
    if not wheels.archive_of(RECIPES[suite]).exists():
        say("fetching the python packages of packaging/requirements.lock (once)")
    needed = wheels.ensure(RECIPES[suite])
    say("unpacking the root, and this tree into it")
    with tempfile.TemporaryDirectory(prefix=f"deb-{suite}-root-", dir=cache()) as folder:
        root, packed = Path(folder, "root"), Path(folder, "tree.tar")
        tree = root / "build" / "memscaler"
        root.mkdir()
        subprocess.run(["tar", "-xf", archive, "-C", root], check=True)
        tree.mkdir(parents=True)
        machine.pack(packed)
        for source, place in ((packed, tree), (needed, tree.parent)):
            unpack(source, place)
        shutil.move(tree / "packaging" / "debian", tree / "debian")
        (tree / "debian" / "changelog").write_text(changelog(suite))
        yield root


def changelog(suite: str) -> str:
    """One entry: what is new is in CHANGELOG.md. Its date is that of the commit, so that a build can be repeated."""
    asked = ["git", "log", "-1", "--format=%ct"]
    seconds = int(subprocess.run(asked, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout)
    date = email.utils.format_datetime(dt.datetime.fromtimestamp(seconds, tz=dt.UTC))
    found = MAINTAINER.search((PACKAGING / "control").read_text())
    maintainer = found[1] if found else ""
    head = f"memscaler ({version(suite)}) {suite}; urgency=medium"
    return f"{head}\n\n  * See changelog.gz.\n\n -- {maintainer}  {date}\n"


def _in(root: Path, command: str, log: int) -> int:
    """A shell command in the root, with no network. Returns its exit status."""
    whole = [*ISOLATED, "sh", "-c", INNER, root, *ENVIRONMENT, "sh", "-c", command]
    return subprocess.run(whole, check=False, stdin=subprocess.DEVNULL, stdout=log, stderr=log).returncode


def _architecture() -> str:
    asked = ["dpkg", "--print-architecture"]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
