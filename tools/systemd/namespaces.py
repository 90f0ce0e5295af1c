"""The same machine without an emulator: its root, its systemd as process 1 of namespaces of its own, our own kernel.

Takes minutes instead of a quarter of an hour. What is a machine's own and not a namespace's stays untouched, and
untested: the root's kernel, the boot id (so nothing is told of a reboot), the settings below /proc/sys.
"""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.distros import machine
from tools.distros.machine import Job, NoResults

SCRIPT = Path(__file__).with_suffix(".sh")
HAS_V2 = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
NAMESPACES = ("--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup")


def boot(root: Path, job: Job) -> dict[str, Any]:
    """Test in it. Its console is kept beside the root. Raise NoResults with the console's end."""
    started = time.monotonic()
    console = root / job.console
    with tempfile.TemporaryDirectory(dir=root, prefix="run-") as name, _cgroup() as group:
        folder = Path(name)
        tree, results = folder / "tree.tar", folder / "results"
        machine.pack(tree)
        with results.open("wb") as file:
            file.truncate(machine.RESULTS_BYTES)
        (folder / "cmdline").write_text(job.kernel_line + "\n")
        with console.open("wb") as log, _terminal(log.fileno()) as terminal:
            why = _run(root, job, folder, terminal, group)
        found = machine.read_results(results.read_bytes())
    if found is None:
        raise NoResults(
            f"{why}; its console ({console}) ends with:\n" + machine.tail(console.read_text(errors="replace"))
        )
    return {**found, "took_s": round(time.monotonic() - started)}


def _run(root: Path, job: Job, folder: Path, terminal: str, group: Path) -> str:
    """Until it has switched itself off, or the time is over. Returns how it ended."""
    words = [folder, root / "disk.ext4", folder / "tree.tar", folder / "results", terminal, *job.disks]
    inside = ["sh", str(SCRIPT), *map(str, words)]
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", *NAMESPACES, "--fork", "--kill-child", *inside]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            timeout=job.limit_s,
            check=False,
            preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())),
        )
    except subprocess.TimeoutExpired:
        return f"not done after {job.limit_s} s"
    return f"ended without results (status {done.returncode})"


def top() -> Path:
    """Where cgroup v2 is mounted."""
    return next(path for path in HAS_V2 if (path / "cgroup.controllers").exists())


@contextlib.contextmanager
def _cgroup() -> Iterator[Path]:
    """Of cgroup v2, which is the root of what is in it."""
    group = top() / f"memscaler-systemd-{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        (group / "cgroup.kill").write_text("1")
        for path in (*sorted(group.glob("**/"), reverse=True), group):
            for _ in range(50):
                try:
                    path.rmdir()
                except FileNotFoundError:
                    pass
                except OSError:
                    time.sleep(0.1)
                    continue
                break


@contextlib.contextmanager
def _terminal(log: int) -> Iterator[str]:
    """Where a console is expected; what is written there goes to the log."""
    ours, theirs = pty.openpty()

    def copy() -> None:
        with contextlib.suppress(OSError):
            while data := os.read(ours, 65536):
                os.write(log, data)

    reader = threading.Thread(target=copy, daemon=True)
    reader.start()
    try:
        yield os.ttyname(theirs)
    finally:
        os.close(theirs)
        reader.join(2)
        os.close(ours)
