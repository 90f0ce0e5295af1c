"""A command that runs while a hold keeps GPUs awake. The hold is a connection: it ends with this process at the latest.

The command stays in the terminal's foreground with us, so what the keyboard sends it gets by itself. Other signals
reach only us, and are passed on.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping

from memscaler.cli.client import Client
from memscaler.cli.errors import tell
from memscaler.core.errors import DaemonNotRunning, MemscalerError

NOT_RUNNABLE, NOT_FOUND = 126, 127  # as shells have it
BY_SIGNAL = 128
SI_KERNEL = 0x80  # sigaction(2): from the terminal, which has sent it to the command as well
PASSED_ON = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT})
CHANGED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


def run_held(runtime_dir: str | None, command: list[str], wanted: Mapping[str, object]) -> int:
    """Run a command under a hold; its exit status, as shells count it. wanted: gpus, for_s and reason of the hold.

    Raise MemscalerError if there is no hold: then the command is not run.
    """
    client = Client(runtime_dir)
    try:
        with client.held(**wanted):
            return _run(command)
    except DaemonNotRunning as error:
        raise DaemonNotRunning(str(error), hint="start memscaler, or run the command without hold") from error


def _run(command: list[str]) -> int:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, as we may have found it, it would leave no status
    before = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON | {signal.SIGCHLD})
    try:
        pid = os.posix_spawnp(command[0], command, os.environ, setsigmask=before, setsigdef=CHANGED_BY_PYTHON)
    except OSError as error:
        tell(MemscalerError(f"cannot run {command[0]}: {error.strerror}"))
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_RUNNABLE
    return _wait(pid)


def _wait(pid: int) -> int:
    """Pass signals on until the command has ended."""
    while True:
        got = signal.sigwaitinfo(PASSED_ON | {signal.SIGCHLD})
        if got.si_signo != signal.SIGCHLD:
            if got.si_code != SI_KERNEL:
                os.kill(pid, got.si_signo)
            continue
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else BY_SIGNAL - code
