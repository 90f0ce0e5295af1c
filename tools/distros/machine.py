"""One emulated machine: boots a root, runs the tests of the present working tree in it, and tells the results.

Three disks: the root, whose changes are thrown away; the tree as a tar archive; an empty one for the results; and what
else a job needs. The emulation is QEMU's own (TCG): KVM would be faster, and is not there on most machines that are
machines themselves.
"""

from __future__ import annotations

import json
import subprocess
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.distros.roots import REPOSITORY

TIME_LIMIT_S = 2400
RESULTS_BYTES = 4 << 20
KERNEL_LINE = (
    "console=ttyS0 root=/dev/vda rw quiet panic=-1 systemd.show_status=0"
    " systemd.mask=serial-getty@ttyS0.service"  # it would hang up the terminal that the unit writes to
    " mitigations=off no5lvl"  # each system call would empty QEMU's cache of translated code
)


class NoResults(Exception):
    """The machine ended, or was ended, without saying how the tests went."""


@dataclass(frozen=True)
class Job:
    """What is to be done in a machine.

    guest: the module that runs there instead of tests.distros.guest, which hands over to it. disks: more of them, from
    /dev/vdd on, read-only. reboots: it may start anew; its changes last until it is switched off. qemu: more arguments.
    """

    console: str = "console.log"
    guest: str = ""
    arguments: str = ""
    disks: tuple[Path, ...] = ()
    reboots: bool = False
    limit_s: int = TIME_LIMIT_S
    qemu: tuple[str, ...] = ()

    @property
    def kernel_line(self) -> str:
        """What its kernel is told."""
        told = f" memscaler.guest={self.guest}" * bool(self.guest)
        return KERNEL_LINE + told + f" memscaler.arguments={self.arguments}" * bool(self.arguments)


TESTS = Job()


def boot(root: Path, job: Job = TESTS) -> dict[str, Any]:
    """Test in it. Its console is kept beside the root. Raise NoResults with the console's end."""
    started = time.monotonic()
    console = root / job.console
    with tempfile.TemporaryDirectory(dir=root, prefix="run-") as folder:
        tree, results = Path(folder, "tree.tar"), Path(folder, "results")
        pack(tree)
        with results.open("wb") as file:
            file.truncate(RESULTS_BYTES)
        why = _emulate(root, job, tree, results)
        found = read_results(results.read_bytes())
    if found is None:
        raise NoResults(f"{why}; its console ({console}) ends with:\n" + tail(console.read_text(errors="replace")))
    return {**found, "took_s": round(time.monotonic() - started)}


def pack(target: Path) -> None:
    """The working tree, with what is not committed yet and without what git ignores."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    )
    with tarfile.open(target, "w") as archive:
        for name in sorted(filter(None, set(listing.stdout.split("\0")))):
            if (REPOSITORY / name).exists():  # deleted, and not yet committed
                archive.add(REPOSITORY / name, name)


def _emulate(root: Path, job: Job, tree: Path, results: Path) -> str:
    """Until it has powered itself off, or the time is over. Returns how it ended."""
    command = ["setpriv", "--pdeathsig", "KILL"]  # however this process ends, the machine does not outlive it
    command += ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "2048"]
    command += ["-nographic", "-nic", "none", "-monitor", "none", "-serial", "stdio"]
    command += [] if job.reboots else ["-no-reboot"]
    command += ["-kernel", str(root / "vmlinuz"), "-initrd", str(root / "initrd.img"), "-append", job.kernel_line]
    disks = [(root / "disk.ext4", "snapshot=on"), (tree, "readonly=on"), (results, "cache=writethrough")]
    for path, how in (*disks, *((path, "readonly=on") for path in job.disks)):
        command += ["-drive", f"file={path},if=virtio,format=raw,{how}"]
    command += job.qemu
    with (root / job.console).open("wb") as log:
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=job.limit_s, check=False
            )
        except subprocess.TimeoutExpired:
            return f"not done after {job.limit_s} s"
    return f"ended without results (QEMU's status is {done.returncode})"


def read_results(raw: bytes) -> dict[str, Any] | None:
    """What tests/distros/guest.py has written to its disk, or None."""
    try:
        found = json.loads(raw.rstrip(b"\0"))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def tail(text: str, lines: int = 30) -> str:
    """The end of a console, readable."""
    return "\n".join(text.replace("\r", "").rstrip().splitlines()[-lines:])
