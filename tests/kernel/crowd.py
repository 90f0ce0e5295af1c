"""Real processes that look like others: any command line, listening sockets, namespace, cgroup, parent."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from memscaler.kernel.netns import entered
from tests.kernel.worlds import assert_eventually

# Its parent takes it along, also if a test run is killed.
DOES_NOTHING = r"""
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>
int main(void) { prctl(PR_SET_PDEATHSIG, SIGKILL); for (;;) pause(); }
"""


@dataclass(frozen=True, slots=True)
class Actor:
    """A process to be. listens: addresses or paths; share: its children hold the sockets too."""

    argv: Sequence[str]
    listens: Sequence[str] = ()
    children: Sequence[Actor] = ()
    netns: str | None = None
    cgroup: Path | None = None
    share: bool = False
    program: str = "actor"


@dataclass(frozen=True, slots=True)
class Played:
    """A process that is. ports: where it listens, in the order of `listens`."""

    pid: int
    ports: tuple[int, ...]
    children: tuple[Played, ...]

    @property
    def port(self) -> int:
        return self.ports[0]

    def everybody(self) -> Iterator[Played]:
        yield self
        for child in self.children:
            yield from child.everybody()


@functools.cache
def _program(name: str) -> str:
    """A program of this name that does nothing, whatever its arguments."""
    folder = Path(tempfile.mkdtemp(prefix="ms-test-crowd-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "actor.c").write_text(DOES_NOTHING)
    subprocess.run(["cc", "-O1", "-o", folder / name, folder / "actor.c"], check=True)
    return str(folder / name)


@contextlib.contextmanager
def played(*actors: Actor) -> Iterator[list[Played]]:
    """All of them run, each as its own program, when this begins, and none when it ends."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(_played(actor)) for actor in actors]


@contextlib.contextmanager
def _played(actor: Actor) -> Iterator[Played]:
    for each in (actor, *_below(actor)):
        _program(each.program)
    told, tell = os.pipe()
    root = _fork(actor, tell, [])
    os.close(tell)
    with os.fdopen(told) as file:
        lines = [json.loads(line) for line in file]  # to its end: all of them are what they shall be
    try:
        assert len(lines) == 1 + sum(1 for _ in _below(actor)), f"an actor failed: {lines}"
        yield _assembled(actor, {tuple(line["at"]): line for line in lines}, ())
    finally:
        for line in lines:
            with contextlib.suppress(ProcessLookupError):
                os.kill(line["pid"], signal.SIGKILL)
        os.waitpid(root, 0)
        # children go to whoever reaps: their namespaces and cgroups are free when they are gone
        for line in lines:
            assert_eventually(lambda: not _lives(line["pid"]), lambda: f"{line} lives on")


def _lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def _below(actor: Actor) -> Iterator[Actor]:
    for child in actor.children:
        yield child
        yield from _below(child)


def _assembled(actor: Actor, lines: dict[tuple[int, ...], dict], at: tuple[int, ...]) -> Played:
    children = tuple(_assembled(child, lines, (*at, nth)) for nth, child in enumerate(actor.children))
    return Played(lines[at]["pid"], tuple(lines[at]["ports"]), children)


def _fork(actor: Actor, tell: int, at: list[int]) -> int:
    pid = os.fork()
    if not pid:
        try:
            _become(actor, tell, at)
        finally:
            os._exit(1)
    return pid


def _become(actor: Actor, tell: int, at: list[int]) -> None:
    if actor.cgroup:
        (actor.cgroup / "cgroup.procs").write_text(str(os.getpid()))
    if actor.netns:
        actor_netns = entered(actor.netns)
        actor_netns.__enter__()
    sockets = _listening(actor) if actor.share else []
    for nth, child in enumerate(actor.children):
        _fork(child, tell, [*at, nth])
    sockets = sockets or _listening(actor)
    ports = [each.getsockname()[1] if each.family != socket.AF_UNIX else 0 for each in sockets]
    os.write(tell, (json.dumps({"at": at, "pid": os.getpid(), "ports": ports}) + "\n").encode())
    os.execv(_program(actor.program), list(actor.argv))


def _listening(actor: Actor) -> list[socket.socket]:
    made = []
    for where in actor.listens:
        address, _, number = where.partition("@")
        family = socket.AF_UNIX if "/" in where else socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family)
        if family == socket.AF_UNIX:
            sock.bind(where)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((address, int(number or 0)))
        sock.listen()
        os.set_inheritable(sock.fileno(), True)
        made.append(sock)
    return made


@functools.cache
def cgroup_root() -> Path:
    """Where cgroup version 2 is mounted, alone or beside version 1."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        words = line.split()
        if words[2] == "cgroup2":
            return Path(words[1])
    raise AssertionError("no cgroup version 2 here")


@contextlib.contextmanager
def cgroup(*path: str) -> Iterator[Path]:
    """A real cgroup of this path below the root; gone afterwards, with what had to be made above it."""
    made = []
    folder = cgroup_root()
    try:
        for part in "/".join(path).split("/"):
            folder /= part
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                made.append(folder)
        yield folder
    finally:
        for folder in reversed(made):
            assert_eventually(lambda: _removed(folder), lambda: f"{folder} is in use")


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def new_id() -> str:
    """The id of a container."""
    return secrets.token_hex(32)
