"""Build the image `memscaler` with docker, podman or buildah, whichever works here.

Usage: python -m tools.image [OPTION...]      options go to the engine: --build-arg BASE=..., --tag NAME, --no-cache
"""

from __future__ import annotations

import shutil
import subprocess
import sys

from tools import image

# How to ask whether it works, and how to build.
ENGINES = {
    "docker": (["docker", "info"], ["docker", "build"]),
    "podman": (["podman", "info"], ["podman", "build", "--format", "docker"]),  # OCI's format has no health checks
    "buildah": (["buildah", "info"], ["buildah", "build", "--format", "docker"]),
}


def main(options: list[str]) -> int:
    """The engine's exit status; 2 if there is none."""
    for engine, (probe, command) in ENGINES.items():
        if shutil.which(engine) and subprocess.run(probe, check=False, capture_output=True).returncode == 0:
            what = [*command, "--file", str(image.CONTAINERFILE), "--tag", "memscaler", *options, str(image.context())]
            return subprocess.run(what, check=False).returncode
    print("image: none of docker, podman and buildah works here", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
