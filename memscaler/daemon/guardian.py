"""The guardian: a process that waits for the daemon's death, or its standstill, and wakes what it left parked.

It blocks on a socket whose other end only the daemon holds. "bye" means that the daemon ended well; the end of the
stream without it means that it was killed, and the kernel closes the stream only after the last thread has left its
system calls, so no driver call of the daemon can come after the restore. Everything that the restore needs is
imported before, so that it starts within milliseconds; the driver is opened only then, because an open driver
session would block driver upgrades.

A daemon that is stopped (SIGSTOP, a debugger) cannot wake anything either. So the guardian listens to the doorbell as
well, behind everybody else: if it rings and the daemon stands still a moment later, the guardian wakes its GPUs.
`doctor --probe` and `calibrate` have no doorbell. Their guardian lives for minutes only, so it looks by itself, again
and again; and it wakes only what its own trial has parked, because a daemon may govern by then.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

if __name__ == "__main__":  # a checkout that is not installed; otherwise it is there already
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from memscaler.core.errors import MemscalerError
from memscaler.daemon.journals import ASLEEP, CONTROLLED, JOURNAL, tells_of_something
from memscaler.daemon.privileges import CONTROLLING, keep_rights, refuse_loading
from memscaler.gpu.restore import restore_from

_HERE = Path(__file__).resolve().parent.parent
# Programs, by the folder of their journal, in the order in which they run; their modules are nothing for a guardian.
# First what stands still, which takes milliseconds; a server may take minutes.
UNDO = {CONTROLLED: _HERE / "gvm" / "undo.py", ASLEEP: _HERE / "sleep" / "undo.py"}
READY, GOODBYE = b"ready", b"bye"
START_TIMEOUT_S = 20.0
RESTORE_BUDGET_S = 30.0
STANDSTILL_S = 0.25
WATCH_STANDSTILL = "watch-standstill"
_STOPPED = frozenset("Tt")  # proc(5), field 3 of stat: by a signal, by a debugger


class Guardian:
    """The daemon's side: starts the process, and knows when it has died (`pidfd` becomes readable)."""

    def __init__(
        self,
        runtime_dir: Path,
        environment: Mapping[str, str],
        doorbell: int = -1,
        *,
        json_log: bool = False,
        watch_standstill: bool = False,
    ) -> None:
        """doorbell: the descriptor that becomes readable when a client comes to a parked GPU; -1: there is none.

        json_log: what it says is for programs, as the daemon's log is.
        watch_standstill: look for it without a doorbell, for a probe.
        """
        ours, theirs = socket.socketpair()
        self._channel = ours
        with theirs:
            # -P: modules come from where memscaler is installed, never from the folder that it was started in
            form = "json" if json_log else "text"
            what = [str(theirs.fileno()), str(runtime_dir.absolute()), str(doorbell), form]
            command = [sys.executable, "-P", __file__, *what, *([WATCH_STANDSTILL] if watch_standstill else [])]
            self._process = subprocess.Popen(  # noqa: S603  # our own module, our own interpreter
                command,
                pass_fds=[fd for fd in (theirs.fileno(), doorbell) if fd >= 0],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
                env={**os.environ, **environment},
            )
        self.pid = self._process.pid
        self.pidfd = os.pidfd_open(self.pid)
        self.fd = ours.fileno()

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> bool:
        """True once it watches over us."""
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        with contextlib.suppress(ConnectionError):
            return bool(poll.poll(timeout_s * 1000)) and self._channel.recv(16) == READY
        return False

    def dismiss(self) -> None:
        """Everything is awake: it may go."""
        with contextlib.suppress(OSError):
            self._channel.send(GOODBYE)
        self.close()

    def close(self) -> None:
        """Let go of a guardian that is dead or dismissed."""
        self._channel.close()
        os.close(self.pidfd)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=0.5)


