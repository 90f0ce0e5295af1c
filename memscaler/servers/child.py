"""Processes: started in a session of their own, watched without polling, and ended with all that they left behind.

Whoever is asked to end here is the whole session: its leader is the process that was started, so whatever it started
is in it, also after the leader's death and also after ours. What it took elsewhere (setsid, a daemon's double fork) has
inherited a variable, its mark (marks.py). A pid that the kernel gave to somebody else is told by its start time.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from memscaler.kernel.processes import start_time
from memscaler.servers import marks

STRAYS_S = 2.0  # for what a server took out of its session
AGAIN_S = 0.02  # where the kernel cannot wake us
KILLED_S = 5.0  # after SIGKILL; a process that waits for a device takes longer, and nothing can be done about it
_IGNORED_BY_PYTHON = frozenset({signal.SIGPIPE, signal.SIGXFSZ})
# A program gets these for what it has just done, and ggml's abort says before why.
_OWN_DOING = frozenset({signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGTRAP})
_SHORTAGES = frozenset({
    errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ETXTBSY,
    errno.ESTALE, errno.ETIMEDOUT, errno.ECONNREFUSED,
})  # fmt: skip


class CannotStart(Exception):
    """A program cannot be executed as it is described; says why. later: perhaps it can in a moment."""

    def __init__(self, message: str, *, later: bool = False) -> None:
        super().__init__(message)
        self.later = later


def passes(error: Exception) -> bool:
    """Whether it may be otherwise in a moment: no room on the disk, no descriptors, a program that is being written."""
    return isinstance(error, OSError) and error.errno in _SHORTAGES


@dataclass(frozen=True, slots=True)
class How:
    """A process's end. well: by itself, with status 0. killed: by a signal that it did not bring upon itself."""

    text: str
    well: bool = False
    killed: bool = False


UNKNOWN = How("its exit status is unknown, because another supervisor started it")


def clean_signals() -> None:
    """Nothing is blocked or ignored in this process: what is so at an exec is so for ever in the program.

    Whoever started us (nohup, a shell's background job) may have left something; our own handlers are no matter.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - _IGNORED_BY_PYTHON:
        if signal.getsignal(number) is signal.SIG_IGN:
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)


class Process:
    """A process and its session. `ended` is fulfilled when the process is over, `await clear()` ends the rest.

    Used in the thread of the running loop.
    """

    def __init__(
        self, pid: int, started: int, pidfd: int, popen: subprocess.Popen[bytes] | None = None, mark: str = ""
    ) -> None:
        self.pid = pid
        self.started = started
        self.mark = mark
        self.ended: asyncio.Future[How] = asyncio.get_running_loop().create_future()
        self._popen = popen  # ours to reap
        self._pidfd = pidfd
        asyncio.get_running_loop().add_reader(pidfd, self._over)

    @classmethod
    def start(
        cls, argv: Sequence[str], environment: Mapping[str, str], directory: str, output: int, mark: str = ""
    ) -> Process:
        """Raise CannotStart. output: descriptor for its standard output and error.

        SIGPIPE is ignored in it, as in services of systemd: a journal that goes away must not end it.
        """
        try:
            popen = subprocess.Popen(  # noqa: S603  # what the operator has described
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=directory,
                env={**environment, marks.VARIABLE: mark},
                start_new_session=True,
                restore_signals=False,
            )
        except (OSError, ValueError) as error:
            why = _why(error, argv[0], directory)
            raise CannotStart(f"cannot be started: {why}", later=passes(error)) from error
        try:
            return cls(popen.pid, _started(popen.pid), os.pidfd_open(popen.pid), popen, mark)
        except OSError as error:  # or no descriptors left
            popen.kill()
            popen.wait()
            raise CannotStart(f"cannot be watched: {error.strerror}", later=passes(error)) from error

    @classmethod
    def adopt(cls, pid: int, started: int, mark: str = "") -> Process | None:
        """One that an earlier supervisor started; None if it is gone."""
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        if start_time(pid) != started:
            os.close(pidfd)
            return None
        return cls(pid, started, pidfd, mark=mark)

    def _over(self) -> None:
        """It is a zombie until here: its pid and its group's are nobody else's."""
        asyncio.get_running_loop().remove_reader(self._pidfd)
        how = UNKNOWN
        if self._popen is not None:
            how = _how(self._popen.wait())
        os.close(self._pidfd)
        self._pidfd = -1
        if not self.ended.done():
            self.ended.set_result(how)

    def forget(self) -> None:
        """Let it live on without us."""
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        if self._popen is not None:
            self._popen.returncode = 0  # else Python complains of a child that was left

    def everything(self) -> set[int]:
        """The pids of its session, and of its strays. Reading what the driver holds may hang."""
        return {*members(self.pid, self.started), *(marks.living(self.mark) if self.mark else ())}

    async def clear(self, patience_s: float) -> bool:
        """End its session: SIGTERM, and SIGKILL after patience_s. False if something survives that too."""
        return await clear(self.pid, self.started, patience_s, self.mark)


async def clear(leader: int, started: int, patience_s: float, mark: str = "") -> bool:
    """End the session of a process that may be gone, and its strays. False if something is left even after SIGKILL."""
    return await _clear_session(leader, started, patience_s) and await clear_strays(mark)


async def clear_strays(mark: str) -> bool:
    """End what has this mark, wherever it is. False if something is left even after SIGKILL."""
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    while mark and (there := await marks.find(mark)):
        waited_s = loop.time() - begun_s
        if waited_s > STRAYS_S + KILLED_S:
            return False
        for pid, since in there.items():
            _send_to(pid, since, signal.SIGTERM if waited_s < STRAYS_S else signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(STRAYS_S - waited_s, 0.5)):
                await _one_ends(there)
    return True


async def _clear_session(leader: int, started: int, patience_s: float) -> bool:
    send(leader, started, signal.SIGTERM)
    if await _gone(leader, started, patience_s):
        return True
    loop = asyncio.get_running_loop()
    end_s = loop.time() + KILLED_S
    while loop.time() < end_s:  # a process that forks while it is looked at may have escaped the last one
        send(leader, started, signal.SIGKILL)
        if await _gone(leader, started, 0.5):
            return True
    return False


def send(leader: int, started: int, number: signal.Signals) -> None:
    """To each process of a session, and to the leader's group, those that are born meanwhile included."""
    there = members(leader, started)
    if leader in there:  # or its number may be another group's by now
        with contextlib.suppress(OSError):
            os.killpg(leader, number)
    for pid, since in there.items():
        if _group(pid) != leader or leader not in there:
            _send_to(pid, since, number)


