"""Build the Debian package from the present working tree: build/deb.

Usage, as root: python -m tools.deb [--test] [SUITE...]
Exit status 1 if a build, lintian or a test failed, 2 if something needed is missing.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import subprocess
import sys

from tools.deb import building, testing
from tools.distros.__main__ import NEEDED, install

BUILDING = ("git", "mmdebstrap")


def say(text: str) -> None:
    """Progress, for a person."""
    print(f"deb: {text}", file=sys.stderr, flush=True)


def default() -> str:
    """The release that runs here, if there is a package for it."""
    return _here() if _here() in building.SUITES else next(iter(building.SUITES))


def _here() -> str:
    """Debian's, or somebody else's."""
    return platform.freedesktop_os_release().get("VERSION_CODENAME", "")


def one(suite: str, *, tests: bool) -> bool:
    """Build, and test, the package of one release. True if all is well."""

    def tell(text: str) -> None:
        say(f"{suite}: {text}")

    try:
        package = building.build(suite, say=tell)
        print(f"{package} ({package.stat().st_size >> 10} KiB)", flush=True)
        if suite == _here():
            tell(f"to install it: sudo apt install ./{os.path.relpath(package)}")
        for name, check in testing.CHECKS.items() if tests else ():
            tell(name)
            check(suite, package)
    except (building.BuildFailed, testing.CheckFailed, subprocess.CalledProcessError) as error:
        tell(str(error))
        return False
    return True


def main() -> int:
    """The releases that are named, or else one, or with --test all."""
    parser = argparse.ArgumentParser(prog="python -m tools.deb", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--test", action="store_true", help="and install it, in a clean root and a machine")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(building.SUITES)}")
    options = parser.parse_args()
    unknown = set(options.suites) - set(building.SUITES)
    if unknown:
        parser.error(f"no package for {', '.join(sorted(unknown))}; there are {', '.join(building.SUITES)}")
    install(NEEDED if options.test else {name: NEEDED[name] for name in BUILDING})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as with Ctrl-C: clean up on the way out
    suites = options.suites or (building.SUITES if options.test else [default()])
    failed = [suite for suite in suites if not one(suite, tests=options.test)]  # all of them, whatever becomes of one
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
