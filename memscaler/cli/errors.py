"""Errors become one line, a hint and an exit code; never a traceback, unless MEMSCALER_DEBUG is set."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from memscaler.core.errors import MemscalerError

INTERRUPTED = 130  # what shells expect after Ctrl-C
PIPE_CLOSED = 141  # and of who wrote into a pipe that nobody reads, as in `memscaler report | head`


@contextmanager
def exit_with() -> Iterator[None]:
    """Turn the errors that are meant for a person into messages and exit codes."""
    stdout = sys.stdout
    try:
        try:
            yield
        finally:
            _flush(stdout)
    except MemscalerError as error:
        if os.environ.get("MEMSCALER_DEBUG"):
            raise
        sys.exit(tell(error))
    except OSError as error:  # a full disk behind standard output, a home that may not be read
        if os.environ.get("MEMSCALER_DEBUG"):
            raise
        sys.exit(tell(MemscalerError(f"{error.strerror or error}" + f": {error.filename}" * bool(error.filename))))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, which ends a command in order, unless it is ignored."""
    if signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None):
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield


def _flush(stdout: TextIO) -> None:
    """All of what was printed, while it can still be said that it cannot. Raise OSError, or exit if nobody reads."""
    try:
        if sys.stdout is not stdout:  # click puts a silent one there when a pipe is closed, and exits with 1
            sys.stdout = stdout
            raise BrokenPipeError
        stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), stdout.fileno())  # python tries it again at its end
        if isinstance(error, BrokenPipeError):
            sys.exit(PIPE_CLOSED)
        raise


def tell(error: MemscalerError) -> int:
    """Say what is wrong and what to do, on standard error; answer with the exit code."""
    for line in str(error).splitlines():
        print(f"memscaler: {line}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    return error.exit_code
