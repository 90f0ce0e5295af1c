"""Runs inside the emulated machine (tools/suspend): goes through the scenarios, and writes what came out.

python -m tests.suspend.guest RESULTS_FILE [SCENARIO...]
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tests.suspend.scenarios import SCENARIOS, Told, run

JOURNAL_LINES = "120"


def main(target: str, *names: str) -> None:
    found: dict[str, Any] = {
        "machine": platform.node(),
        "kernel": platform.release(),
        "systemd": run("systemctl", "--version").split()[1],
        "mem_sleep": "mem_sleep " + Path("/sys/power/mem_sleep").read_text().strip(),
        "scenarios": {},
        "complete": False,
    }
    for name, scenario in SCENARIOS.items():
        if not names or name in names:
            found["scenarios"][name] = one(name, scenario)
            save(target, found)
    save(target, {**found, "complete": True})


def one(name: str, scenario: Any) -> dict[str, Any]:
    """A scenario that fails leaves nothing to the next one that it would not have found."""
    print(f"== {name}", flush=True)
    told: Told = []
    error, journal, began_s = "", "", time.monotonic()
    since = f"@{time.time():.0f}"
    try:
        scenario(told)
    except Exception:  # noqa: BLE001  # whatever it is, it is the scenario's failure
        error = traceback.format_exc()
        command = ["journalctl", "--since", since, "-n", JOURNAL_LINES, "-o", "short-precise", "--no-pager"]
        journal = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        print(error, flush=True)
    took_s = round(time.monotonic() - began_s, 1)
    print(f"== {name}: {'FAILED' if error else 'ok'}, {took_s} s; {'; '.join(told)}", flush=True)
    what = (scenario.__doc__ or "").splitlines()[0]
    return {"what": what, "error": error, "took_s": took_s, "told": told, "journal": journal}


def save(target: str, found: dict[str, Any]) -> None:
    """At once: the machine may not come back from the next one."""
    with Path(target).open("r+b") as disk:
        disk.write(json.dumps(found).encode().ljust(1 << 20, b"\0"))


if __name__ == "__main__":
    main(*sys.argv[1:])
