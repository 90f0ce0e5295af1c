"""Calls that may hang in the kernel, in a child process: GVM's driver may move gigabytes before it answers.

Not in a thread: a process with a thread that the kernel does not let go of cannot end, and whoever waits for it waits
on.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any, TypeVar

from memscaler.core.errors import MemscalerError
from memscaler.gvm.errors import KnobError, Late

Value = TypeVar("Value")

PATIENCE_S = 3.0  # for a reading
_SOON_S = 2.0  # after which it is said that we wait
_LENGTH_BYTES = 4


class _Died(KnobError):
    """The child is gone before it has told."""


def each(
    acts: Sequence[Callable[[], Value]], patience_s: float = PATIENCE_S, waiting: Callable[[int], None] | None = None
) -> list[Value | MemscalerError]:
    """Of each act, in their order, its result or the error that it has raised; Late if it takes longer: it goes on.

    waiting: told the number of an act that takes long. Results go through pickle.
    """
    outcomes: list[Value | MemscalerError] = []
    while len(outcomes) < len(acts):
        with _child(acts[len(outcomes) :]) as results:
            while len(outcomes) < len(acts):
                outcomes.append(_next(results, patience_s, len(outcomes), waiting))
                if isinstance(outcomes[-1], (Late, _Died)):
                    break  # the others are a new child's
    return outcomes


@contextmanager
def _child(acts: Sequence[Callable[[], Any]]) -> Iterator[IO[bytes]]:
    """A child that does these acts; a file with its results. It may be left behind in the kernel."""
    results, told = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if not pid:
        _do(acts, told)
    os.close(told)
    with os.fdopen(results, "rb", buffering=0) as file:
        yield file
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _do(acts: Sequence[Callable[[], Any]], told: int) -> None:
    """In the child: does not return."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a write that has begun is not better for being broken off
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in range(3):  # whoever reads what we print must not wait for this process
            os.dup2(nothing, number)
        for act in acts:
            text = pickle.dumps(_outcome(act))
            os.write(told, len(text).to_bytes(_LENGTH_BYTES, "big") + text)
    finally:
        os._exit(0)


def _outcome(act: Callable[[], Any]) -> Any:
    try:
        return act()
    except MemscalerError as error:
        return error
    except OSError as error:
        return KnobError(error.strerror or str(error))


def _next(results: IO[bytes], patience_s: float, at: int, waiting: Callable[[int], None] | None) -> Any:
    begun_s = time.monotonic()
    ready = select.select([results], [], [], min(_SOON_S, patience_s))[0]
    if not ready and patience_s > _SOON_S:
        if waiting is not None:
            waiting(at)
        ready = select.select([results], [], [], max(0.0, begun_s + patience_s - time.monotonic()))[0]
    if not ready:
        return Late(f"the driver has not answered for {patience_s:.0f} s; it may still do it")
    text = _whole(results, int.from_bytes(_whole(results, _LENGTH_BYTES), "big"))
    return pickle.loads(text) if text else _Died("the process that did it has died")  # noqa: S301  # our own child's


def _whole(results: IO[bytes], length: int) -> bytes:
    """So many bytes; none at the end of it."""
    text = b""
    while len(text) < length:
        part = results.read(length - len(text))
        if not part:
            return b""
        text += part
    return text
