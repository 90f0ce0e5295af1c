"""Other programs that set GPU clocks, by their processes: to be named in the status, and where clocks have moved."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from memscaler.kernel.processes import PROC, Processes

NO_BOOST = b"CUDA_DISABLE_PERF_BOOST=1"
ENVIRON_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Rival:
    """A running program that sets clocks, or makes parking needless. what: what it does, for people."""

    name: str
    pid: int
    what: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid}) {self.what}"


# By the name of the process, of its program or of the script that an interpreter runs.
_KNOWN = {
    "nvidia-pstated": "forces performance states by utilisation",
    "gppmd": "forces performance states by a server's log",
    "gppm": "forces performance states by a server's log",
    "zeusd": "sets clocks and power limits for others",
    "cmp-governor": "forces performance states by utilisation",
    "nvidia_oc": "sets clocks",
    "limit-nvpstate": "limits performance states",
    "gpu-idle-saver": "lowers power limits by utilisation",
}
_LACT = "sets clocks by its profiles"
RECENT_S = 5.0
_looking = threading.Lock()
_recent: tuple[float, tuple[Rival, ...]] = (-RECENT_S, ())
_NO_BOOST = "does not raise clocks when idle: parking may gain nothing"


def find(servers: Iterable[int] = (), proc: Path = PROC) -> tuple[Rival, ...]:
    """The rivals that run now. servers: the pids that have a context on a GPU. Raise OSError if there is no /proc."""
    processes = Processes.look(proc)
    programs = [rival for pid in sorted(processes.pids) for rival in _rivals(processes, pid)]
    spared = [Rival(NO_BOOST.decode(), pid, _NO_BOOST) for pid in sorted(servers) if needs_no_parking(pid, proc)]
    return (*programs, *spared)


def recent(servers: Iterable[int] = ()) -> tuple[Rival, ...]:
    """Like `find`, but at most one look per RECENT_S, however many ask: a look at every process takes its time."""
    global _recent  # noqa: PLW0603
    with _looking:
        if time.monotonic() > _recent[0] + RECENT_S:
            _recent = time.monotonic(), find(servers)
        return _recent[1]


def _rivals(processes: Processes, pid: int) -> Iterator[Rival]:
    argv = processes.argv(pid)
    called = [Path(word).name.removesuffix(".py") for word in argv[:2]]
    names = {processes.comm(pid), *called}
    for name in sorted(names & _KNOWN.keys()):
        yield Rival(name, pid, _KNOWN[name])
        return
    if "lact" in called and "daemon" in argv[1:]:
        yield Rival("lact", pid, _LACT)


def needs_no_parking(pid: int, proc: Path = PROC) -> bool:
    """True if this server was told not to raise clocks merely because it has a CUDA context (driver 580.105.08)."""
    return NO_BOOST in (environment(pid, proc) or ())


def environment(pid: int, proc: Path = PROC) -> list[bytes] | None:
    """The variables that a process was started with; None if it is gone or not ours to look at."""
    try:
        with (proc / str(pid) / "environ").open("rb") as file:
            return file.read(ENVIRON_BYTES).split(b"\0")
    except OSError:
        return None
