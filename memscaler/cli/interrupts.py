"""Commands that park GPUs themselves: however a signal ends them, first they wake what they have parked."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn, Protocol

import typer

if TYPE_CHECKING:  # opens the driver's binding; `--help` shall not
    from collections.abc import Callable, Iterator

    from memscaler.daemon.doctor.context import Context

INTERRUPTED = 130
UNDO_S = 30.0


class Working(Protocol):
    """Works in a thread of its own. hung: it was left behind, so an orderly end would wait for it."""

    hung: bool

    def wait(self, patience_s: float, /) -> bool:
        """For its end; False if it takes longer."""
        ...


@contextmanager
def woken_first(context: Context, working: Working, last_word: Callable[[], str] | None = None) -> Iterator[None]:
    """However a signal ends this: first what was parked is woken. context.probe: something may be parked.

    last_word: what to say then.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    if context.probe:  # who stands still wakes nothing; SIGSTOP cannot be ignored, so the guardian looks for it
        for number in (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
            signal.signal(number, signal.SIG_IGN)
    try:
        yield
    except KeyboardInterrupt:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        context.stop.set()
        working.wait(UNDO_S if context.probe else 0.0)
        if last_word is not None:
            with suppress(OSError):  # the terminal may be gone
                print(f"memscaler: {last_word()}", file=sys.stderr, flush=True)
        leave(context, working, INTERRUPTED)


def leave(context: Context, working: Working, code: int) -> NoReturn:
    """Where a thread hangs in the driver, an orderly end would wait for it."""
    if working.hung:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    context.close()
    raise typer.Exit(code)
