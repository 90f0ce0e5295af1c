"""A child of the governor that acts for it: started with one end of a socket pair, and never waited for.

The sleeper (memscaler/sleep) takes servers, and the machine, down to deeper stages; the arbiter (memscaler/gvm) sets
what is set on the applications of GPUs. Each is a process of its own, because what it needs (HTTP, D-Bus, calls that
hang in foreign programs or in the kernel) is nothing for the governor, and because the governor has to live on whatever
happens there. It ends by itself when the governor's end of the socket closes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import termios
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from memscaler.daemon.child_words import MOST_BYTES

MOST_WAITING = 1000  # messages that it has not taken: more, and it reads no more


class Unheard(Exception):
    """It does not read what it is told, or its socket is gone."""


class ChildProcess:
    """Used by the loop's thread. `pidfd` becomes readable when it has died, `fd` when it says something.

    urgent: our end of its second socket, which is the taker's to close; None if it has no other, or it was taken.
    """

    def __init__(
        self,
        program: Path,
        runtime_dir: Path,
        environment: Mapping[str, str],
        log_format: str,
        log_level: str,
        *,
        urgent: bool = False,
    ) -> None:
        """log_format: json, or console for people. log_level: as in the settings. urgent: with a second socket.

        Raise OSError if it cannot start.
        """
        self._waiting: deque[bytes] = deque()
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            self._socket, its = _pair(ours, theirs)
            ends = [its]
            self.urgent: socket.socket | None = None
            if urgent:
                self.urgent, its = _pair(ours, theirs)
                ends.append(its)
            for end in (self._socket, ends[0]):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MOST_BYTES)
            numbers = [end.fileno() for end in ends]
            # -P: modules come from where memscaler is installed, never from the folder that it was started in
            what = [*map(str, numbers), str(runtime_dir.absolute()), log_format, log_level]
            self._process = subprocess.Popen(  # noqa: S603  # our own program, our own interpreter
                [sys.executable, "-P", str(program), *what],
                pass_fds=numbers,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
                env={**os.environ, **environment},
            )
            self.pid = self._process.pid
            self.pidfd = os.pidfd_open(self.pid)
            self.fd = self._socket.fileno()
            ours.pop_all()  # they are kept

    @property
    def waiting(self) -> bool:
        """Whether something could not be said yet: call `flush` when the socket takes more."""
        return bool(self._waiting)

    @property
    def unread(self) -> bool:
        """Whether there is something that it has not read yet."""
        with contextlib.suppress(OSError):
            # SIOCOUTQ, unix(7): what lies in the socket until the other end takes it
            return bool(self._waiting) or fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)) != bytes(4)
        return False

    def tell(self, message: bytes) -> None:
        """Now, or when it takes it. Raise Unheard."""
        if len(self._waiting) >= MOST_WAITING:
            raise Unheard("it reads no more")
        self._waiting.append(message)
        self.flush()

    def flush(self) -> None:
        """Say what waits. Raise Unheard."""
        while self._waiting:
            try:
                self._socket.send(self._waiting[0])
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                raise Unheard(str(error.strerror)) from error
            self._waiting.popleft()

    def hear(self) -> bytes | None:
        """One message; None: there is none now. Raise Unheard if there will be none any more."""
        try:
            message = self._socket.recv(MOST_BYTES + 1)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            raise Unheard(str(error.strerror)) from error
        if not message:
            raise Unheard("it has closed its socket")
        if len(message) > MOST_BYTES:
            raise Unheard("it says too much at once")
        return message

    def kill(self) -> None:
        """One that makes no sense any more: its journal says what it has left."""
        with contextlib.suppress(OSError):
            self._process.send_signal(signal.SIGKILL)

    def close(self) -> str:
        """Let go of one that is dead, or that is to go on by itself. How it ended, in words."""
        self._socket.close()
        os.close(self.pidfd)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=0.5)
        code = self._process.returncode
        if code is None:
            return "it goes on"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _pair(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    """Our end, which never waits, and theirs."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mine.setblocking(False)
    return ours.enter_context(mine), theirs.enter_context(its)
