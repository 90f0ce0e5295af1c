"""What must be true of [[gpuctl]] rules under the unit's sandbox, as tests/systemd/scenarios.py has it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from tests.systemd import box
from tests.systemd.box import COMMAND, UNITS, eventually, number, run, show, systemctl, wait_governing
from tests.systemd.registry import Scenarios

SCENARIOS = Scenarios()
scenario = SCENARIOS.add

BATCH, OTHER = "batch.service", "other.service"  # root's, in a cgroup of its own; somebody else's
WORK = "import time\nwhile True: time.sleep(0.01)\n"
RULES = f"""
[[gpuctl]]
name = "group"
watches = ["8080"]
processes = ["unit:{BATCH}"]
freeze = true

[[gpuctl]]
name = "one"
watches = ["8080"]
processes = ["unit:{OTHER}"]
freeze = true
how = "signal"
cpu_nice = 10
"""


def _begin() -> None:
    """Two jobs on the first GPU, and rules for them, with what setup grants for such."""
    Path("/opt/batch.py").write_text(WORK)
    for unit, user in ((BATCH, "root"), (OTHER, "daemon")):
        (UNITS / unit).write_text(f"[Service]\nUser={user}\nNice=0\nExecStart=/usr/bin/python3 /opt/batch.py\n")
    systemctl("daemon-reload")
    systemctl("restart", BATCH, OTHER)
    for unit in (BATCH, OTHER):
        box.driver().boards[0].add_process(int(show("MainPID", unit)))
    box.configure(more=RULES)
    told = run(COMMAND, "setup").stdout
    assert (box.DROP_INS / "gpuctl.conf").exists(), told
    wait_governing()


def _end() -> None:
    for unit in (BATCH, OTHER):
        box.driver().boards[0].remove_process(int(show("MainPID", unit)))
    systemctl("stop", BATCH, OTHER)
    box.configure()
    run(COMMAND, "setup")
    assert not (box.DROP_INS / "gpuctl.conf").exists()
    wait_governing()


def _is_group_frozen() -> bool:
    path = Path("/sys/fs/cgroup") / show("ControlGroup", BATCH).removeprefix("/") / "cgroup.events"
    return "frozen 1" in path.read_text()


def _is_one_stopped() -> bool:
    return box.of_process(int(show("MainPID", OTHER)), "State").startswith("T")


def _nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, int(show("MainPID", OTHER)))


def _are_held() -> bool:
    return _is_group_frozen() and _is_one_stopped() and _nice() == 10


def _are_free() -> bool:
    return not _is_group_frozen() and not _is_one_stopped() and _nice() == 0


@scenario()
def gpuctl_holds() -> None:
    """A client has the jobs of two users stand still, by cgroup and by signal; when it leaves they go on as before."""
    _begin()
    box.wait_parked(0)
    for _ in range(2):
        with box.client(8080):
            eventually(_are_held, what="both stand still")
        eventually(_are_free, within_s=20, what="both go on")
    _end()


@scenario()
def gpuctl_lets_go() -> None:
    """However the service ends while a client is there: stopped, killed with its guardian and arbiter."""
    _begin()

    def stop() -> None:
        systemctl("stop", box.UNIT)
        assert show("Result") == "success"

    def kill() -> None:
        for pid in (*box.children(number("MainPID")), number("MainPID")):
            os.kill(pid, signal.SIGKILL)

    ends: tuple[Callable[[], None], ...] = (stop, kill)
    for end in ends:
        systemctl("start", box.UNIT)
        wait_governing()
        with box.client(8080) as client:

            def asks(client: socket.socket = client) -> bool:
                """What was said before the arbiter was there does not count."""
                client.sendall(b"who?")
                return bool(client.recv(3)) and _are_held()

            eventually(asks, within_s=30, what="both stand still")
            systemctl("stop", "llm.service")  # nobody is to be there for a next one
            end()
            eventually(_are_free, within_s=30, what="both go on")
        systemctl("start", "llm.service")
        box.adopt_server()
    _end()
