"""Install memscaler as a service in an emulated Debian with systemd, and test it there from outside.

Usage, as root: python -m tools.systemd [--machine NAME] [--native] [SCENARIO...]
Exit status 1 if a scenario failed or the machine told no results, 2 if something needed is missing.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.systemd.scenarios import NAMES, SCENARIOS
from tools.distros import machine, roots
from tools.distros.__main__ import install
from tools.systemd import namespaces, wheels

CONSOLE = "systemd-console.log"
GUEST = "tests.systemd.guest"
LIMIT_S = 5400  # a quarter of an hour where nothing else runs


def say(text: str) -> None:
    """Progress, for a person."""
    print(f"systemd: {text}", file=sys.stderr, flush=True)


def test(recipe: roots.Recipe, names: list[str], *, native: bool) -> dict[str, Any] | None:
    """What the guest found; None, and why on standard error, if it told nothing."""
    if not roots.root_of(recipe).is_dir():
        say(f"making the root of {recipe.name} (2 to 4 minutes, once)")
    try:
        root = roots.ensure(recipe)
        archive = wheels.ensure(recipe)
    except subprocess.CalledProcessError as error:
        say(f"{error}; see {roots.build_log(recipe)}")
        return None
    say(f"booting {recipe.name}; to watch: tail -f {root / CONSOLE}")
    job = machine.Job(CONSOLE, GUEST, ",".join(names), (archive,), reboots=True, limit_s=LIMIT_S)
    try:
        return namespaces.boot(root, job) if native else machine.boot(root, job)
    except machine.NoResults as error:
        say(str(error))
        return None


def tell(result: dict[str, Any]) -> bool:
    """The summary, on standard output; what explains a failure below it. True if all is well."""
    print(f"{result['machine']}: systemd {result['systemd']}, kernel {result['kernel']}")
    for name, found in result["scenarios"].items():
        print(f"  {'ok    ' if not found['error'] else 'FAILED'}  {found['took_s']:6.1f} s  {name}")
    print(f"  exposure level by systemd-analyze security: {result.get('exposure', '?')}")
    print(f"  {result['took_s']} s in all")
    failed = {name: found for name, found in result["scenarios"].items() if found["error"]}
    for name, found in failed.items():
        print(f"\n---- {name}: {found['what']}\n{found['error']}\n\n---- the journal of the unit\n{found['journal']}")
    if not result["complete"]:
        print("\nthe machine ended before all scenarios had run")
    return not failed and bool(result["complete"])


def main() -> int:
    """One machine, all scenarios or those named."""
    parser = argparse.ArgumentParser(prog="python -m tools.systemd", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--machine", default="bookworm", choices=roots.RECIPES, help="which one is booted (bookworm)")
    about = "its systemd in namespaces on this machine's kernel: a few minutes, without the reboot"
    parser.add_argument("--native", action="store_true", help=about)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found there too")
    parser.add_argument("names", nargs="*", metavar="SCENARIO", help=f"of {', '.join(NAMES)}; all if none is given")
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    install()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as with Ctrl-C: clean up on the way out
    names = options.names or ([each.name for each in SCENARIOS if not each.after] if options.native else [])
    result = test(roots.RECIPES[options.machine], names, native=options.native)
    if result is None:
        return 1
    if options.json:
        options.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return 0 if tell(result) else 1


if __name__ == "__main__":
    sys.exit(main())
