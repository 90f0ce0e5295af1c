"""Runs inside the emulated machine (tools/systemd): goes through the scenarios, over a reboot, and writes what came out.

python -m tests.systemd.guest RESULTS_FILE [SCENARIO...]

The machine's own unit starts this once. It makes a unit of its own, which comes back after a reboot and switches the
machine off at the end, whatever happens.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.systemd import box
from tests.systemd.registry import Scenario
from tests.systemd.scenarios import SCENARIOS

HERE = Path("/var/lib/systemd-tests")
SAVED = HERE / "results.json"
GOING_DOWN = Path("/run/systemd-tests-reboots")
OWN_MODULE = "tests.systemd.guest"
OWN_UNIT = "systemd-tests.service"
FIRST_UNIT = "distro-test.service"  # tools/distros/roots.py
RESULTS_BYTES = 1 << 20
JOURNAL_LINES = "150"
UNIT = """[Unit]
Description=Test memscaler as a service, then power off

[Service]
TTYPath=/dev/ttyS0
StandardOutput=tty
StandardError=tty
Environment=HOME=/root LANG=C.UTF-8
WorkingDirectory={tree}
ExecStart={command}
ExecStopPost=/bin/sh -c 'sync; [ -e {going_down} ] || systemctl poweroff --force --force'

[Install]
WantedBy=multi-user.target
"""


def main(arguments: list[str], scenarios: Sequence[Scenario] = SCENARIOS, module: str = OWN_MODULE) -> None:
    """Begin, or go on where the reboot was. module: which one calls this, with which scenarios."""
    box.environment()
    if HERE.exists():
        Run(scenarios, *arguments).go_on()
    else:
        begin(arguments, module)


def begin(arguments: list[str], module: str) -> None:
    """Go over from the machine's own unit, which would end with it, to one that does not."""
    HERE.mkdir()
    box.run("tar", "-xf", "/dev/vdd", "-C", "/opt")
    Path("/var/log/journal").mkdir(exist_ok=True)
    box.systemctl("restart", "systemd-journald.service")
    command = " ".join([sys.executable, "-m", module, *arguments])
    (box.UNITS / OWN_UNIT).write_text(UNIT.format(tree=box.TREE, command=command, going_down=GOING_DOWN))
    drop_in = box.UNITS / f"{FIRST_UNIT}.d" / "go-on.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nExecStopPost=\n")
    box.systemctl("daemon-reload")
    box.systemctl("disable", FIRST_UNIT)
    box.systemctl("enable", OWN_UNIT)
    box.systemctl("start", "--no-block", OWN_UNIT)


class Run:
    """What has been found so far is written at once: the next scenario may take the machine down."""

    def __init__(self, scenarios: Sequence[Scenario], target: str, *names: str) -> None:
        self._target = Path(target)
        self._scenarios = [each for each in scenarios if not names or each.needed or each.name in names]
        self._found: dict[str, Any] = {
            "machine": platform.node(),
            "kernel": platform.release(),
            "systemd": box.systemd_version(),
            "scenarios": {},
            "complete": False,
        }
        if SAVED.exists():
            self._found = json.loads(SAVED.read_text())

    def go_on(self) -> None:
        """All that are left."""
        done = self._found["scenarios"]
        for each in self._scenarios:
            if "rebooting" in done.get(each.name, {}):
                before = done.pop(each.name)
                self._one(each, each.after or each.do, took_s=before["took_s"])
            elif each.name not in done:
                self._one(each, each.do)
                if each.after and not done[each.name]["error"]:
                    self._reboot(each)
                    return
            if each.needed and done[each.name]["error"]:
                break  # nothing of what follows can be told
        self._found["exposure"] = box.exposure() if (box.UNITS / box.UNIT).exists() else "?"
        self._found["complete"] = True
        self._save()

    def _one(self, each: Scenario, do: Any, took_s: float = 0.0) -> None:
        box.say(f"== {each.name}")
        since, began = f"@{time.time():.0f}", time.monotonic()
        error = ""
        try:
            do()
        except Exception:  # noqa: BLE001  # whatever it is, it is the scenario's failure
            error = traceback.format_exc()
        took_s += time.monotonic() - began
        told = {"what": each.what, "error": error, "took_s": round(took_s, 1), "journal": ""}
        if error:
            told["journal"] = self._journal(since)
            box.say(f"{error}\n{told['journal']}")
            self._mend()
        box.say(f"== {each.name}: {'FAILED' if error else 'ok'}, {told['took_s']} s")
        self._found["scenarios"][each.name] = told
        self._save()

    def _mend(self) -> None:
        """Let the next one begin with a governing unit."""
        if not (box.UNITS / box.UNIT).exists():
            return
        for path in box.DROP_INS.glob("*.conf"):
            if path.stem in ("watchdog", "wrong", "tight"):
                path.unlink()
        box.configure()
        box.systemctl("daemon-reload", check=False)
        box.systemctl("reset-failed", box.UNIT, check=False)
        box.systemctl("restart", box.UNIT, check=False)

    def _journal(self, since: str) -> str:
        command = ["journalctl", "-u", "memscaler*", "--since", since, "-n", JOURNAL_LINES, "-o", "short-precise"]
        return subprocess.run([*command, "--no-pager"], capture_output=True, text=True, check=False).stdout

    def _reboot(self, each: Scenario) -> None:
        self._found["scenarios"][each.name]["rebooting"] = True
        self._save()
        GOING_DOWN.touch()
        os.sync()
        box.systemctl("reboot", "--no-block")
        time.sleep(600)  # until this unit is stopped

    def _save(self) -> None:
        text = json.dumps(self._found)
        SAVED.write_text(text)
        with self._target.open("r+b") as disk:
            disk.write(text.encode()[:RESULTS_BYTES].ljust(RESULTS_BYTES, b"\0"))
            disk.flush()
            os.fsync(disk.fileno())


if __name__ == "__main__":
    main(sys.argv[1:])
