"""The emulated machine from inside: its units, its journal, its simulated GPUs. Used by scenarios.py."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from memscaler.simulator import SimulatedDriver
from memscaler.simulator.builder import NVAPI_LIBRARY, NVML_LIBRARY, build

Value = TypeVar("Value")

TREE = Path(__file__).resolve().parents[2]
WHEELS = Path("/opt/wheels")
PREFIX = Path("/opt/memscaler")
COMMAND = str(PREFIX / "bin/memscaler")
UNITS = Path("/etc/systemd/system")
UNIT = "memscaler.service"
DROP_INS = UNITS / f"{UNIT}.d"
CONFIG = Path("/etc/memscaler/config.toml")
JOURNAL = Path("/run/memscaler/journal")
LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")  # where a real driver puts its own
STATE = Path("/var/lib/gpu-simulator/state")
BOARDS = ("a40", "p40", "l40s")
PORTS = (8080, 8081, 8082)
SLOW = 8.0  # what takes a second on a real machine may take this long here, beside other emulators
PATIENT = ("TimeoutStartSec=20min", "TimeoutStopSec=5min")  # a start takes a minute here

WATCHES = """
[[watch]]
port = 8080
gpus = ["gpu0"]

[[watch]]
port = 8081
gpus = ["gpu1"]
"""
FOUND = "\n[[watch]]\nport = 8082\n"  # its GPU is to be found out
SERVER = f"""
import socket, sys, threading
def hold(sock):
    while sock.recv(4096):
        sock.sendall(b"yes")
def serve(port):
    listening = socket.create_server(("", port))
    while True:
        threading.Thread(target=hold, args=(listening.accept()[0],), daemon=True).start()
for port in map(int, sys.argv[1:] or {list(PORTS)}):
    threading.Thread(target=serve, args=(port,)).start()
"""


def run(*command: str | Path, check: bool = True, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    """A command; AssertionError with what it printed if it fails."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=timeout)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def systemctl(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run("systemctl", *arguments, check=check)


def eventually(ask: Callable[[], Value], *, within_s: float = 10.0, what: str = "", pause_s: float = 0.5) -> Value:
    """The first true answer; AssertionError if there is none in time."""
    end = time.monotonic() + within_s * SLOW
    while True:
        if answer := ask():
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"not within {within_s * SLOW:.0f} s: {what or ask}")
        time.sleep(pause_s)


# ---- the unit -------------------------------------------------------------------------------------------------------


def show(name: str, unit: str = UNIT) -> str:
    """A property of a unit."""
    return systemctl("show", "--value", "-p", name, unit).stdout.strip()


def number(name: str) -> int:
    """A property that is one."""
    return int(show(name))


def is_governing() -> bool:
    return show("ActiveState") == "active"


def wait_governing(within_s: float = 60.0) -> int:
    """Its process id."""
    eventually(is_governing, within_s=within_s, what="the unit is active")
    return number("MainPID")


def drop_in(name: str, *lines: str) -> None:
    """Change the unit as `systemctl edit` does; without lines: no more."""
    path = DROP_INS / f"{name}.conf"
    path.unlink(missing_ok=True)
    if lines:
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(("[Service]", *lines, "")))
    systemctl("daemon-reload")


@contextlib.contextmanager
def changed(name: str, *lines: str) -> Iterator[None]:
    """With a drop-in, and without afterwards."""
    drop_in(name, *lines)
    try:
        yield
    finally:
        drop_in(name)


def configure(*, idle_after: str = "1s", watches: str = WATCHES + FOUND, more: str = "") -> None:
    CONFIG.write_text(f'idle_after = "{idle_after}"\n{more}\n{watches}')


def restart() -> int:
    """Its process id."""
    systemctl("restart", UNIT)
    return number("MainPID")


def systemd_version() -> int:
    return int(run("systemctl", "--version").stdout.split()[1])


def exposure() -> float:
    """What systemd-analyze says of the unit as it is loaded, with its drop-ins."""
    text = run("systemd-analyze", "security", "--no-pager", UNIT).stdout
    found = re.search(r"exposure level for \S+: ([0-9.]+)", text)
    assert found, text
    return float(found[1])


# ---- the journal ----------------------------------------------------------------------------------------------------


def cursor() -> str:
    """Where the journal ends now."""
    run("journalctl", "--sync")
    return json.loads(run("journalctl", "-n", "1", "-o", "json", "--no-pager").stdout)["__CURSOR"]


