"""Errors become one line, a hint and an exit code; never a traceback, unless MEMSCALER_DEBUG is set."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from memscaler.core.errors import MemscalerError

INTERRUPTED = 130  # what shells expect after Ctrl-C


@contextmanager
def exit_with() -> Iterator[None]:
    """Turn the errors that are meant for a person into messages and exit codes."""
    try:
        yield
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


def tell(error: MemscalerError) -> int:
    """Say what is wrong and what to do, on standard error; answer with the exit code."""
    for line in str(error).splitlines():
        print(f"memscaler: {line}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    return error.exit_code
