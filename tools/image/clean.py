"""Build the image without a registry and without a daemon, for the tests: buildah on a Debian that mmdebstrap makes.

Usage, as root: python -m tools.image.clean      Leaves the image's files in build/image/rootfs. Takes minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tools import image
from tools.distros.__main__ import say

SUITE = "trixie"
STORE = image.FOLDER / "store"
ROOTFS = image.FOLDER / "rootfs"
PACKAGES = {"buildah": "buildah", "crun": "crun", "mmdebstrap": "mmdebstrap"}  # and, with buildah, seccomp.json
# How this machine reaches its package index, if it has to say so.
REACH = ("/etc/pip.conf", "/etc/ssl/certs")


def buildah(*arguments: str, quiet: bool = True) -> str:
    """In a store of its own. Raise CalledProcessError; what it said is on stderr then."""
    command = ["buildah", "--root", str(STORE), "--runroot", str(STORE / "run"), "--storage-driver", "vfs"]
    done = subprocess.run([*command, *arguments], check=False, capture_output=quiet, text=True)
    if done.returncode:
        print(done.stdout, done.stderr, file=sys.stderr)
    done.check_returncode()
    return (done.stdout or "").strip()


def install() -> None:
    """What is missing. Raise CalledProcessError."""
    missing = [package for command, package in PACKAGES.items() if not _has(command)]
    if missing:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for what in (["update"], ["install", "-y", "--no-install-recommends", *missing]):
            subprocess.run(["apt-get", "-qq", *what], check=True, stdout=subprocess.DEVNULL, env=environment)


def base() -> str:
    """The name of an image that holds a minimal Debian, made once."""
    name = f"localhost/debian-{SUITE}"
    if not buildah("images", "--quiet", "--filter", f"reference={name}"):
        say(f"making a minimal Debian {SUITE}")
        archive = image.FOLDER / f"{SUITE}.tar"
        # ca-certificates: else the build would install them, into a folder of REACH
        how = ["--quiet", "--variant=minbase", "--include=ca-certificates"]
        subprocess.run(["mmdebstrap", *how, SUITE, str(archive)], check=True)
        container = buildah("from", "scratch")
        buildah("add", "--quiet", container, str(archive), "/")
        buildah("commit", "--quiet", "--rm", container, name)
        archive.unlink()
    return name


def main() -> int:
    """Build it from the Containerfile itself."""
    image.FOLDER.mkdir(parents=True, exist_ok=True)
    install()
    reach = [f"--volume={path}:{path}:ro" for path in REACH if Path(path).exists()]
    options = ["--isolation", "chroot", "--format", "docker", "--layers", "--build-arg", f"BASE={base()}", *reach]
    say("building the image")
    buildah(
        "build-using-dockerfile",
        "--file",
        str(image.CONTAINERFILE),
        "--tag",
        "memscaler",
        *options,
        str(image.context()),
    )
    for container in buildah("containers", "--quiet").split():
        buildah("rm", container)
    ROOTFS.unlink(missing_ok=True)
    ROOTFS.symlink_to(buildah("mount", buildah("from", "localhost/memscaler")))
    return 0


def _has(command: str) -> bool:
    return any(Path(folder, command).exists() for folder in ("/usr/bin", "/usr/sbin"))


if __name__ == "__main__":
    sys.exit(main())
