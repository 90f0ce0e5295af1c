"""Suspend an emulated Debian with real systemd to RAM, wake it, and see that the servers come back however it went.

Usage, as root: python -m tools.suspend [--machine NAME] [SCENARIO...]
Exit status 1 if a scenario failed or the machine told no results, 2 if something needed is missing.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.suspend.scenarios import SCENARIOS
from tools.distros import machine, roots
from tools.distros.__main__ import install
from tools.suspend.waker import Waker

CONSOLE = "suspend-console.log"
GUEST = "tests.suspend.guest"
LIMIT_S = 1800  # four minutes where nothing else runs


def say(text: str) -> None:
    """Progress, for a person."""
    print(f"suspend: {text}", file=sys.stderr, flush=True)


def test(recipe: roots.Recipe, names: list[str]) -> dict[str, Any] | None:
    """What the guest found, and the sleeps that QEMU saw; None, and why on standard error, if it told nothing."""
    if not roots.root_of(recipe).is_dir():
        say(f"making the root of {recipe.name} (2 to 4 minutes, once)")
    try:
        root = roots.ensure(recipe)
    except subprocess.CalledProcessError as error:
        say(f"{error}; see {roots.build_log(recipe)}")
        return None
    say(f"booting {recipe.name}; to watch: tail -f {root / CONSOLE}")
    with tempfile.TemporaryDirectory(prefix="memscaler-suspend-") as folder, Waker(Path(folder)) as waker:
        job = machine.Job(CONSOLE, GUEST, ",".join(names), limit_s=LIMIT_S, qemu=waker.qemu)
        try:
            result = machine.boot(root, job)
        except machine.NoResults as error:
            say(str(error))
            return None
        return {**result, "sleeps": waker.sleeps}


def tell(result: dict[str, Any]) -> bool:
    """The summary, on standard output; what explains a failure below it. True if all is well."""
    print(f"{result['machine']}: systemd {result['systemd']}, kernel {result['kernel']}, {result['mem_sleep']}")
    for name, found in result["scenarios"].items():
        print(f"  {'ok    ' if not found['error'] else 'FAILED'}  {found['took_s']:6.1f} s  {name}: {found['what']}")
        for line in found["told"]:
            print(f"            {line}")
    woken = [f"{sleep['asleep_s']:.1f} s, woken by {sleep['by']}" for sleep in result["sleeps"]]
    print(f"  QEMU saw it suspended {len(woken)} times: {'; '.join(woken)}")
    print(f"  {result['took_s']} s in all")
    failed = {name: found for name, found in result["scenarios"].items() if found["error"]}
    for name, found in failed.items():
        print(f"\n---- {name}\n{found['error']}\n\n---- the journal\n{found['journal']}")
    if not result["complete"]:
        print("\nthe machine ended before all scenarios had run")
    return not failed and bool(result["complete"])


def main() -> int:
    """One machine, all scenarios or those named."""
    parser = argparse.ArgumentParser(prog="python -m tools.suspend", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--machine", default="bookworm", choices=roots.RECIPES, help="which one is booted (bookworm)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found there too")
    parser.add_argument("names", nargs="*", metavar="SCENARIO", help=f"of {', '.join(SCENARIOS)}; all if none is given")
    options = parser.parse_args()
    unknown = set(options.names) - set(SCENARIOS)
    if unknown:
        parser.error(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    install()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as with Ctrl-C: clean up on the way out
    result = test(roots.RECIPES[options.machine], options.names)
    if result is None:
        return 1
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if tell(result) else 1


if __name__ == "__main__":
    sys.exit(main())
