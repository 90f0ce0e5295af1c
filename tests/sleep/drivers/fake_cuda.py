"""The program cuda-checkpoint, with every failure that has been told of it. Its folder says what is to go wrong.

`faults.json` beside it: {"lock": "refuse", ...}, read at each call; `PID.state` is a process's state; `calls` grows.
Its words are those of NVIDIA's README and of issues; no real one was at hand. Its first line is written when it is copied.
"""

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

HELP = """CUDA checkpoint and restore utility.
Version {version}. Copyright (C) 2025 NVIDIA Corporation. All rights reserved.

Operations:
--get-state --pid <pid>
        Prints the current checkpoint state of the process specified by <pid>

{actions}--toggle --pid <pid>
        Toggles the CUDA state in the specified process between the running and checkpointed states
"""
ACTIONS = """--action lock | checkpoint | restore | unlock --pid <pid> [--timeout <ms>]
        Performs the specified action on <pid>.

"""
NEXT = {
    "lock": ("running", "locked"),
    "checkpoint": ("locked", "checkpointed"),
    "restore": ("checkpointed", "locked"),
    "unlock": ("locked", "running"),
}
folder = Path(__file__).resolve().parent


def fail(pid, text):
    sys.exit(f'Error toggling CUDA in process ID {pid}: "{text}"')


def option(name):
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else ""


def main():
    file = folder / "faults.json"
    faults = json.loads(file.read_text()) if file.exists() else {}
    if "--help" in sys.argv:
        old = faults.get("version", "").startswith("550")
        print(HELP.format(version=faults.get("version", "580.65.06"), actions="" if old else ACTIONS))
        return
    pid = int(option("--pid"))
    with (folder / "calls").open("a") as calls:
        calls.write(" ".join(sys.argv[1:]) + "\n")
    with (folder / f"{pid}.busy").open("w") as busy:
        try:
            fcntl.flock(busy, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            (folder / "overlapped").touch()  # two at once for one process
        act(pid, faults)


def act(pid, faults):  # noqa: C901, PLR0912  # a list of failures
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        fail(pid, "no such process")
    state_file = folder / f"{pid}.state"
    state = state_file.read_text() if state_file.exists() else "running"
    if "--get-state" in sys.argv:
        time.sleep(faults.get("state_s", 0))
        if "state" in faults:
            state = faults["state"]
        print(state)
        return
    action = option("--action")
    fault = faults.get(action, "")
    before, after = NEXT[action]
    if action == "lock" and fault == "busy":  # a kernel that does not end
        time.sleep(int(option("--timeout")) / 1000)
        fail(pid, "timed out")
    if fault == "not permitted":
        fail(pid, "operation not permitted")
    if fault == "not permitted, dead":
        os.kill(pid, signal.SIGKILL)
        fail(pid, "operation not permitted")
    if fault == "failed":
        state_file.write_text("failed")
        fail(pid, "OS call failed or operation not supported on this OS")
    if fault == "refuse":
        fail(pid, "initialization error")
    if fault == "hang":
        time.sleep(1000)
    if fault == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault == "slow":
        time.sleep(faults["slow_s"])
    if state != before:
        fail(pid, "the operation cannot be performed in the present state")
    if fault != "lie":
        state_file.write_text(after)
    if fault == "after":  # it is done, and an error is said nevertheless
        fail(pid, "unknown error")


main()