def main(arguments: list[str]) -> int:
    """The guardian's whole life."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("-1000")
    # If the daemon has them: to let go of applications of others, and to have servers started by those who keep them.
    keep_rights(("CAP_SYS_ADMIN", *CONTROLLING), writes_to=Path(arguments[1]))
    refuse_loading()
    channel = socket.socket(fileno=int(arguments[0]))
    runtime_dir, doorbell, daemon = Path(arguments[1]), int(arguments[2]), os.getppid()
    say = _say_json if arguments[3] == "json" else _say
    trial = WATCH_STANDSTILL in arguments[4:]
    poll_s, who = (STANDSTILL_S, "the trial") if trial else (None, "the daemon")
    mine = daemon if trial else None  # a daemon may govern when a trial has died: what it parks is not ours
    said = b""
    with contextlib.suppress(ConnectionError):  # dead already: all the more to do
        channel.send(READY)
        stopped = f"{who} stands still"
        _wait(channel, doorbell, poll_s, lambda: _stands_still(daemon) and rescue(runtime_dir, stopped, say, mine))
        said = channel.recv(16)
    if said == GOODBYE:
        return 0
    status = rescue(runtime_dir, f"{who} died", say, mine)
    return status if trial else max(status, bring_back(runtime_dir, arguments[3]))


def _wait(channel: socket.socket, doorbell: int, poll_s: float | None, stand_in: Callable[[], object]) -> None:
    """Until the daemon says something or has died; meanwhile stand in for it while it stands still.

    poll_s: how often to look whether it does, if nobody rings.
    """
    epoll = select.epoll()
    epoll.register(channel, select.EPOLLIN)
    if doorbell >= 0:
        epoll.register(doorbell, select.EPOLLIN | select.EPOLLET)  # by its edge: the daemon silences it
    while channel.fileno() not in (ready := {fd for fd, _ in epoll.poll(poll_s)}):
        if doorbell in ready:
            said = select.poll()
            said.register(channel, select.POLLIN)
            if not said.poll(STANDSTILL_S * 1000):
                stand_in()
        elif poll_s is not None:
            stand_in()


def _stands_still(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] in _STOPPED
    except (OSError, IndexError):
        return False  # it is gone: the channel tells


def rescue(runtime_dir: Path, why: str, say: Callable[[str], None], pid: int | None = None) -> int:
    """Wake what the journal says is parked; exit status as of `memscaler restore`. why: who did what.

    pid: only what this process has parked.
    """
    end = time.monotonic() + RESTORE_BUDGET_S
    while True:
        try:
            report = restore_from(runtime_dir / JOURNAL, budget_s=end - time.monotonic(), pid=pid)
            break
        except MemscalerError as error:
            say(f"{error}; run `memscaler restore`")
            if time.monotonic() > end:
                return error.exit_code
        time.sleep(1)
    for gpu in report.gpus:
        say(f"{why}; {gpu}")
    return 0 if report.ok else 1


def bring_back(runtime_dir: Path, form: str) -> int:
    """Have applications let go of, and servers brought back from deeper stages.

    It waits for an arbiter or a sleeper that lives still, who does it himself. With the few rights of a guardian: what
    it cannot do, it says, and `memscaler restore` can.
    """
    worst = 0
    for folder, program in UNDO.items():
        if tells_of_something(runtime_dir, folder):
            command = [sys.executable, "-P", str(program), str(runtime_dir), form]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, check=False, cwd="/")  # noqa: S603  # our own
            worst = max(worst, done.returncode if done.returncode >= 0 else 1)
    return worst


def _say(what: str) -> None:
    """If anybody listens still: the daemon may have died of its terminal's end, and waking must go on."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"memscaler guardian: {what}\n")
        sys.stderr.flush()


def _say_json(what: str) -> None:
    """The same as a line of the daemon's log; the journal strips the priority."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    priority = "<4>" if "JOURNAL_STREAM" in os.environ else ""
    line = json.dumps({"timestamp": at, "level": "warning", "event": "guardian.acted", "what": what})
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{priority}{line}\n")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