def entries(after: str, *arguments: str) -> list[dict[str, Any]]:
    """What the journal has of the unit, its own lines and those of systemd about it."""
    run("journalctl", "--sync")
    # Not --after-cursor: where the filter leaves out the cursor's own line, that skips the first one of ours.
    command = ("journalctl", "-u", UNIT, "-o", "json", "--no-pager", f"--cursor={after}", *arguments)
    found = [json.loads(line) for line in run(*command).stdout.splitlines()]
    return [entry for entry in found if entry["__CURSOR"] != after]


def entries_of_this_run() -> list[dict[str, Any]]:
    """What the daemon and its children have said since its start."""
    run("journalctl", "--sync")
    mine = "_SYSTEMD_INVOCATION_ID=" + show("InvocationID")
    return [json.loads(line) for line in run("journalctl", mine, "-o", "json", "--no-pager").stdout.splitlines()]


def event_of(entry: dict[str, Any]) -> dict[str, Any]:
    """The daemon's event: from the journal's fields, or from a message that is JSON; nothing if it is neither."""
    if "MEMSCALER_EVENT" in entry:
        return {key.removeprefix("MEMSCALER_").lower(): value for key, value in entry.items() if "MEMSCALER_" in key}
    with contextlib.suppress(ValueError, TypeError):
        found = json.loads(entry["MESSAGE"])
        return found if isinstance(found, dict) else {}
    return {}


def events(after: str, name: str) -> list[dict[str, Any]]:
    """The daemon's events of that name."""
    return [found for found in map(event_of, entries(after)) if found.get("event") == name]


def said(after: str, text: str) -> bool:
    """Whether some line has this text."""
    return any(text in str(entry.get("MESSAGE")) for entry in entries(after))


# ---- the GPUs and their servers -------------------------------------------------------------------------------------


def install_driver() -> None:
    """Libraries where a driver's are, and boards, one of which has the server of the last port on it."""
    STATE.parent.mkdir(exist_ok=True)
    folder = build()
    if not STATE.exists():
        SimulatedDriver.create(STATE, BOARDS, persistence=True).close()
    adopt_server()
    for name in (NVAPI_LIBRARY, NVML_LIBRARY):
        shutil.copy(folder / name, LIBRARIES / f"{name}.new")
        (LIBRARIES / f"{name}.new").rename(LIBRARIES / name)


@functools.cache
def driver() -> SimulatedDriver:
    return SimulatedDriver.attach(STATE)


def adopt_server() -> None:
    """The server of the last port uses the last GPU, and nobody else does."""
    note, pid, board = STATE.with_name("server"), show("MainPID", "llm.service"), driver().boards[2]
    if note.exists():
        board.remove_process(int(note.read_text()))
    board.add_process(int(pid))
    note.write_text(pid)


def is_parked(gpu: int) -> bool:
    return bool(driver().boards[gpu].locks)


def wait_parked(*gpus: int, within_s: float = 15.0) -> None:
    for gpu in gpus:
        eventually(functools.partial(is_parked, gpu), within_s=within_s, what=f"gpu{gpu} is parked", pause_s=0.02)


def wait_awake(*gpus: int, within_s: float = 5.0) -> None:
    for gpu in gpus:
        eventually(lambda gpu=gpu: not is_parked(gpu), within_s=within_s, what=f"gpu{gpu} is awake", pause_s=0.02)


@contextlib.contextmanager
def client(port: int) -> Iterator[socket.socket]:
    """Somebody who has asked something and got an answer, and stays."""
    with socket.create_connection(("127.0.0.1", port), timeout=10 * SLOW) as sock:
        sock.sendall(b"who?")
        assert sock.recv(3)
        yield sock


def check_governs(*gpus: int) -> None:
    """It parks when quiet, and wakes for a client."""
    for gpu in gpus or (0,):
        wait_parked(gpu)
        with client(PORTS[gpu]):
            wait_awake(gpu)


def scrape() -> str:
    with urllib.request.urlopen("http://127.0.0.1:9823/metrics", timeout=10 * SLOW) as answer:
        return answer.read().decode()


def of_process(pid: int, field: str) -> str:
    """A field of /proc/PID/status."""
    return Path(f"/proc/{pid}/status").read_text().partition(f"\n{field}:")[2].split("\n")[0].strip()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def pip(*arguments: str | Path) -> None:
    """As a user calls it, but without a network."""
    runner = PREFIX / "bin/pip"
    wheel = next(WHEELS.glob("pip-*.whl"))
    how = [runner] if runner.exists() else [PREFIX / "bin/python", f"{wheel}/pip"]
    run(*how, "install", "--quiet", "--no-index", "--find-links", WHEELS, *arguments, timeout=1800)


def say(text: str) -> None:
    """To the console."""
    print(text, flush=True)


def environment() -> None:
    """This process's own, so that the simulated driver is compiled once."""
    os.environ.setdefault("MEMSCALER_SIM_CACHE", "/var/cache/gpu-simulator")