def _send_to(pid: int, started: int, number: signal.Signals) -> None:
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            if (status := _session(pid)) is not None and status[2] == started:
                signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except OSError:
        return 0


async def _gone(leader: int, started: int, within_s: float) -> bool:
    """Whether the session is empty within that time; woken by each end, not by a clock."""
    try:
        async with asyncio.timeout(within_s):
            while there := members(leader, started):
                await _one_ends(there)
    except TimeoutError:
        return not members(leader, started)
    return True


async def _one_ends(there: Mapping[int, int]) -> None:
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    fds = []
    try:
        for pid, since in there.items():
            try:
                fd = os.pidfd_open(pid)
            except OSError:  # it has ended; or we have no descriptors left, and must not go round without a pause
                await asyncio.sleep(AGAIN_S)
                return
            fds.append(fd)
            if (status := _session(pid)) is None or status[2] != since:
                return
            loop.add_reader(fd, _fulfil, ended)
        await ended
    finally:
        for fd in fds:
            loop.remove_reader(fd)
            os.close(fd)


def _fulfil(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def members(leader: int, started: int) -> dict[int, int]:
    """Pid -> start time of the processes of this session that live; none if the number is another session's by now."""
    found: dict[int, int] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal() and (status := _session(int(entry.name))) is not None:
            session, group, since = status
            if leader in (session, group) and since >= started:
                found[int(entry.name)] = since
    other = start_time(leader)
    return {} if other is not None and other != started else found


def _session(pid: int) -> tuple[int, int, int] | None:
    """Its session, group and start time; None if it does not live. One whose first thread alone has ended does."""
    fields = _stat(pid)
    if not fields or fields[0] == b"X" or (fields[0] == b"Z" and int(fields[17]) <= 1):
        return None
    return int(fields[3]), int(fields[2]), int(fields[19])


def _started(pid: int) -> int:
    """Of a child that may be a zombie by now. Raise OSError."""
    fields = _stat(pid)
    if not fields:
        raise OSError(errno.ENOENT, "there is no /proc")
    return int(fields[19])


def _stat(pid: int) -> list[bytes]:
    """proc_pid_stat(5) from the third field on; [] if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []


def _how(code: int) -> How:
    if code >= 0:
        return How(f"exit status {code}", well=code == 0)
    try:
        return How(signal.Signals(-code).name, killed=-code not in _OWN_DOING)
    except ValueError:
        return How(f"signal {-code}", killed=True)


def _why(error: OSError | ValueError, program: str, directory: str) -> str:
    if not isinstance(error, OSError):
        return str(error)  # a zero byte in an argument
    if not os.access(directory, os.X_OK):
        return f"directory {directory}: {'no such directory' if not Path(directory).is_dir() else 'permission denied'}"
    match error:
        case FileNotFoundError() if "/" in program and Path(program).exists():
            return f"{program}: its interpreter (the first line of the file) is not there"
        case FileNotFoundError():
            return f"{program}: no such program" + ("" if "/" in program else " in PATH")
        case PermissionError():
            return f"{program}: not executable for this user"
    return f"{program}: {error.strerror}"
