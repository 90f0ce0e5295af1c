"""Processes that call themselves something else: to be left alone, or to have somebody else frozen."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memscaler.config.gpuctl import Match
from memscaler.core.errors import UsageError
from memscaler.gvm.named import resolve
from memscaler.gvm.processes import about, matching, untouchable
from memscaler.kernel.processes import Processes
from tests.gvm.workers import Worker, cgroup, join

NOBODY = 65534
CONTAINER = "c0ffee" + "0" * 58
PRETEND = """
import ctypes, os, sys
user, name, dumpable = sys.argv[1:4]
os.setgroups([]); os.setgid(int(user)); os.setuid(int(user))
libc = ctypes.CDLL(None)
libc.prctl(15, name.encode())
libc.prctl(4, int(dumpable))
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def pretending(user: int, name: str, *, argv0: str = sys.executable, dumpable: int = 1) -> Iterator[int]:
    """A process of this user's that is called so; argv0: how its command line begins."""
    home = {**os.environ, "PYTHONHOME": sys.base_prefix}  # which python would find by argv0
    command = [argv0, "-c", PRETEND, str(user), name, str(dumpable)]
    with subprocess.Popen(
        command, executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", env=home
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield process.pid
        finally:
            process.communicate()


def test_only_root_and_we_are_memscaler() -> None:
    with pretending(NOBODY, "memscaler", argv0="memscaler") as pid:
        assert pid not in untouchable(Processes.look())
    with pretending(0, "memscaler", argv0="memscaler") as pid:
        assert "memscaler itself" in untouchable(Processes.look())[pid]


def test_root_in_a_container_is_not_memscaler() -> None:
    with cgroup("pretending") as folder, pretending(0, "memscaler", argv0="memscaler") as pid:
        inside = folder / f"docker-{CONTAINER}.scope"
        inside.mkdir()
        (inside / "cgroup.procs").write_text(str(pid))
        assert pid not in untouchable(Processes.look())


@pytest.mark.parametrize("name", ["nvidia-cuda-mps-server", "nvidia-persistenced"])
@pytest.mark.parametrize("user", [0, NOBODY])
def test_a_name_alone_is_not_the_driver_s(name: str, user: int) -> None:
    with pretending(user, name) as pid:
        processes = Processes.look()
        assert processes.comm(pid) == name[:15]
        assert pid not in untouchable(processes)


def test_who_forbids_dumps_is_still_its_user_s() -> None:
    """/proc makes root the owner of what is in such a process's directory."""
    with pretending(NOBODY, "job", dumpable=0) as pid:
        processes = Processes.look()
        subject = about(pid, processes)
        assert subject is not None
        assert subject.user != "root"
        assert pid in matching([Match("user", str(NOBODY))], processes)
        assert pid not in matching([Match("user", "root")], processes)


@pytest.mark.parametrize("name", ["engine.service", f"docker-{CONTAINER}.scope"])
def test_a_cgroup_of_one_s_own_is_not_the_server_s(name: str, tmp_path: Path) -> None:
    """A user may give any name to what is below his manager."""
    server, forger, sibling = (Worker(tmp_path, each) for each in ("server", "forger", "sibling"))
    try:
        with cgroup("system.slice") as system, cgroup("user@1000.service") as users:
            real, forged = system / name, users / name
            for folder in (real, forged):
                folder.mkdir()
            below = real / "payload"
            below.mkdir()
            join(real, server)
            join(below, sibling)
            join(forged, forger)
            found = untouchable(Processes.look(), listeners=[server.pid])
            assert forger.pid not in found
            assert name[:6] in found[sibling.pid] or "container c0ffee" in found[sibling.pid]
    finally:
        for each in (server, forger, sibling):
            each.end()


@pytest.mark.parametrize(
    "text", ["9" * 5000, "pid:" + "9" * 5000, "port:" + "9" * 11, "unit:", "container:", "a\x1b[31m"]
)
def test_words_that_mean_nobody(text: str) -> None:
    with pytest.raises(UsageError):
        resolve(text, Processes.look())
