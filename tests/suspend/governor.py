"""The whole daemon on a machine that really sleeps: its real unit, a simulated driver, a server that is a unit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.systemd import box
from tests.systemd.box import (
    CONFIG,
    TREE,
    UNIT,
    UNITS,
    client,
    eventually,
    run,
    show,
    systemctl,
    wait_awake,
    wait_parked,
)

SERVER = "llm.service"
# Whether it is ready is asked by HTTP/1.0, where the end of the connection is the end of the answer.
HTTP = box.SERVER.replace(
    "    while sock.recv(4096):\n",
    "    while data := sock.recv(4096):\n"
    "        if data.startswith(b'GET'):\n"
    "            sock.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\n')\n"
    "            return sock.close()\n",
)
LONG_S = 60.0  # times box.SLOW
SETTINGS = """
idle_after = "1s"
[[watch]]
port = 8080
gpus = ["gpu0"]
scope = "unit:llm.service"
[[stage]]
after = "10s"
do = "suspend"
[suspend]
servers = "stop-server"
cpu_load = "off"
min_awake = "1h"
"""


def install() -> None:
    """The unit as it is shipped, but for where the program lies and where the simulated driver keeps its state."""
    box.environment()
    Path("/opt/llm.py").write_text(HTTP)
    (UNITS / SERVER).write_text("[Service]\nUser=daemon\nExecStart=/usr/bin/python3 /opt/llm.py 8080\n")
    text = (TREE / "systemd" / UNIT).read_text().replace("/usr/bin/memscaler", f"{sys.executable} -m memscaler")
    (UNITS / UNIT).write_text(text)
    CONFIG.parent.mkdir(exist_ok=True)
    CONFIG.write_text(SETTINGS)
    run("systemd-sysusers", TREE / "systemd" / "memscaler.sysusers.conf")
    box.STATE.parent.mkdir(exist_ok=True)
    where = (f"Environment=MEMSCALER_SIM_STATE={box.STATE}", f"ReadWritePaths={box.STATE.parent}")
    box.drop_in("emulator", *where, *box.PATIENT)
    systemctl("start", SERVER)
    box.install_driver()


def memscaler(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "memscaler", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd="/", env={**os.environ, "COLUMNS": "80"}
    )


def machine() -> dict[str, Any]:
    """How it stands, as programs read it; {} while nobody answers."""
    done = memscaler("suspend", "status", "--json")
    return (json.loads(done.stdout)["machine"] or {}) if done.returncode == 0 else {}


def slept(times: int) -> dict[str, Any]:
    """It has, so many times, and is up."""
    found: dict[str, Any] = {}

    def is_over() -> bool:
        nonlocal found
        found = machine()
        return found.get("suspends") == times and found["rung"] == "up"

    try:
        eventually(is_over, within_s=LONG_S)
    except AssertionError as error:
        raise AssertionError(f"it has not slept {times} times: {found}; {memscaler('status').stdout}") from error
    return found


def governor(told: list[str], wish: Any) -> None:
    """The scenario. wish: who is to wake the machine."""
    install()
    wish("monitor")
    systemctl("start", UNIT)
    wait_parked(0, within_s=LONG_S)
    first = show("MainPID", SERVER)
    found = slept(1)
    told.append(f"of itself: {found['last']}")
    eventually(lambda: show("ActiveState", SERVER) == "active", within_s=LONG_S, what="the server is back")
    assert show("MainPID", SERVER) != first
    wait_parked(0, within_s=LONG_S)
    with client(8080):
        wait_awake(0)
        refused = memscaler("suspend", "now")
        assert refused.returncode == 1, refused
        assert "is used" in refused.stderr, refused
        told.append(refused.stderr.splitlines()[0])
    wait_parked(0, within_s=LONG_S)
    assert memscaler("suspend", "never", "--reason", "a test").returncode == 0
    refused = memscaler("suspend", "now")
    assert "never: a test" in refused.stderr, refused
    assert "a test" in memscaler("suspend", "status").stdout
    assert memscaler("suspend", "allow").returncode == 0
    wish("alarm")
    began_s = time.monotonic()
    done = memscaler("suspend", "now", "--wake-in", "100s")
    assert done.returncode == 0, done
    assert "woken by its alarm" in done.stdout, done
    told.append(
        f"by `now --wake-in 100s`: {done.stdout.splitlines()[-1]}; awake {time.monotonic() - began_s:.1f} s of it"
    )
    eventually(lambda: show("ActiveState", SERVER) == "active", within_s=LONG_S, what="the server is back")
    wait_parked(0, within_s=LONG_S)
    systemctl("stop", UNIT)
    assert not box.is_parked(0)
