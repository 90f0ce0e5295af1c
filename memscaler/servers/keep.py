"""A program that must not outlive us: it runs below a small process that ends it, and all that it started, with us.

    keep.py FD STOP_S USER COMMAND ...

`Kept` is our side of it. The keeper holds one end of a socket; when ours closes, however we ended, it ends the program:
SIGTERM for its process group, after STOP_S seconds SIGKILL, then whatever of its descendants is left, because they are
handed to the keeper when their parents die (a wrapper script may start the server and not become it). Should the
keeper be killed, the kernel kills the program, and we its process group. SIGTERM from us means: at once. The keeper
ends as the program did.

Where the program is another user's, only the program is: the keeper has our rights, as that user may not be able to
read our python. USER: uid:gid:group,group or nothing. It is stand-alone, and imports nothing but what it needs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
BY_SIGNAL = 128  # added to a signal's number, as shells do
NOT_RUNNABLE, NOT_FOUND = 126, 127
LOOK_S = 0.01


@dataclass(frozen=True, slots=True)
class User:
    """Whose rights a program gets."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


class Kept:
    """A program that runs, and ends with this process at the latest."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        output: int | None = None,
        *,
        user: User | None = None,
        stop_s: float = 5.0,
    ) -> None:
        """output: a descriptor for all that it says; None: ours. user: None for our own.

        Raise OSError if not even the keeper starts.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            os.set_inheritable(theirs.fileno(), True)
            words = [sys.executable, "-I", "-S", __file__, str(theirs.fileno()), str(stop_s), _written(user), *command]
            try:
                self._process = subprocess.Popen(  # noqa: S603  # our own file, the operator's command
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=dict(environment),
                    pass_fds=(theirs.fileno(),),
                    process_group=0,  # the keyboard's Ctrl-C is for us; we say in which order things end
                )
            except BaseException:
                ours.close()
                raise
        self._line = ours

    @property
    def pid(self) -> int:
        """Of the keeper."""
        return self._process.pid

    def ended(self) -> int | None:
        """Its exit status, as shells count it; None: it runs."""
        code = self._process.poll()
        return code if code is None or code >= 0 else BY_SIGNAL - code

    def stop(self) -> None:
        """Ask for its end."""
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        """Its end at once, also after `stop`."""
        with contextlib.suppress(OSError):
            self._process.send_signal(signal.SIGTERM)

    def wait(self, patience_s: float) -> int | None:
        """For its end; None if it takes longer."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_s)
        return self.ended()

    @property
    def lost_its_keeper(self) -> bool:
        """That was killed: what has left our program's process group is found by nobody here."""
        return (self._process.poll() or 0) < 0

    def close(self) -> None:
        """Its descriptors. What still runs ends."""
        if self.lost_its_keeper:
            self._end_group()
        self._line.close()

    def _end_group(self) -> None:
        """The keeper was killed, and the kernel has killed the program: what it had started is left, in its group."""
        try:
            group = int(self._line.recv(16, socket.MSG_DONTWAIT))
        except (OSError, ValueError):
            return  # it had started none
        if any(_belongs(int(name), group) for name in os.listdir("/proc") if name.isdecimal()):  # noqa: PTH208  # names are wanted
            _signal_group(group, signal.SIGKILL)


def _belongs(pid: int, group: int) -> bool:
    """Whether this process is of our program's group, and not of another one's with the same number by now."""
    try:
        return os.getpgid(pid) == group and os.getsid(pid) == os.getsid(0)
    except OSError:
        return False


def said(code: int) -> str:
    """An exit status in words."""
    if code <= BY_SIGNAL:
        return f"exit status {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(code - BY_SIGNAL).name
    return f"exit status {code}"


def die_with_parent(number: int, parent: int) -> None:
    """Have the kernel send us a signal when the thread that started us has gone. parent: its process, to be sure."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:  # it was faster
        os._exit(BY_SIGNAL + number)


def main(words: Sequence[str]) -> NoReturn:
    """The keeper."""
    line, stop_s, user, command = int(words[0]), float(words[1]), words[2], list(words[3:])
    os.set_inheritable(line, False)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    hurried = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(hurried[1])
    signal.signal(signal.SIGTERM, lambda *_: None)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    pid = _started(command, user)
    pidfd = os.pidfd_open(pid)
    with contextlib.suppress(OSError):
        os.write(line, str(pid).encode())
    ready, _, _ = select.select([pidfd, line, hurried[0]], [], [])
    if pidfd not in ready:
        if hurried[0] not in ready:
            _signal_group(pid, signal.SIGTERM)
            select.select([pidfd, hurried[0]], [], [], stop_s)
        _signal_group(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    _end_the_rest(stop_s if pidfd in ready else 0.0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else BY_SIGNAL - code)


def _started(command: list[str], user: str) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setpgid(0, 0)
        _become(user)
        die_with_parent(signal.SIGKILL, parent)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.execvp(command[0], command)  # noqa: S606  # no shell is wanted
    except OSError as error:
        os.write(2, f"memscaler: cannot run {command[0]}: {error.strerror}\n".encode())
        os._exit(NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_RUNNABLE)
    os._exit(NOT_RUNNABLE)


def _written(user: User | None) -> str:
    return "" if user is None else f"{user.uid}:{user.gid}:{','.join(map(str, user.groups))}"


def _become(user: str) -> None:
    if not user:
        return
    uid, gid, groups = user.split(":")
    os.setgroups([int(group) for group in groups.split(",") if group])
    os.setresgid(int(gid), int(gid), int(gid))
    os.setresuid(int(uid), int(uid), int(uid))


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
    with contextlib.suppress(ProcessLookupError):  # before it made its group
        os.kill(pid, number)


def _end_the_rest(patience_s: float) -> None:
    """What the program left behind is ours now. It gets a while to end by itself where the program did."""
    end_s, number = time.monotonic() + patience_s, signal.SIGTERM
    while children := _children():
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)
        time.sleep(LOOK_S)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if time.monotonic() >= end_s:
            number = signal.SIGKILL


def _children() -> list[int]:
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii")
    return [int(word) for word in text.split()]


if __name__ == "__main__":
    main(sys.argv[1:])
