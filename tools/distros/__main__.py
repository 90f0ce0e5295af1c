"""Test memscaler on the kernels and bcc versions of other releases, emulated, and write docs/kernels.md anew.

Usage, as root: python -m tools.distros [NAME...]
Exit status 1 if a test failed somewhere or a machine told no results, 2 if something needed is missing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from tools.distros import machine, page, roots

NEEDED = {  # command -> Debian package
    "git": "git",
    "mke2fs": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "patchelf": "patchelf",
    "qemu-system-x86_64": "qemu-system-x86",
    "setpriv": "util-linux",
}


def say(text: str) -> None:
    """Progress, for a person."""
    print(f"distros: {text}", file=sys.stderr, flush=True)


def missing(needed: Mapping[str, str] = NEEDED) -> list[str]:
    """The Debian packages of what is not there."""
    return [package for command, package in needed.items() if not shutil.which(command)]


def install(needed: Mapping[str, str] = NEEDED) -> None:
    """Get what is missing. Raise SystemExit 2 where that cannot be."""
    wanted = missing(needed)
    if os.geteuid() != 0:
        raise SystemExit(give_up("this needs root: roots are made with chroot"))
    if wanted and shutil.which("apt-get"):
        say("installing " + " ".join(wanted))
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for what in (["update"], ["install", "-y", "--no-install-recommends", *wanted]):
            command = ["apt-get", "-qq", *what]
            subprocess.run(command, check=False, stdout=subprocess.DEVNULL, env=environment)
    if missing(needed):
        raise SystemExit(give_up("install these first (by their Debian names): " + " ".join(missing(needed))))


def give_up(why: str) -> int:
    """Say it; returns the exit status."""
    say(why)
    return 2


def test(recipe: roots.Recipe) -> dict[str, Any]:
    """One machine: its results, or "error" with why there are none."""
    if not roots.root_of(recipe).is_dir():
        say(f"{recipe.name}: making its root (2 to 4 minutes, once)")
    try:
        root = roots.ensure(recipe)
    except subprocess.CalledProcessError as error:
        say(f"{error}; see {roots.build_log(recipe)}")
        return {"error": f"its root could not be made: {error.cmd[0]} failed"}
    say(f"{recipe.name}: testing; to watch: tail -f {root / 'console.log'}")
    try:
        result = machine.boot(root)
    except machine.NoResults as error:
        say(f"{recipe.name}: {error}")
        return {"error": str(error).partition(";")[0]}
    for name, message in result["failed"].items():
        say(f"{recipe.name}: FAILED {name}: {message}")
    left_out = sum(map(len, result["left_out"].values()))
    counts = f"{result['passed']} passed, {len(result['failed'])} failed, {left_out} left out"
    say(f"{recipe.name}: {counts}, in {result['took_s']} s")
    return result


def main() -> int:
    """All machines, or those named."""
    parser = argparse.ArgumentParser(prog="python -m tools.distros", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(roots.RECIPES)}; all if none is given")
    options = parser.parse_args()
    unknown = set(options.names) - set(roots.RECIPES)
    if unknown:
        parser.error(f"no machine {', '.join(sorted(unknown))}; there are {', '.join(roots.RECIPES)}")
    install()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as with Ctrl-C: clean up on the way out
    fine = True
    for name in options.names or roots.RECIPES:
        result = test(roots.RECIPES[name])
        fine = fine and not result.get("error") and not result["failed"]
        page.save({**page.load(), name: result})  # at once: a later machine may fail
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
